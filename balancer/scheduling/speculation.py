"""Speculation: while the verdict on a slot is pending, an otherwise idle generator makes its next attempts.

What is accepted does not change by it. The verdict on an attempt made ahead is held until all below it are
known to have failed, and dropped, with its image, if one of them passes. So to the schedule every slot still
makes one attempt after the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from balancer.cells import Candidate, Slot

T = TypeVar("T")

_Option = tuple[int, float, Candidate]
"""Attempts of the slot that are made ahead already, how likely its attempts pass, and the next one."""


class UnderWay:
    """Said of an attempt that is being made, in the place of what came of it."""


UNDER_WAY = UnderWay()


@dataclass(slots=True)
class Speculation(Generic[T]):
    """`attempts` is the height of the ladder; `may_follow` says whether an attempt of that number can be made
    without knowing why the one before it failed. T is whatever the caller holds of an attempt made."""

    attempts: int
    may_follow: Callable[[int], bool] = lambda attempt: True
    started: int = 0
    """Attempts made ahead so far, also those that turned out not to be needed."""
    used: int = 0
    """Those of them whose turn came."""
    _made: dict[Slot, dict[int, T | UnderWay]] = field(default_factory=dict)
    _passed: dict[Slot, int] = field(default_factory=dict)

    def choose(
        self, undecided: Iterable[Candidate], count: int, likelihood: Callable[[Candidate], float]
    ) -> list[Candidate]:
        """Up to `count` attempts to make ahead of those that are `undecided`: of slots with the fewest such
        attempts first, and of these the one whose attempts are the least likely to pass."""
        options = [
            option
            for candidate in undecided
            if candidate.slot not in self._passed
            for option in self._options(candidate, likelihood(candidate))
        ]
        heapq.heapify(options)
        chosen: list[Candidate] = []
        while options and len(chosen) < count:
            already, likely, candidate = heapq.heappop(options)
            chosen.append(candidate)
            for option in self._following(already + 1, likely, candidate):
                heapq.heappush(options, option)
        return chosen

    def _options(self, candidate: Candidate, likely: float) -> Iterator[_Option]:
        made = self._made.get(candidate.slot, {})
        highest = Candidate(candidate.slot, max(made, default=candidate.attempt))
        return self._following(len(made), likely, highest)

    def _following(self, already: int, likely: float, candidate: Candidate) -> Iterator[_Option]:
        attempt = candidate.attempt + 1
        if attempt <= self.attempts and self.may_follow(attempt):
            yield already, likely, Candidate(candidate.slot, attempt)

    def start(self, candidates: Iterable[Candidate]) -> None:
        for candidate in candidates:
            self._made.setdefault(candidate.slot, {})[candidate.attempt] = UNDER_WAY
            self.started += 1

    def hold(self, candidate: Candidate, came: T) -> None:
        """Keep what came of an attempt until its turn; it is dropped if that cannot come any more."""
        made = self._made.get(candidate.slot, {})
        if candidate.attempt in made:
            made[candidate.attempt] = came

    def claim(self, candidate: Candidate) -> T | UnderWay | None:
        """What came of an attempt whose turn it is now; None if it was not made ahead."""
        found = self._made.get(candidate.slot, {}).pop(candidate.attempt, None)
        self.used += found is not None
        return found

    def lost(self, candidates: Iterable[Candidate]) -> None:
        """Attempts whose images are gone: each is made again in its turn."""
        for candidate in candidates:
            self._made.get(candidate.slot, {}).pop(candidate.attempt, None)
            if self._passed.get(candidate.slot) == candidate.attempt:
                del self._passed[candidate.slot]

    def passed(self, candidate: Candidate) -> None:
        """An attempt whose turn it was has passed: nothing more is made ahead of it, what was is dropped."""
        self._passed[candidate.slot] = candidate.attempt
        self._made.pop(candidate.slot, None)

    def has_passed(self, slot: Slot) -> bool:
        return slot in self._passed

    def discard(self, slot: Slot) -> None:
        """The slot is settled for good."""
        self._passed.pop(slot, None)
        self._made.pop(slot, None)
