"""Controlled rounding: exact quotas into whole ones, all together.

Rounding each cell by itself loses images, or makes one lighting commoner than another. Rounded together,
every total stays where rounding it alone would put it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from balancer.cells import Cell, Facet, cells_of

# What it costs to round something against its nearer side. Totals weigh most: their evenness is what a
# reader checks. Leaving floor and ceiling altogether costs more than rounding any cell the wrong way.
_TOTAL_WEIGHT, _MARGIN_WEIGHT, _CELL_WEIGHT, _OUTSIDE_COST = 100.0, 10.0, 1.0, 1000.0
_TIE_BREAK = 1e-3

_Group = tuple[float, list[int]]


def joint_quotas(deficits: Mapping[str, int], facets: Sequence[Facet]) -> dict[Cell, int]:
    """Whole quotas for every cell of every class in `deficits`.

    The exact quota of a cell is its class's deficit times the shares of its values. Always kept: each
    class gets its deficit; each value of a facet, within each class and over all classes, gets the
    floor or the ceiling of its exact sum. Each cell gets floor or ceiling as well unless that contradicts
    the rest (not excluded, but no such shares have turned up); then as few images as possible lie outside.
    Among what is left, nearest is best. The result does not depend on the order of the arguments.
    """
    exact = _exact_quotas(deficits, facets)
    cells = sorted(exact)
    values = [exact[cell] for cell in cells]
    if all(value.denominator == 1 for value in values):
        return {cell: int(exact[cell]) for cell in cells}
    groups = list(_groups(cells))
    ties = [_TIE_BREAK * _unit_hash(cell.key) for cell in cells]
    rounded = _solve(values, groups, ties, strict=True) or _solve(values, groups, ties, strict=False)
    if rounded is None:  # margins alone can always be met: each facet by itself is a flow problem
        raise RuntimeError("no rounding of the quotas was found")
    return dict(zip(cells, rounded, strict=True))


def _exact_quotas(deficits: Mapping[str, int], facets: Sequence[Facet]) -> dict[Cell, Fraction]:
    shares = {facet.name: dict(zip(facet.values, facet.shares, strict=True)) for facet in facets}
    return {
        cell: deficit * math.prod((shares[name][value] for name, value in cell.facets), start=Fraction(1))
        for class_name, deficit in deficits.items()
        for cell in cells_of(class_name, facets)
    }


def _groups(cells: Sequence[Cell]) -> Iterator[_Group]:
    """Sets of cells, as indices, whose sum is to be rounded, and what that is worth."""
    members: dict[tuple[float, str, tuple[str, str]], list[int]] = {}
    for index, cell in enumerate(cells):
        members.setdefault((0.0, cell.class_name, ("", "")), []).append(index)
        for pair in cell.facets:
            members.setdefault((_MARGIN_WEIGHT, cell.class_name, pair), []).append(index)
            members.setdefault((_TOTAL_WEIGHT, "", pair), []).append(index)
    for (weight, _, _), indices in members.items():
        yield weight, indices


def _solve(
    exact: Sequence[Fraction], groups: Sequence[_Group], ties: Sequence[float], *, strict: bool
) -> list[int] | None:
    """The cheapest rounding, or None if there is none.

    Each cell is its floor plus an unknown of 0 or 1; if not `strict`, plus one unknown for what it gets
    beyond its ceiling, minus one for what it lacks below its floor.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import hstack

    floors = [math.floor(value) for value in exact]
    cost = np.array(_costs(exact, groups)) + ties
    upper: Any = np.array([math.ceil(value) - floor for value, floor in zip(exact, floors, strict=True)])
    sums, low, high = _sums(exact, floors, groups)
    if not strict:
        sums = hstack([sums, sums, -sums])
        upper = np.concatenate([upper, np.full(len(exact), np.inf), floors])
        cost = np.concatenate([cost, _OUTSIDE_COST + cost, _OUTSIDE_COST - cost])
    result = milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, upper),
        constraints=LinearConstraint(sums, low, high),
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        return None
    parts = np.rint(result.x).astype(int).reshape(-1, len(exact))
    added = parts[0] if strict else parts[0] + parts[1] - parts[2]
    return [floor + int(more) for floor, more in zip(floors, added, strict=True)]


def _costs(exact: Sequence[Fraction], groups: Sequence[_Group]) -> list[float]:
    """What one more image in each cell costs. A sum with fraction f is f off if rounded down and 1 - f
    if rounded up, so its cost grows by 1 - 2f with each image."""
    costs = [_CELL_WEIGHT * _step(value) for value in exact]
    for weight, indices in groups:
        step = weight * _step(sum((exact[index] for index in indices), Fraction(0)))
        for index in indices:
            costs[index] += step
    return costs


def _step(value: Fraction) -> float:
    return float(1 - 2 * (value % 1))


def _sums(exact: Sequence[Fraction], floors: Sequence[int], groups: Sequence[_Group]) -> tuple[Any, Any, Any]:
    """The matrix that sums each group's unknowns, and the bounds of those sums."""
    import numpy as np
    from scipy.sparse import csr_array

    totals = [sum((exact[index] for index in indices), Fraction(0)) for _, indices in groups]
    below = [sum(floors[index] for index in indices) for _, indices in groups]
    rows = [row for row, (_, indices) in enumerate(groups) for _ in indices]
    columns = [index for _, indices in groups for index in indices]
    matrix = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(groups), len(exact)))
    low = np.array([math.floor(total) - base for total, base in zip(totals, below, strict=True)])
    high = np.array([math.ceil(total) - base for total, base in zip(totals, below, strict=True)])
    return matrix, low, high


def _unit_hash(key: str) -> float:
    """A number from 0 to 1 that settles which of two equal cells is rounded up, whatever their order."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48
