"""How many images each class gets of each value of a facet, rounded for all classes at once.

A row for each class, a column for each value. Entries become floor or ceiling of their exact amounts, rows
keep their sums, and the sums of columns, over each kind of classes and over all, become floor or ceiling.
Such a rounding always exists, and a linear program finds the cheapest: sums over rows are one family of
nested sets, those over columns another, so that its matrix is totally unimodular and its corners are whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from balancer.planning.rounding import costs
from balancer.planning.rounding.program import Sum, Whole, cheapest
from balancer.planning.rounding.tables import Axis, Quotas


def round_margins(axis: Axis, kinds: Sequence[Sequence[str]]) -> Quotas:
    """By class, images of each value. `kinds` are the axis's classes, those with the same facets together."""
    names = [name for kind in kinds for name in kind]
    exact = [axis.amounts[name] for name in names]
    rounded = np.array([[math.floor(amount) for amount in row] for row in exact])
    room = np.array([[math.ceil(amount) for amount in row] for row in exact]) - rounded
    if room.any():
        rounded += _added(axis, names, list(_groups(kinds)), rounded, room)
    return dict(zip(names, rounded.tolist(), strict=True))


def _groups(kinds: Sequence[Sequence[str]]) -> Iterator[tuple[float, range]]:
    """Rows whose columns are summed, and what such a sum weighs."""
    start = 0
    for kind in kinds:
        yield costs.SUM, range(start, start + len(kind))
        start += len(kind)
    yield costs.TOTAL, range(start)


def _added(
    axis: Axis, names: Sequence[str], groups: Sequence[tuple[float, range]], floors: Whole, room: Whole
) -> Whole:
    """1 for the entries that become their ceiling."""
    unknown = np.arange(room.size).reshape(room.shape)
    cost, sums = np.empty(room.shape), []
    for row, name in enumerate(names):
        amounts = axis.amounts[name]
        for column, value in enumerate(axis.values):
            cost[row, column] = costs.SUM * costs.rising(amounts[column]) + costs.tie(name, value)
        lacking = int(sum(amounts)) - int(floors[row].sum())
        sums.append(Sum(unknown[row], lacking, lacking))
    for weight, rows in groups:
        for column in range(len(axis.values)):
            exact = sum((axis.amounts[names[row]][column] for row in rows), Fraction(0))
            cost[rows, column] += weight * costs.rising(exact)
            base = int(floors[rows, column].sum())
            sums.append(Sum(unknown[rows, column], math.floor(exact) - base, math.ceil(exact) - base))
    added = cheapest(cost.ravel(), room.ravel(), sums, whole=False)
    assert added is not None  # there always is one
    return np.rint(added).astype(np.int64).reshape(room.shape)
