"""Costs of a rounding: per image off the exact value, and more per image outside floor and ceiling, where
that is allowed.

Totals weigh most, because users check totals.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction

TOTAL = 100.0
"""A value of a facet, over all classes."""

SUM = 10.0
"""A value of a facet within one class, or over the classes of one kind; a combination over the latter."""

CELL = 1.0

CELL_OUTSIDE = 1000.0
COMBINATION_OUTSIDE = 100.0

TIE = 1e-3
"""Largest weight of an image by the name of its cell: names break ties between equal roundings, not the order
of the input."""


def rising(exact: Fraction) -> float:
    """How much further off the ceiling is than the floor."""
    return float(1 - 2 * (exact % 1))


def tie(*names: str) -> float:
    """A number from 0 to `TIE` that follows from the names alone."""
    digest = hashlib.blake2b("/".join(names).encode(), digest_size=6).digest()
    return TIE * int.from_bytes(digest, "big") / 2**48
