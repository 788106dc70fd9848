"""Speculation: while the verdict on a slot is pending, an otherwise idle generator makes its next attempts.

It does not change what is accepted. The verdict on an attempt made ahead is held until all below it are known
to have failed, and dropped if one of them passes, so every slot still counts one attempt after the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from balancer.cells import Candidate, Slot
from balancer.scheduling.ledger import Outcome

_Option = tuple[int, float, Candidate]
"""Attempts of the slot that are made ahead already, how likely its attempts pass, and the next one."""


@dataclass(slots=True)
class Speculation:
    """`attempts` is the height of the ladder; `may_be_ahead` says whether an attempt of that number can be
    made without knowing why the one before it failed."""

    attempts: int
    may_be_ahead: Callable[[int], bool] = lambda attempt: True
    started: int = 0
    """Attempts made ahead so far, also those that turned out not to be needed."""
    used: int = 0
    """Those of them whose turn came."""
    _ahead: dict[Slot, dict[int, Outcome | None]] = field(default_factory=dict)
    """By attempt, the verdict that is held; None while it is being made."""
    _passed: dict[Slot, int] = field(default_factory=dict)
    _is_possible: bool = field(init=False)

    def __post_init__(self) -> None:
        self._is_possible = any(map(self.may_be_ahead, range(2, self.attempts + 1)))

    @property
    def unused(self) -> int:
        return self.started - self.used

    def choose(
        self, undecided: Iterable[Candidate], count: int, likelihood: Callable[[Candidate], float]
    ) -> list[Candidate]:
        """Up to `count` attempts to make ahead of those that are `undecided`: of slots with the fewest such
        attempts first, and of these the one whose attempts are the least likely to pass."""
        if not self._is_possible:
            return []  # spares a pass over all that are undecided
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
        ahead = self._ahead.get(candidate.slot, {})
        highest = Candidate(candidate.slot, max(ahead, default=candidate.attempt))
        return self._following(len(ahead), likely, highest)

    def _following(self, already: int, likely: float, candidate: Candidate) -> Iterator[_Option]:
        attempt = candidate.attempt + 1
        if attempt <= self.attempts and self.may_be_ahead(attempt):
            yield already, likely, Candidate(candidate.slot, attempt)

    def start(self, candidates: list[Candidate]) -> list[Candidate]:
        for candidate in candidates:
            self._ahead.setdefault(candidate.slot, {})[candidate.attempt] = None
        self.started += len(candidates)
        return candidates

    def is_ahead(self, candidate: Candidate) -> bool:
        return candidate.attempt in self._ahead.get(candidate.slot, {})

    def hold(self, verdict: Outcome) -> None:
        """Keep the verdict on an attempt until its turn; it is dropped if that cannot come any more."""
        if self.is_ahead(verdict.candidate):
            self._ahead[verdict.candidate.slot][verdict.candidate.attempt] = verdict

    def claim(self, candidate: Candidate) -> Outcome | None:
        """It is this attempt's turn: the verdict on it, or None if it is still being made."""
        self.used += 1
        return self._ahead[candidate.slot].pop(candidate.attempt)

    def lost(self, candidate: Candidate) -> None:
        """An attempt whose image is gone is made again in its turn."""
        self._ahead.get(candidate.slot, {}).pop(candidate.attempt, None)
        if self._passed.get(candidate.slot) == candidate.attempt:
            del self._passed[candidate.slot]

    def passed(self, candidate: Candidate) -> None:
        """An attempt whose turn it was has passed: nothing more is made ahead of it, what was is dropped."""
        self._passed[candidate.slot] = candidate.attempt
        self._ahead.pop(candidate.slot, None)

    def has_passed(self, slot: Slot) -> bool:
        return slot in self._passed

    def discard(self, slot: Slot) -> None:
        """The slot is settled for good."""
        self._passed.pop(slot, None)
        self._ahead.pop(slot, None)
