"""Round the number of images per class and facet value, for all classes at once.

The table has a row per class and a column per value. Entries become the floor or the ceiling of their exact
amounts, rows keep their sums, and column sums, over each kind of classes and over all, become floor or
ceiling. Such a rounding always exists, and a linear program finds the cheapest: row sums and column sums are
two families of nested sets, so the matrix is totally unimodular and the solution is integral.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from balancer.planning.rounding import costs
from balancer.planning.rounding.program import Ints, SumConstraint, solve
from balancer.planning.rounding.tables import Axis, Quotas


def round_margins(axis: Axis, kinds: Sequence[Sequence[str]]) -> Quotas:
    """Images of each value, by class. `kinds` are the axis's classes, grouped by equal facets."""
    names = [name for kind in kinds for name in kind]
    exact = [axis.amounts[name] for name in names]
    rounded = np.array([[math.floor(amount) for amount in row] for row in exact])
    fractional = np.array([[math.ceil(amount) for amount in row] for row in exact]) - rounded
    if fractional.any():
        rounded += _choose_ceilings(axis, names, list(_groups(kinds)), rounded, fractional)
    return dict(zip(names, rounded.tolist(), strict=True))


def _groups(kinds: Sequence[Sequence[str]]) -> Iterator[tuple[float, range]]:
    """(weight, rows) of each group of rows whose column sums are rounded."""
    start = 0
    for kind in kinds:
        yield costs.SUM, range(start, start + len(kind))
        start += len(kind)
    yield costs.TOTAL, range(start)


def _choose_ceilings(
    axis: Axis, names: Sequence[str], groups: Sequence[tuple[float, range]], floors: Ints, fractional: Ints
) -> Ints:
    """1 for the entries that are rounded up."""
    unknown = np.arange(fractional.size).reshape(fractional.shape)
    cost, sums = np.empty(fractional.shape), []
    for row, name in enumerate(names):
        amounts = axis.amounts[name]
        for column, value in enumerate(axis.values):
            cost[row, column] = costs.SUM * costs.rising(amounts[column]) + costs.tie(name, value)
        lacking = int(sum(amounts)) - int(floors[row].sum())
        sums.append(SumConstraint(unknown[row], lacking, lacking))
    for weight, rows in groups:
        for column in range(len(axis.values)):
            exact = sum((axis.amounts[names[row]][column] for row in rows), Fraction(0))
            cost[rows, column] += weight * costs.rising(exact)
            base = int(floors[rows, column].sum())
            sums.append(
                SumConstraint(unknown[rows, column], math.floor(exact) - base, math.ceil(exact) - base)
            )
    added = solve(cost.ravel(), fractional.ravel(), sums, whole=False)
    assert added is not None  # a solution always exists
    return np.rint(added).astype(np.int64).reshape(fractional.shape)
