"""The order in which slots are begun: all classes, and all cells of a class, are filled to the same share.

The next slot is of the class that has begun the smallest share of its images, and there of the cell that has.
A run that ends early, for its budget or any other reason, so leaves every class about as full as the others,
however many cells each has. Shares are those of Webster's method: slot i of n stands at (i + 1/2) / n. Of
classes at the same share the more urgent comes first, of cells the first in the plan.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from balancer.cells import Cell, Slot

Quota = tuple[Cell, int, int]
"""A cell, how many images it lacks, and its rank: of classes at the same share, lower ranks come first."""


def slots_in_turn(quotas: Iterable[Quota]) -> Iterator[Slot]:
    """All slots in the order in which they are begun."""
    waiting = []
    for number, (rank, cells) in enumerate(_by_class(quotas)):
        wanted = sum(quota for _, quota, _ in cells)
        waiting.append((_share(0, wanted), rank, number, 0, wanted, _slots_of_class(cells)))
    heapq.heapify(waiting)
    while waiting:
        _, rank, number, begun, wanted, slots = waiting[0]
        yield next(slots)
        if (begun := begun + 1) < wanted:
            heapq.heapreplace(waiting, (_share(begun, wanted), rank, number, begun, wanted, slots))
        else:
            heapq.heappop(waiting)


def cells_in_turn(quotas: Sequence[Quota]) -> list[int]:
    """The places of the quotas in the order of their cells' first slots, without going through the slots:
    there may be millions."""
    turns = []
    for number, (rank, cells) in enumerate(_by_class(quotas)):
        wanted = sum(quota for _, quota, _ in cells)
        first_slots = _slots_before([quota for _, quota, _ in cells])
        turns += [
            (_share(before, wanted), rank, number, before, place)
            for before, (_, _, place) in zip(first_slots, cells, strict=True)
        ]
    turns.sort()
    return [place for *_, place in turns]


_Lacking = tuple[Cell, int, int]
"""A cell, its quota and its place in the plan."""


def _by_class(quotas: Iterable[Quota]) -> list[tuple[int, list[_Lacking]]]:
    """The rank of each class, and its cells."""
    classes: dict[str, tuple[int, list[_Lacking]]] = {}
    for place, (cell, quota, rank) in enumerate(quotas):
        if quota > 0:
            if (own := classes.get(cell.class_name)) is None:
                own = classes[cell.class_name] = (rank, [])
            own[1].append((cell, quota, place))
    return list(classes.values())


def _slots_of_class(cells: Iterable[_Lacking]) -> Iterator[Slot]:
    waiting = [(_share(0, quota), place, 0, quota, cell) for cell, quota, place in cells]
    heapq.heapify(waiting)
    while waiting:
        _, place, index, quota, cell = waiting[0]
        yield Slot(cell, index)
        if index + 1 < quota:
            heapq.heapreplace(waiting, (_share(index + 1, quota), place, index + 1, quota, cell))
        else:
            heapq.heappop(waiting)


def _share(begun: int, wanted: int) -> float:
    """Equal fractions give equal floats, so ties are exact."""
    return (2 * begun + 1) / (2 * wanted)


def _slots_before(quotas: Sequence[int]) -> Iterator[int]:
    """For each cell of a class, how many slots of the class are begun before its first one.

    Slot i of a cell of n comes before the first of a cell of m if (2i + 1) m < n, or if they are equal and
    its cell is the first in the plan.
    """
    cells_with, passed = Counter(quotas), Counter[int]()
    before = {
        own: sum(count * (((other - 1) // own + 1) // 2) for other, count in cells_with.items())
        for own in cells_with
    }
    for own in quotas:
        ties = (count for other, count in passed.items() if other % own == 0 and other // own % 2)
        yield before[own] + sum(ties)
        passed[own] += 1
