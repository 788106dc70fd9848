"""Round many cells approximately: margins first, then deal images out class by class, and exchange them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balancer.planning.rounding import costs
from balancer.planning.rounding.margins import round_margins
from balancer.planning.rounding.program import Floats, Ints
from balancer.planning.rounding.tables import Kind, Quotas

MAX_ROUNDS = 20

TRIED = 6
"""Start cells of exchanges: the cells that gain most by one image less, or by one more."""

LEAST_GAIN = 1e-6
"""Costs that differ by less are equal, because they are sums of floats."""

NEAR = 1e-6
"""A sum over classes this close to an integer, in images, counts as it. Float errors are smaller."""


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
    """Classes (rows) by combinations (columns); `margins` has a table of classes by values for each facet."""

    exact: Floats
    floors: Ints
    ceilings: Ints
    margins: tuple[Ints, ...]


def _table(kind: Kind, margins: Sequence[Quotas]) -> _Table:
    rows = [kind.exact(name) for name in kind.names]
    return _Table(
        exact=np.array([[over / under for over in row] for row, under in rows]),
        floors=np.array([[over // under for over in row] for row, under in rows]),
        ceilings=np.array([[-(-over // under) for over in row] for row, under in rows]),
        margins=tuple(np.array([of_class[name] for name in kind.names]) for of_class in margins),
    )


def _deal_and_exchange(table: _Table) -> Ints:
    """Deal images to one class after the other, keeping the column sums so far near their exact values. Then
    let two images of a class exchange their values of one facet, which keeps the margins, until no exchange
    lowers the cost."""
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
    """`due` and `sums` are the exact and the rounded column sums over the classes dealt so far."""

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
        """Start at the floors. Give one image after the other to the cell that lacks most, among the cells
        whose values all have images left; cells at their ceiling come last."""
        table, dealt = self.table, self.table.floors[row].copy()
        left = [
            margins[row] - np.bincount(values, dealt, margins.shape[1]).astype(np.int64)
            for margins, values in zip(table.margins, self.coordinates, strict=True)
        ]
        lacking = table.exact[row] - dealt + self.due - self.sums
        lacking[dealt == table.ceilings[row]] -= costs.CELL_OUTSIDE
        for images, values in zip(left, self.coordinates, strict=True):
            lacking[images[values] == 0] = -np.inf
        for _ in range(int(left[0].sum())):
            cell = int(lacking.argmax())
            dealt[cell] += 1
            lacking[cell] -= costs.CELL_OUTSIDE
            for images, values in zip(left, self.coordinates, strict=True):
                value = values[cell]
                images[value] -= 1
                if images[value] == 0:
                    lacking[values == value] = -np.inf
        self.rounded[row] = dealt
        self.due += table.exact[row]
        self.sums += dealt

    def exchange(self, row: int) -> bool:
        """Repeat the best exchange in one class; False if there was none."""
        low, high = np.floor(self.due + NEAR), np.ceil(self.due - NEAR)
        step = costs.SUM * (1 - 2 * (self.due - low))
        images, exchanged = self.rounded[row], False
        floors, ceilings, steps = self.table.floors[row], self.table.ceilings[row], self.steps[row]

        def next_one(images: Ints, sums: Ints) -> Floats:
            """Cost of one more image in each cell."""
            cells = _step_costs(images, floors, ceilings, steps, costs.CELL + costs.CELL_OUTSIDE)
            return cells + _step_costs(sums, low, high, step, costs.SUM + costs.COMBINATION_OUTSIDE)

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
        """The pair of cells, and the pair they become by exchanging their values of one facet, with the least
        cost in `first` plus `second`; empty if no exchange saves anything. Tries all pairs with one of the
        TRIED cheapest cells in `first`."""
        tried = np.argpartition(first, min(TRIED, len(first) - 1))[:TRIED]
        # Facets by tried cells by all cells: the exchange moves a tried cell this far, the other one back.
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


def _step_costs(
    numbers: Ints, low: Ints | Floats, high: Ints | Floats, step: Floats, outside: float
) -> Floats:
    """Cost of one more image: `step` from floor to ceiling, `outside` above; below, it saves `outside`."""
    return np.where(numbers >= high, outside, np.where(numbers < low, -outside, step))
