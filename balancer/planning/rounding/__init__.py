"""Controlled rounding: round the exact quotas of all cells together.

Rounding each cell alone loses images, or makes one lighting more common than another. Rounded together,
every total is the floor or the ceiling of its exact value.

Classes of one kind (with the same facets) form a table: a row per class, a column per combination of values.
The cost of a rounding is a sum over all rounded numbers (`costs`). Up to `SMALL` cells an integer program
finds the cheapest rounding (`small`). Beyond, the sums of each facet's values are rounded first, at the least
cost (`margins`), then the cells of each table within them: images are dealt out, and exchanged until no
exchange lowers the cost (`large`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from balancer.cells import Cell, Facet
from balancer.planning.rounding.tables import Axis, Kind, Quotas

SMALL = 128
"""Up to this many cells, the integer program takes well under a second for any shares."""

Shares = Mapping[tuple[str, str], Sequence[Fraction]]
"""Shares of a facet's values within one class, by (class, facet), in the order of the facet's values."""


def as_written(decimal: float) -> Fraction:
    """The decimal as written, not its nearest binary fraction."""
    return Fraction(str(decimal))


def round_quotas(
    deficits: Mapping[str, int], facets: Sequence[Facet], shares: Shares | None = None
) -> dict[Cell, int]:
    """Integer quotas for every cell of every class in `deficits`.

    The exact quota of a cell is its class's deficit times the shares of its values: those in `shares` for
    its class and facet, else the facet's own.

    Always true: no quota is negative; each class gets its deficit; each value of a facet gets the floor or
    the ceiling of its exact sum, within each class, over the classes of one kind and over all classes.

    True unless it contradicts these: each cell, and each combination of values over the classes of one kind,
    gets the floor or the ceiling of its exact number. A contradiction needs few values and few images; then
    as few images as possible lie outside. Among the remaining roundings, the nearest one is chosen. With more
    than `SMALL` cells, "as few as possible" and "nearest" hold for the sums of values of each facet. For
    cells and combinations there is no guarantee, except that no exchange of two images within a class is
    better.

    The result does not depend on the order of classes, facets or values.
    """
    # Imports numpy and scipy, which `balancer --help` does not need.
    from balancer.planning.rounding.large import round_large
    from balancer.planning.rounding.small import round_small

    kinds = _kinds(deficits, facets, shares or {})
    size = sum(len(kind.names) * len(kind.combinations) for kind in kinds)
    with_facets = [kind for kind in kinds if kind.axes]
    rounded: Quotas = {}
    if with_facets:
        rounded = (round_small(with_facets) if size <= SMALL else None) or round_large(with_facets)
    quotas = {}
    for kind in kinds:
        columns = list(_columns(kind, facets))
        for name in kind.names:
            row = rounded[name] if kind.axes else [deficits[name]]
            quotas.update({Cell(name, values): row[column] for values, column in columns})
    return quotas


def _kinds(deficits: Mapping[str, int], facets: Sequence[Facet], shares: Shares) -> list[Kind]:
    axes = [
        _axis(facet, deficits, shares)
        for facet in sorted(facets, key=lambda facet: (-len(facet.classes), facet.name))
    ]
    members = defaultdict[tuple[int, ...], list[str]](list)
    for name in sorted(deficits):
        members[tuple(number for number, axis in enumerate(axes) if name in axis.amounts)].append(name)
    return [
        Kind(tuple(names), tuple(axes[number] for number in numbers))
        for numbers, names in sorted(members.items())
    ]


def _axis(facet: Facet, deficits: Mapping[str, int], shares: Shares) -> Axis:
    order = sorted(range(len(facet.values)), key=facet.values.__getitem__)
    amounts = {}
    for name in sorted(filter(facet.applies_to, deficits)):
        own = shares.get((name, facet.name), facet.shares)
        amounts[name] = tuple(deficits[name] * own[value] for value in order)
    return Axis(facet.name, tuple(facet.values[value] for value in order), amounts)


def _columns(kind: Kind, facets: Sequence[Facet]) -> Iterator[tuple[tuple[tuple[str, str], ...], int]]:
    """The facets of each cell, in the caller's order, and the number of its combination."""
    names = [axis.name for axis in kind.axes]
    number_of = {values: number for number, values in enumerate(kind.combinations)}
    applying = [facet for facet in facets if facet.name in names]
    for values in itertools.product(*(facet.values for facet in applying)):
        pairs = tuple(zip((facet.name for facet in applying), values, strict=True))
        value_of = dict(pairs)
        yield pairs, number_of[tuple(value_of[name] for name in names)]
