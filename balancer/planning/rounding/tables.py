"""Classes of one kind as a table, with the exact numbers that are to be rounded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

Quotas = dict[str, list[int]]
"""By class, a number for each combination of values."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A facet with its values sorted, and for each class it applies to the exact number of every value."""

    name: str
    values: tuple[str, ...]
    amounts: Mapping[str, tuple[Fraction, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """Classes with the same facets, sorted; the last facet's values vary fastest in their combinations."""

    names: tuple[str, ...]
    axes: tuple[Axis, ...]

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def exact(self, name: str) -> tuple[list[int], int]:
        """The exact quotas of one class, as numerators for every combination and their denominator.

        A quota is the deficit times the shares of its values, a share the amount of the value divided by
        the deficit.
        """
        amounts = [axis.amounts[name] for axis in self.axes]
        deficit = sum(amounts[0])
        denominators = [math.lcm(*(amount.denominator for amount in row)) for row in amounts]
        numerators = [
            [int(amount * denominator) for amount in row]
            for row, denominator in zip(amounts, denominators, strict=True)
        ]
        over = [math.prod(factors) for factors in itertools.product(*numerators)]
        return over, math.prod(denominators) * max(1, int(deficit)) ** (len(amounts) - 1)
