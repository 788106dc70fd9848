"""The run's state machine: which candidate to make next, and when a slot is settled.

No I/O and no clock. A slot climbs the ladder one attempt at a time, so what it ends with is its
lowest passing attempt, whatever the order in which batches come back. Three things can happen to a
candidate that was handed out: it is accepted, it is rejected, or it is lost with the actor that had it
and is made again with the same seed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from balancer.cells import Candidate, Cell, Slot


@dataclass(frozen=True, slots=True)
class Outcome:
    """A judged candidate, as the manifest remembers it. `reason` is None if it was accepted."""

    candidate: Candidate
    reason: str | None


class Schedule:
    """Slots in the order of `quotas`, taken in turns between neighbouring cells of equal rank.

    `quotas` are (cell, quota, rank): lower ranks come first. `attempts` is the height of the ladder,
    `max_candidates` the budget of judged candidates, `max_slots` how many of the open slots to work on.
    """

    def __init__(
        self,
        quotas: Sequence[tuple[Cell, int, int]],
        *,
        attempts: int,
        max_candidates: int | None = None,
        max_slots: int | None = None,
        history: Iterable[Outcome] = (),
    ) -> None:
        self.quotas = tuple(quotas)
        self.attempts = attempts
        self.max_candidates = max_candidates
        self.wanted = sum(quota for _, quota, _ in quotas)
        self.wanted_by_class: Counter[str] = Counter()
        for cell, quota, _ in quotas:
            self.wanted_by_class[cell.class_name] += quota
        self.accepted: dict[Slot, int] = {}
        self.short: set[Slot] = set()
        self.accepted_by_class: Counter[str] = Counter()
        self.short_by_class: Counter[str] = Counter()
        self.rejected_by_reason: Counter[str] = Counter()
        self.candidates = 0
        self.in_flight: set[Candidate] = set()
        self._tried: dict[Slot, int] = {}
        self._again: deque[Candidate] = deque()
        for outcome in history:
            self._count(outcome)
        self._fresh = self._fresh_slots(max_slots)
        self._next_fresh = next(self._fresh, None)

    # ---- handing out -------------------------------------------------------------------------

    def next_batch(self, size: int) -> list[Candidate]:
        """Up to `size` candidates to make now: slots begun before come first, to settle them early."""
        batch: list[Candidate] = []
        while len(batch) < size and not self.budget_spent:
            candidate = self._next_candidate()
            if candidate is None:
                break
            self.in_flight.add(candidate)
            batch.append(candidate)
        return batch

    def _next_candidate(self) -> Candidate | None:
        if self._again:
            return self._again.popleft()
        slot, self._next_fresh = self._next_fresh, next(self._fresh, None)
        return None if slot is None else Candidate(slot, self._tried.get(slot, 0) + 1)

    def _fresh_slots(self, max_slots: int | None) -> Iterator[Slot]:
        taken = 0
        for slot in _slots_in_turn(self.quotas):
            if self._is_settled(slot):
                continue
            if taken == max_slots:
                return
            taken += 1
            yield slot

    # ---- what became of them -----------------------------------------------------------------

    def judged(self, outcome: Outcome) -> None:
        """Take in a verdict; a rejected slot climbs to its next rung, or is short if there is none."""
        self.in_flight.discard(outcome.candidate)
        if not self._count(outcome):
            return
        slot = outcome.candidate.slot
        if not self._is_settled(slot):
            self._again.append(Candidate(slot, outcome.candidate.attempt + 1))

    def lost(self, candidates: Iterable[Candidate]) -> None:
        """Candidates whose actor died: made again, same seed, before anything new."""
        for candidate in candidates:
            if candidate in self.in_flight:
                self.in_flight.discard(candidate)
                self._again.appendleft(candidate)

    def _count(self, outcome: Outcome) -> bool:
        """False if this very verdict was counted before."""
        slot, attempt = outcome.candidate.slot, outcome.candidate.attempt
        if attempt <= self._tried.get(slot, 0):
            return False
        self._tried[slot] = attempt
        self.candidates += 1
        if outcome.reason is None:
            self.accepted[slot] = attempt
            self.accepted_by_class[slot.cell.class_name] += 1
            return True
        self.rejected_by_reason[outcome.reason] += 1
        if attempt >= self.attempts:
            self.short.add(slot)
            self.short_by_class[slot.cell.class_name] += 1
        return True

    def _is_settled(self, slot: Slot) -> bool:
        return slot in self.accepted or slot in self.short

    # ---- where the run stands ----------------------------------------------------------------

    @property
    def budget_spent(self) -> bool:
        if self.max_candidates is None:
            return False
        return self.candidates + len(self.in_flight) >= self.max_candidates

    @property
    def done(self) -> bool:
        """Nothing is under way and nothing more will be handed out."""
        exhausted = self.budget_spent or (not self._again and self._next_fresh is None)
        return exhausted and not self.in_flight

    @property
    def open(self) -> int:
        """Slots neither accepted nor short."""
        return self.wanted - len(self.accepted) - len(self.short)


def _slots_in_turn(quotas: Sequence[tuple[Cell, int, int]]) -> Iterator[Slot]:
    """Rank by rank, the first slot of each cell, then the second of each: batches mix cells."""
    for rank in sorted({rank for _, _, rank in quotas}):
        cells = [(cell, quota) for cell, quota, cell_rank in quotas if cell_rank == rank]
        for index in range(max(quota for _, quota in cells)):
            yield from (Slot(cell, index) for cell, quota in cells if index < quota)
