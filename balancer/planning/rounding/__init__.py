"""Controlled rounding: exact quotas into whole ones, all together.

Rounding each cell by itself loses images, or makes one lighting commoner than another. Rounded together,
every total stays where rounding it alone would put it.

Classes of one kind, those with the same facets, make a table: a row for each class, a column for each
combination of values. What a rounding of all tables costs is a sum over every number it decides (`costs`). Up
to `SMALL` cells an integer program finds the cheapest one (`small`). Beyond, the sums of each facet's values
are rounded first, the cheapest way (`margins`), then the cells of each table within them, by dealing images
out and exchanging them until no exchange makes the table cheaper (`large`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from balancer.cells import Cell, Facet
from balancer.planning.rounding.tables import Axis, Kind, Quotas

SMALL = 128
"""Cells for which the cheapest rounding is found in well under a second, whatever the shares."""

Shares = Mapping[tuple[str, str], Sequence[Fraction]]
"""Shares of a facet's values within one class, by (class, facet), in the order of the facet's values."""


def as_written(decimal: float) -> Fraction:
    """The decimal somebody wrote, not its nearest binary fraction."""
    return Fraction(str(decimal))


def joint_quotas(
    deficits: Mapping[str, int], facets: Sequence[Facet], shares: Shares | None = None
) -> dict[Cell, int]:
    """Whole quotas for every cell of every class in `deficits`.

    The exact quota of a cell is its class's deficit times the shares of its values: those in `shares`
    where it has class and facet, else the facet's own.

    Always kept: no quota is negative; each class gets its deficit; each value of a facet, within each
    class, over the classes of one kind and over all classes, gets the floor or the ceiling of its exact sum.

    Kept unless it contradicts these: each cell, and each combination of values over the classes of one
    kind, gets the floor or the ceiling of its exact number. That can contradict them only where few values
    and few images meet; then as few images as possible lie outside. Of what is left, the nearest is taken.
    With more than `SMALL` cells, "as few as possible" and "nearest" hold for the sums of values one facet
    at a time, and for cells and combinations without a promise: no exchange of two images within a class
    is better.

    The result does not depend on the order of classes, facets or values.
    """
    # With numpy and scipy, which `balancer --help` does not wait for.
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
    """The facets of each cell, in the order the caller has them, and the number of its combination."""
    names = [axis.name for axis in kind.axes]
    number_of = {values: number for number, values in enumerate(kind.combinations)}
    applying = [facet for facet in facets if facet.name in names]
    for values in itertools.product(*(facet.values for facet in applying)):
        pairs = tuple(zip((facet.name for facet in applying), values, strict=True))
        value_of = dict(pairs)
        yield pairs, number_of[tuple(value_of[name] for name in names)]
