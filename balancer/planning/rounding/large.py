"""A near rounding of many cells: margins first, then images are dealt out class by class, and exchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balancer.planning.rounding import costs
from balancer.planning.rounding.margins import round_margins
from balancer.planning.rounding.program import Floats, Whole
from balancer.planning.rounding.tables import Kind, Quotas

MAX_ROUNDS = 20

TRIED = 6
"""Cells from which exchanges are looked for: those that gain most by one image less, or by one more."""

LEAST_GAIN = 1e-6
"""Costs that differ by less are equal: they are sums of floats."""

NEAR = 1e-6
"""Sums over classes as near as that to a whole number, in images, are taken for it: more than what such a sum
is off as a float."""


def round_large(kinds: Sequence[Kind]) -> Quotas:
    axes = {axis.name: axis for kind in kinds for axis in kind.axes}
    margins = {
        name: round_margins(axis, [kind.names for kind in kinds if any(axis is own for own in kind.axes)])
        for name, axis in axes.items()
    }
    quotas: Quotas = {}
    for kind in kinds:
        table = _table(kind, [margins[axis.name] for axis in kind.axes])
        rounded = table.margins[0] if len(kind.axes) == 1 else _deal_and_exchange(table)
        quotas.update(zip(kind.names, rounded.tolist(), strict=True))
    return quotas


@dataclass(frozen=True, slots=True)
class _Table:
    """Classes (rows) by combinations (columns), and for each facet `margins`, classes by values."""

    exact: Floats
    floors: Whole
    ceilings: Whole
    margins: tuple[Whole, ...]


def _table(kind: Kind, margins: Sequence[Quotas]) -> _Table:
    rows = [kind.exact(name) for name in kind.names]
    return _Table(
        exact=np.array([[over / under for over in row] for row, under in rows]),
        floors=np.array([[over // under for over in row] for row, under in rows]),
        ceilings=np.array([[-(-over // under) for over in row] for row, under in rows]),
        margins=tuple(np.array([of_class[name] for name in kind.names]) for of_class in margins),
    )


def _deal_and_exchange(table: _Table) -> Whole:
    """Each class in turn gets its images, so that columns are near in the sum of the classes so far. Then two
    images of a class exchange their values of one facet, which keeps its margins, wherever that makes the
    table cheaper, until it does nowhere."""
    search = _Search(table)
    rows = range(len(table.exact))
    for row in rows:
        search.deal(row)
        search.exchange(row)
    for _ in range(MAX_ROUNDS):
        exchanged = [search.exchange(row) for row in rows]
        if not any(exchanged):
            break
    return search.rounded


class _Search:
    """`due` and `sums` are the exact and the rounded sums of the columns, over the classes dealt so far."""

    def __init__(self, table: _Table) -> None:
        shape = [margins.shape[1] for margins in table.margins]
        self.table = table
        self.steps = costs.CELL * (1 - 2 * (table.exact - table.floors))
        self.coordinates = np.indices(shape).reshape(len(shape), -1)
        self.strides = np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])
        self.rounded = np.zeros_like(table.floors)
        self.due = np.zeros(table.exact.shape[1])
        self.sums = np.zeros(table.exact.shape[1], np.int64)

    def deal(self, row: int) -> None:
        """Beyond the floors, one image after another goes to the cell that lacks most among those whose
        values all have images left; cells at their ceiling come last."""
        table, dealt = self.table, self.table.floors[row].copy()
        left = [
            margins[row] - np.bincount(of_cell, dealt, margins.shape[1]).astype(np.int64)
            for margins, of_cell in zip(table.margins, self.coordinates, strict=True)
        ]
        lacking = table.exact[row] - dealt + self.due - self.sums
        lacking[dealt == table.ceilings[row]] -= costs.CELL_OUTSIDE
        for images, of_cell in zip(left, self.coordinates, strict=True):
            lacking[images[of_cell] == 0] = -np.inf
        for _ in range(int(left[0].sum())):
            cell = int(lacking.argmax())
            dealt[cell] += 1
            lacking[cell] -= costs.CELL_OUTSIDE
            for images, of_cell in zip(left, self.coordinates, strict=True):
                value = of_cell[cell]
                images[value] -= 1
                if images[value] == 0:
                    lacking[of_cell == value] = -np.inf
        self.rounded[row] = dealt
        self.due += table.exact[row]
        self.sums += dealt

    def exchange(self, row: int) -> bool:
        """Make the best exchange in one class, again and again; False if there is none."""
        low, high = np.floor(self.due + NEAR), np.ceil(self.due - NEAR)
        step = costs.SUM * (1 - 2 * (self.due - low))
        images, exchanged = self.rounded[row], False
        floors, ceilings, steps = self.table.floors[row], self.table.ceilings[row], self.steps[row]

        def next_one(images: Whole, sums: Whole) -> Floats:
            """What one more image in each cell costs."""
            cells = _rise(images, floors, ceilings, steps, costs.CELL + costs.CELL_OUTSIDE)
            return cells + _rise(sums, low, high, step, costs.SUM + costs.COMBINATION_OUTSIDE)

        while True:
            more = next_one(images, self.sums)
            less = np.where(images > 0, -next_one(images - 1, self.sums - 1), np.inf)
            losing, getting = self._exchange(less, more)
            if not losing:
                getting, losing = self._exchange(more, less)
            if not losing:
                return exchanged
            for numbers in (images, self.sums):
                numbers[losing] -= 1
                numbers[getting] += 1
            exchanged = True

    def _exchange(self, first: Floats, second: Floats) -> tuple[list[int], list[int]]:
        """Two cells and the two that they become by exchanging their values of one facet, whose costs
        `first` and `second` are the least; none if they save nothing. Tried are all pairs with one
        of the cells that are cheapest in `first`."""
        tried = np.argpartition(first, min(TRIED, len(first) - 1))[:TRIED]
        # Facets by tried cells by all cells: how far the exchange moves the former, and back the latter.
        moved = self.coordinates[:, None, :] - self.coordinates[:, tried, None]
        moved *= self.strides[:, None, None]
        cells = np.arange(len(first))
        cost = first[tried, None] + first + second[tried[:, None] + moved] + second[cells - moved]
        best = int(cost.argmin())
        if cost.ravel()[best] > -LEAST_GAIN:
            return [], []
        facet, number, other = np.unravel_index(best, cost.shape)
        one, by = int(tried[number]), int(moved[facet, number, other])
        return [one, int(other)], [one + by, int(other) - by]


def _rise(numbers: Whole, low: Whole | Floats, high: Whole | Floats, step: Floats, outside: float) -> Floats:
    """What one more costs: from floor to ceiling `step`, from the ceiling on `outside`, and that much is
    saved below the floor."""
    return np.where(numbers >= high, outside, np.where(numbers < low, -outside, step))
