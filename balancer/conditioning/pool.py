"""Draw a parent for each candidate.

The draw depends on the run's seed, the slot, the attempt and the pool alone, so neither batches nor a restart
change it. It is rendezvous hashing: an image that joins or leaves the pool changes the draws that it wins or
won, and no other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.cells import Candidate, Cell

if TYPE_CHECKING:
    from balancer.config.schema import Config

LEAST_CHOICE = 5
"""Images that match a cell less well are drawn too until there are this many: one alone would be the parent
of every image in the cell."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A real image; `facets` are the values that the metadata state."""

    id: str
    class_name: str
    facets: Mapping[str, str]
    picture: str


class ParentPool:
    """The images to draw from. One picture in several files of a class counts once."""

    def __init__(self, parents: Sequence[Parent], config: Config) -> None:
        once: dict[tuple[str, str], Parent] = {}
        for parent in sorted(parents, key=lambda one: one.id):
            once.setdefault((parent.class_name, parent.picture), parent)
        self.parents = tuple(once.values())
        self._seed = config.seed
        self._classes = tuple(config.classes)
        self._any_class = config.generation.contexts == "dataset"
        self._keys = np.array([_number(f"{name}\n{picture}") for name, picture in once], np.uint64)
        self._choices: dict[Cell, NDArray[np.intp]] = {}

    def draw(self, candidate: Candidate) -> Parent | None:
        """None if the class of the candidate has no parents: it is made from text alone."""
        choice = self._choice(candidate.slot.cell)
        if not len(choice):
            return None
        own = np.uint64(_number(f"{self._seed}\n{candidate.slot.key}\n{candidate.attempt}"))
        return self.parents[int(choice[np.argmax(_mixed(self._keys[choice] ^ own))])]

    def is_conditioned(self, cell: Cell) -> bool:
        return len(self._choice(cell)) > 0

    def by_picture(self) -> dict[str, str]:
        """The ids by the hashes of the pixels."""
        return {parent.picture: parent.id for parent in self.parents}

    def describe(self) -> dict[str, Any]:
        """For run.json: how many images there are, in each class, and a hash over all."""
        by_class = Counter(parent.class_name for parent in self.parents)
        lines = [[one.id, one.class_name, sorted(one.facets.items()), one.picture] for one in self.parents]
        return {
            "count": len(self.parents),
            "sha256": hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
            "by_class": {name: by_class[name] for name in self._classes},
        }

    def _choice(self, cell: Cell) -> NDArray[np.intp]:
        if cell not in self._choices:
            self._choices[cell] = self._choose(cell)
        return self._choices[cell]

    def _choose(self, cell: Cell) -> NDArray[np.intp]:
        """Those whose facets match the cell best: first those that state no other value."""
        wanted = dict(cell.facets)
        ranks: dict[tuple[int, int], list[int]] = {}
        for place, parent in enumerate(self.parents):
            if self._any_class or parent.class_name == cell.class_name:
                matches = [
                    parent.facets[name] == value for name, value in wanted.items() if name in parent.facets
                ]
                ranks.setdefault((matches.count(False), -matches.count(True)), []).append(place)
        chosen: list[int] = []
        for rank in sorted(ranks):
            if len(chosen) >= LEAST_CHOICE:
                break
            chosen += ranks[rank]
        return np.array(sorted(chosen), np.intp)


def _number(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"balancer.parent")
    return int.from_bytes(digest.digest(), "big")


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit depends on every other."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
