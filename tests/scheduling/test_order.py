"""The order in which slots are begun, and how full a budget leaves the classes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cells import Candidate, Cell, Slot
from balancer.config.schema import Config
from balancer.planning.plan import Priority, make_plan
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.order import Quota, cells_in_turn, slots_in_turn
from balancer.scheduling.schedule import Schedule

REAL = {f"class{number:02d}": 1 + number * 499 // 39 for number in range(40)}
"""From 1 to 500 real images."""

MANY_CELLS = [name for number, name in enumerate(REAL) if number % 2]


def cell(class_name: str, value: str = "") -> Cell:
    return Cell(class_name, (("light", value),) if value else ())


def turns(quotas: list[Quota]) -> list[str]:
    return [slot.key for slot in slots_in_turn(quotas)]


@st.composite
def plans(draw: st.DrawFn) -> list[Quota]:
    classes = draw(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=6))
    return [
        (cell(f"class{number}", f"value{place}"), quota, number % 3)
        for number, quotas in enumerate(classes)
        for place, quota in enumerate(quotas)
    ]


def test_the_class_that_lacks_most_comes_first_and_all_end_together():
    quotas = [(cell("few"), 1, 0), (cell("many"), 3, 0)]
    assert turns(quotas) == ["many/0000", "few/0000", "many/0001", "many/0002"]


def test_at_the_same_share_the_more_urgent_class_comes_first():
    assert turns([(cell("medium"), 1, 2), (cell("critical"), 1, 0)]) == ["critical/0000", "medium/0000"]


def test_a_class_is_not_behind_for_having_fewer_cells():
    quotas = [(cell("one"), 4, 0), *((cell("four", value), 1, 0) for value in "abcd")]
    assert [key[:3] for key in turns(quotas)] == ["one", "fou"] * 4


def test_within_a_class_the_cells_are_filled_to_the_same_share():
    quotas = [(cell("a", "common"), 4, 0), (cell("a", "rare"), 1, 0)]
    assert [key.split("/")[1] for key in turns(quotas)] == ["common", "common", "rare", "common", "common"]


@given(plans())
def test_each_slot_has_its_turn_once_and_those_of_a_cell_in_order(quotas: list[Quota]):
    slots = list(slots_in_turn(quotas))
    assert sorted(slots) == sorted(Slot(cell, i) for cell, quota, _ in quotas for i in range(quota))
    for own, quota, _ in quotas:
        assert [slot.index for slot in slots if slot.cell == own] == list(range(quota))


@given(plans())
def test_the_order_of_cells_is_that_of_their_first_slots(quotas: list[Quota]):
    assert [quotas[place][0] for place in cells_in_turn(quotas)] == list(
        dict.fromkeys(slot.cell for slot in slots_in_turn(quotas))
    )


@given(plans(), st.integers(0, 100))
def test_at_any_moment_classes_have_begun_the_same_share_within_one_image(quotas: list[Quota], count: int):
    begun = Counter(slot.cell.class_name for slot in list(slots_in_turn(quotas))[:count])
    wanted = Counter[str]()
    for own, quota, _ in quotas:
        wanted[own.class_name] += quota
    least = min((begun[name] + 0.5) / wanted[name] for name in wanted)
    assert all((begun[name] - 0.5) / wanted[name] <= least for name in wanted)


# ---- a budget --------------------------------------------------------------------------------------


def config(target: dict[str, Any]) -> Config:
    """40 classes; every other one has 15 cells, the others one."""
    facets = {"light": 3, "angle": 5}
    return Config.model_validate(
        {
            "classes": {name: {"prompts": [name]} for name in REAL},
            "facets": {
                name: {
                    "classes": MANY_CELLS,
                    "values": {f"{name}{number}": {"prompts": [name]} for number in range(values)},
                }
                for name, values in facets.items()
            },
            "target": target,
        }
    )


def alternating() -> Callable[[Candidate], bool]:
    """Of each class, seven of ten candidates pass, evenly spread: equal pass rates without chance."""
    judged = Counter[str]()

    def passes(candidate: Candidate) -> bool:
        name = candidate.slot.cell.class_name
        judged[name] += 1
        return 7 * judged[name] // 10 > 7 * (judged[name] - 1) // 10

    return passes


def by_chance() -> Callable[[Candidate], bool]:
    chance = random.Random(16)
    return lambda candidate: chance.random() < 0.7


def filled_shares(
    target: dict[str, Any], passes: Callable[[Candidate], bool], batch: int, budget: int = 150
) -> dict[str, float]:
    """By class, the share of the wanted images that are accepted when the budget is spent."""
    plan = make_plan(config(target), REAL)
    ranks = list(Priority)
    quotas = [(wanted.cell, wanted.quota, ranks.index(wanted.priority)) for wanted in plan.cells]
    schedule = Schedule(quotas, attempts=3, max_candidates=budget)
    while made := schedule.next_batch(batch):
        for candidate in made:
            passed = passes(candidate)
            schedule.judged(Outcome(candidate, None if passed else "class"))
            if passed:
                schedule.accept(candidate)
    assert schedule.candidates == budget
    return {name: schedule.accepted_by_class[name] / n for name, n in schedule.wanted_by_class.items()}


TARGETS: list[dict[str, Any]] = [
    {"per_class": 500}, {"per_class": 62}, {"rule": "sqrt"}, {"total": sum(REAL.values()) + 550},
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_budget_of_150_candidates_leaves_40_classes_equally_full(target: dict[str, Any], batch: int):
    shares = filled_shares(target, alternating(), batch)
    assert max(shares.values()) - min(shares.values()) <= 0.10


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_chance_leaves_classes_equally_full_too(batch: int):
    shares = filled_shares({"per_class": 500}, by_chance(), batch)
    assert len(shares) == 39
    assert max(shares.values()) - min(shares.values()) <= 0.10


def test_a_budget_that_fills_most_of_the_plan_leaves_classes_equally_full():
    """The nine smallest classes are raised to one level: they lack 12 to 111 images."""
    shares = filled_shares({"total": sum(REAL.values()) + 550}, alternating(), 8, budget=600)
    assert len(shares) == 9
    assert min(shares.values()) > 0.7
    assert max(shares.values()) - min(shares.values()) <= 0.10
