"""Tables of exact numbers to round: one per kind of classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

Quotas = dict[str, list[int]]
"""For each class, a number per combination of values."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A facet with sorted values, and the exact number of each value for every class it applies to."""

    name: str
    values: tuple[str, ...]
    amounts: Mapping[str, tuple[Fraction, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """Sorted classes with the same facets. The last facet varies fastest in `combinations`."""

    names: tuple[str, ...]
    axes: tuple[Axis, ...]

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def exact(self, name: str) -> tuple[list[int], int]:
        """The exact quotas of one class: a numerator per combination, and the common denominator.

        A quota is the deficit times the shares of its values. A share is the amount of the value divided by
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
