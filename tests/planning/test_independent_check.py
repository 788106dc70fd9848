"""Seven targets for 40 classes, checked with arithmetic of their own: exact totals, margins within one."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest

from balancer.config.schema import Config
from balancer.planning.plan import make_plan

REAL = {f"class{number:02d}": 1 + number * 499 // 39 for number in range(40)}
"""From 1 to 500 real images."""

WITH_DAMAGE = [name for number, name in enumerate(REAL) if number % 3 == 0]
SHARES = {
    "light": {"harsh": "0.25", "side": "0.25", "dim": "0.25", "rim": "0.25"},
    "angle": {"above": "0.5", "level": "0.3", "below": "0.2"},
    "damage": {"slight": "0.40", "moderate": "0.35", "severe": "0.25"},
}
SINGLE: dict[str, Any] = {"class00": 37, "class17": "keep", "class21": 901, "class39": 640}

TARGETS: dict[str, dict[str, Any]] = {
    "per class": {"per_class": 500},
    "ratio": {"ratio_to_largest": 0.37},
    "total": {"total": 14_321},
    "square root": {"rule": "sqrt"},
    "effective number": {"rule": "effective_number", "beta": 0.999},
    "single classes": {"per_class": 211, "classes": SINGLE},
    "single classes in a total": {"total": 13_007, "classes": SINGLE, "max_synthetic_share": 0.8},
}


def wanted_per_class() -> dict[str, int]:
    return dict.fromkeys(REAL, 500)


def wanted_by_ratio() -> dict[str, int]:
    return dict.fromkeys(REAL, 185)  # 0.37 of 500


def wanted_of_a_total(total: int, single: dict[str, int]) -> dict[str, int]:
    """Give one image after the other to the class that has fewest."""
    have = {name: max(count, single.get(name, 0)) for name, count in REAL.items()}
    for _ in range(total - sum(have.values())):
        have[min((count, name) for name, count in have.items() if name not in single)[1]] += 1
    return have | single


def wanted_by_root() -> dict[str, int]:
    """The least number whose square is at least the product."""
    return {name: next(n for n in range(501) if n * n >= 500 * count) for name, count in REAL.items()}


def wanted_by_effective_number() -> dict[str, int]:
    """The effective number as the sum of a geometric series, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        series = [Decimal(0)]
        for power in range(500):
            series.append(series[-1] + Decimal("0.999") ** power)
        exact = {name: count * series[500] / series[count] for name, count in REAL.items()}
        return {name: next(n for n in range(501) if n >= number) for name, number in exact.items()}


def single_targets() -> dict[str, int]:
    return {name: REAL[name] if target == "keep" else int(target) for name, target in SINGLE.items()}


WANTED: dict[str, Any] = {
    "per class": wanted_per_class,
    "ratio": wanted_by_ratio,
    "total": lambda: wanted_of_a_total(14_321, {}),
    "square root": wanted_by_root,
    "effective number": wanted_by_effective_number,
    "single classes": lambda: dict.fromkeys(REAL, 211) | single_targets(),
    "single classes in a total": lambda: wanted_of_a_total(13_007, single_targets()),
}


def to_generate(wanted: Mapping[str, int], largest_share: str | None) -> dict[str, int]:
    lacking = {name: max(0, wanted[name] - count) for name, count in REAL.items()}
    if largest_share is not None:
        for name, count in REAL.items():
            while lacking[name] and Fraction(lacking[name], lacking[name] + count) > Fraction(largest_share):
                lacking[name] -= 1
    return lacking


@pytest.fixture(scope="module", params=TARGETS)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, int], list[tuple[dict[str, str | None], int]]]:
    """What is to be generated of each class, and the planned cells as plain values with their images."""
    target = TARGETS[request.param]
    config = Config.model_validate(
        {
            "classes": {name: {"prompts": [name]} for name in REAL},
            "facets": {
                facet: {
                    "classes": WITH_DAMAGE if facet == "damage" else "all",
                    "values": {
                        value: {"share": float(share), "prompts": [value]} for value, share in shares.items()
                    },
                }
                for facet, shares in SHARES.items()
            },
            "target": target,
        }
    )
    cells = []
    for planned in make_plan(config, REAL).cells:
        values = {facet: planned.cell.value(facet) for facet in SHARES}
        cells.append((values | {"class": planned.cell.class_name}, planned.quota))
    share = target.get("max_synthetic_share")
    return to_generate(WANTED[request.param](), None if share is None else str(share)), cells


def images(cells: list[tuple[dict[str, str | None], int]], **values: str) -> int:
    return sum(quota for cell, quota in cells if all(cell[key] == value for key, value in values.items()))


def test_totals_are_exact(case: Any):
    lacking, cells = case
    assert {name: images(cells, **{"class": name}) for name in REAL} == lacking
    assert sum(quota for _, quota in cells) == sum(lacking.values()) > 0


def test_every_margin_is_within_one(case: Any):
    lacking, cells = case
    for facet, shares in SHARES.items():
        classes = WITH_DAMAGE if facet == "damage" else list(REAL)
        for value, share in shares.items():
            for name in classes:
                off = images(cells, **{"class": name, facet: value}) - lacking[name] * Fraction(share)
                assert abs(off) < 1, (name, facet, value)
            exact = sum((lacking[name] for name in classes), 0) * Fraction(share)
            assert abs(images(cells, **{facet: value}) - exact) < 1, (facet, value)


def test_cells_have_all_facets_of_their_class_and_no_others(case: Any):
    for cell, quota in case[1]:
        assert quota > 0
        assert (cell["damage"] is not None) == (cell["class"] in WITH_DAMAGE)
        assert cell["light"] in SHARES["light"]
        assert cell["angle"] in SHARES["angle"]
