"""The vocabulary of a run: facets, cells, slots, candidates, and the seed of each candidate.

A cell is one class with one value for each facet that applies to it. A slot is one image wanted in a
cell. A candidate is one attempt at a slot. The manifest writes them as keys:

    cell       burnt/dim_ambient/severely_burnt        basic/dim_ambient
    slot       burnt/dim_ambient/severely_burnt/0001
    candidate  burnt/dim_ambient/severely_burnt/0001-1
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

CLASS_PROPERTY = "class"
"""The property every candidate is judged on. Other properties have the names of their facets."""


@dataclass(frozen=True, slots=True)
class Facet:
    """A named axis besides the class. `shares` sum to 1, in the order of `values`."""

    name: str
    values: tuple[str, ...]
    shares: tuple[Fraction, ...]
    classes: frozenset[str]

    def applies_to(self, class_name: str) -> bool:
        return class_name in self.classes


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """`facets` holds (facet name, value) pairs of the facets that apply, in the config's order."""

    class_name: str
    facets: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        return "/".join((self.class_name, *(value for _, value in self.facets)))

    def value(self, facet: str) -> str | None:
        return next((value for name, value in self.facets if name == facet), None)

    @property
    def properties(self) -> tuple[tuple[str, str], ...]:
        """(property, value) pairs that a candidate of this cell must show, the class first."""
        return ((CLASS_PROPERTY, self.class_name), *self.facets)


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    cell: Cell
    index: int

    @property
    def key(self) -> str:
        return f"{self.cell.key}/{self.index:04d}"


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """Attempts count from 1."""

    slot: Slot
    attempt: int

    @property
    def id(self) -> str:
        return f"{self.slot.key}-{self.attempt}"

    def seed(self, run_seed: int) -> int:
        """An unsigned 64-bit number that depends only on the run's seed, the slot and the attempt."""
        text = f"{run_seed}\n{self.slot.key}\n{self.attempt}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def enumerate_cells(class_name: str, facets: Sequence[Facet]) -> Iterator[Cell]:
    """Every cell of one class; the last facet varies fastest."""
    applying = [facet for facet in facets if facet.applies_to(class_name)]
    for values in itertools.product(*(facet.values for facet in applying)):
        names = (facet.name for facet in applying)
        yield Cell(class_name, tuple(zip(names, values, strict=True)))
