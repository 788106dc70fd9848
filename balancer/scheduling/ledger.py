"""The verdicts that count, by slot, cell, class and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from balancer.cells import Candidate, Cell, Slot
from balancer.scheduling.adaptive import Tally


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict on a candidate. `reason` is None if it passed; `evidence` is whatever the caller wants back.

    A `void` verdict, which only the manifest holds, counts for nothing: the image is gone and might pass by
    now, so it is made again before its slot climbs on. One `taken_over` from another run settles its slot,
    costs no budget, and says nothing about acceptance.
    """

    candidate: Candidate
    reason: str | None
    void: bool = False
    evidence: Any = None
    taken_over: bool = False


@dataclass(slots=True)
class Ledger:
    """A slot is settled when it is in `accepted`, with its attempt, or in `short`: of its `attempts` none
    passed, or its cell was given up."""

    attempts: int
    accepted: dict[Slot, int] = field(default_factory=dict)
    short: set[Slot] = field(default_factory=set)
    accepted_by_class: Counter[str] = field(default_factory=Counter)
    short_by_class: Counter[str] = field(default_factory=Counter)
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    _tried: dict[Slot, int] = field(default_factory=dict)
    _void: dict[Slot, set[int]] = field(default_factory=dict)
    _reasons: dict[Candidate, str] = field(default_factory=dict)
    _accepted_in: Counter[Cell] = field(default_factory=Counter)
    _judged_in: Counter[Cell] = field(default_factory=Counter)
    _void_in: Counter[Cell] = field(default_factory=Counter)
    _taken_over: set[Candidate] = field(default_factory=set)

    def count(self, outcome: Outcome) -> bool:
        """False if this verdict was counted before."""
        slot, attempt = outcome.candidate.slot, outcome.candidate.attempt
        tried, void = self._tried.get(slot, 0), self._void.get(slot, set())
        if attempt <= tried and attempt not in void:
            return False
        self._tried[slot] = max(attempt, tried)
        if outcome.void:
            self._void.setdefault(slot, set()).add(attempt)
            self._void_in[slot.cell] += 1
            return True
        if attempt in void:
            void.discard(attempt)
            self._void_in[slot.cell] -= 1
        if outcome.taken_over:
            self._taken_over.add(outcome.candidate)
        else:
            self.candidates += 1
            self._judged_in[slot.cell] += 1
        if outcome.reason is None:
            self._add_accepted(outcome.candidate, 1)
            self.accepted[slot] = attempt
        else:
            self._reject(outcome.candidate, outcome.reason)
        return True

    def count_earlier(self, history: Iterable[Outcome], quotas: Mapping[Cell, int]) -> None:
        """Candidates of a plan with more slots cost what they cost, and settle nothing."""
        for outcome in history:
            slot = outcome.candidate.slot
            if slot.index < quotas[slot.cell]:
                self.count(outcome)
            else:
                self.candidates += not (outcome.void or outcome.taken_over)

    def revoke(self, candidate: Candidate, reason: str) -> bool:
        """Count an accepted candidate as rejected; False if it is not accepted."""
        if self.accepted.get(candidate.slot) != candidate.attempt:
            return False
        del self.accepted[candidate.slot]
        self._add_accepted(candidate, -1)
        self._reject(candidate, reason)
        return True

    def _add_accepted(self, candidate: Candidate, number: int) -> None:
        cell = candidate.slot.cell
        if candidate not in self._taken_over:
            self._accepted_in[cell] += number
        self.accepted_by_class[cell.class_name] += number

    def _reject(self, candidate: Candidate, reason: str) -> None:
        self.rejected_by_reason[reason] += 1
        self._reasons[candidate] = reason
        if self._is_exhausted(candidate.slot):
            self.give_up([candidate.slot])

    def give_up(self, slots: Iterable[Slot]) -> None:
        """Those that are not settled are short from now on."""
        for slot in slots:
            if not self.is_settled(slot):
                self.short.add(slot)
                self.short_by_class[slot.cell.class_name] += 1

    def take_up_again(self, slots: Iterable[Slot]) -> Iterator[Slot]:
        """Those that are short and have attempts left, which are open from now on."""
        for slot in slots:
            if slot in self.short and not self._is_exhausted(slot):
                self.short.discard(slot)
                self.short_by_class[slot.cell.class_name] -= 1
                yield slot

    def is_settled(self, slot: Slot) -> bool:
        return slot in self.accepted or slot in self.short

    def _is_exhausted(self, slot: Slot) -> bool:
        return self.next_attempt(slot).attempt > self.attempts

    def next_attempt(self, slot: Slot) -> Candidate:
        """The lowest attempt without a verdict that counts; one beyond the ladder if all have one."""
        return Candidate(slot, min(self._void.get(slot, ()), default=self._tried.get(slot, 0) + 1))

    def reason_before(self, candidate: Candidate) -> str | None:
        """Why the previous attempt was rejected; None for a first attempt."""
        return self._reasons.get(Candidate(candidate.slot, candidate.attempt - 1))

    def tally(self, cell: Cell) -> Tally:
        """The candidates of a cell, and how many of them passed."""
        passing = self._void_in[cell]  # the verdict that made them void says that they pass by now
        return Tally(self._accepted_in[cell] + passing, self._judged_in[cell] + passing)

    def likelihood(self, candidate: Candidate) -> float:
        """That it passes, by those of its cell; a half before the first of them (Laplace's rule)."""
        tally = self.tally(candidate.slot.cell)
        return (1 + tally.accepted) / (2 + tally.candidates)
