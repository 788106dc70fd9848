"""The run's state machine: which candidate to make next, and when a slot is settled.

No I/O and no clock. A slot climbs the ladder one attempt at a time, so what it ends with is its
lowest passing attempt, whatever the order in which batches come back. Three things can happen to a
candidate that was handed out: it is accepted, it is rejected, or it is lost with the actor that had it
and is made again with the same seed. An accepted one may be revoked later; its slot then climbs on.

A cell of which too few candidates pass is given up: its open slots are short. That follows from the counts of
judged candidates alone, so a restart finds the same; a candidate that was under way and is accepted after
all can bring the cell back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from balancer.cells import Candidate, Cell, Slot
from balancer.scheduling.adaptive import Tally


@dataclass(frozen=True, slots=True)
class Outcome:
    """A judged candidate, as the manifest remembers it. `reason` is None if it was accepted.

    A `void` one counts for nothing: its image is gone, it may pass by now, so it is made again before its
    slot climbs on.
    """

    candidate: Candidate
    reason: str | None
    void: bool = False


@dataclass(slots=True)
class _Queue:
    """Candidates that wait to be made: those of slots this driver has begun, and those of others."""

    again: deque[Candidate] = field(default_factory=deque)
    fresh: deque[Candidate] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.again) + len(self.fresh)

    def pop(self) -> Candidate:
        return (self.again or self.fresh).popleft()

    def drop(self, cell: Cell) -> None:
        for part in (self.again, self.fresh):
            kept = [candidate for candidate in part if candidate.slot.cell != cell]
            part.clear()
            part.extend(kept)


class Schedule:
    """Slots in the order of `quotas`, taken in turns between neighbouring cells of equal rank.

    `quotas` are (cell, quota, rank): lower ranks come first. `attempts` is the height of the ladder,
    `max_candidates` the budget of judged candidates, `max_slots` how many of the open slots to work on.
    Candidates share a batch only if `group_of` is equal for them, such as the guidance of their attempt.
    Cells whose acceptance is surely below `give_up_below` are given up.
    """

    def __init__(
        self,
        quotas: Sequence[tuple[Cell, int, int]],
        *,
        attempts: int,
        max_candidates: int | None = None,
        max_slots: int | None = None,
        history: Iterable[Outcome] = (),
        group_of: Callable[[Candidate], Hashable] = lambda candidate: None,
        give_up_below: float = 0.0,
    ) -> None:
        self.quotas = tuple(quotas)
        self.attempts = attempts
        self.max_candidates = max_candidates
        self.give_up_below = give_up_below
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
        self._void: dict[Slot, set[int]] = {}
        self._reopened: set[Slot] = set()
        self._reasons: dict[Candidate, str] = {}
        self._quota_of = {cell: quota for cell, quota, _ in quotas}
        self._accepted_in: Counter[Cell] = Counter()
        self._judged_in: Counter[Cell] = Counter()
        self._void_in: Counter[Cell] = Counter()
        self._given_up: dict[Cell, None] = {}
        self._group_of = group_of
        self._waiting: dict[Hashable, _Queue] = {}
        self._reached: Counter[Cell] = Counter()
        for outcome in history:
            self._count(outcome)
        for cell in self._quota_of:
            self._reconsider(cell)
        self._fresh = self._fresh_slots(max_slots)

    # ---- handing out -------------------------------------------------------------------------

    def next_batch(self, size: int) -> list[Candidate]:
        """Up to `size` candidates of one group to make now: slots begun before come first, to settle them
        early. A group that cannot fill the batch waits while another one can."""
        if self.max_candidates is not None:
            size = min(size, self.max_candidates - self.candidates - len(self.in_flight))
        queue = self._queue_for(size)
        if queue is None:
            return []
        batch = [queue.pop() for _ in range(min(size, len(queue)))]
        self.in_flight.update(batch)
        return batch

    def can_fill(self, size: int) -> bool:
        """Whether there are candidates for a whole batch."""
        queue = self._queue_for(size)
        return queue is not None and len(queue) >= size

    def claim(self, candidate: Candidate) -> bool:
        """Hand out this candidate, of a slot begun before, if it is waiting; False if it is not."""
        queue = self._waiting.get(self._group_of(candidate))
        if queue is None or candidate not in queue.again:
            return False
        queue.again.remove(candidate)
        self.in_flight.add(candidate)
        return True

    def reason_before(self, candidate: Candidate) -> str | None:
        """Why the attempt before was rejected; None for a first attempt."""
        return self._reasons.get(Candidate(candidate.slot, candidate.attempt - 1))

    def _queue_for(self, size: int) -> _Queue | None:
        """The group that has waited longest of those that fill a batch, else of all; None if none waits."""
        if size <= 0:
            return None
        self._waiting = {group: queue for group, queue in self._waiting.items() if queue}
        while True:
            for queue in self._waiting.values():
                if len(queue) >= size:
                    return queue
            if not self._look_ahead():
                return next(iter(self._waiting.values()), None)

    def _look_ahead(self) -> bool:
        """Put the next slot that was not begun yet in its queue; False if there is none."""
        slot = next(self._fresh, None)
        if slot is None:
            return False
        candidate = self._next_attempt(slot)
        self._queue_of(candidate).fresh.append(candidate)
        return True

    def _queue_of(self, candidate: Candidate) -> _Queue:
        return self._waiting.setdefault(self._group_of(candidate), _Queue())

    def _next_attempt(self, slot: Slot) -> Candidate:
        return Candidate(slot, self._next_number(slot))

    def _next_number(self, slot: Slot) -> int:
        """The lowest attempt without a verdict that counts; one beyond the ladder if all have one."""
        return min(self._void.get(slot, ()), default=self._tried.get(slot, 0) + 1)

    def _fresh_slots(self, max_slots: int | None) -> Iterator[Slot]:
        taken = 0
        for slot in _slots_in_turn(self.quotas):
            open_slot = not self._is_settled(slot) and slot not in self._reopened
            if open_slot and taken == max_slots:
                return
            self._reached[slot.cell] = slot.index + 1
            if open_slot:
                taken += 1
                yield slot

    # ---- what became of them -----------------------------------------------------------------

    def judged(self, outcome: Outcome) -> None:
        """Take in a verdict; a rejected slot climbs to its next rung, or is short if there is none."""
        self.in_flight.discard(outcome.candidate)
        if not self._count(outcome):
            return
        self._reconsider(outcome.candidate.slot.cell)
        self._climb(outcome.candidate.slot)

    def reopen(self, candidate: Candidate, reason: str) -> None:
        """Revoke an accepted candidate: it counts as rejected, and its slot climbs on, or is short."""
        slot = candidate.slot
        if self.accepted.get(slot) != candidate.attempt:
            return  # revoked before
        del self.accepted[slot]
        self.accepted_by_class[slot.cell.class_name] -= 1
        self._accepted_in[slot.cell] -= 1
        self.rejected_by_reason[reason] += 1
        self._reasons[candidate] = reason
        self._reopened.add(slot)
        self._settle_if_exhausted(slot)
        self._reconsider(slot.cell)
        self._climb(slot)

    def _climb(self, slot: Slot) -> None:
        if self._is_settled(slot):
            return
        if slot.cell in self._given_up:
            self._settle_short(slot)
        else:
            self._queue_of(candidate := self._next_attempt(slot)).again.append(candidate)

    def lost(self, candidates: Iterable[Candidate]) -> None:
        """Candidates whose actor died: made again, same seed, before anything new."""
        for candidate in candidates:
            if candidate in self.in_flight:
                self.in_flight.discard(candidate)
                if candidate.slot.cell in self._given_up:
                    self._settle_short(candidate.slot)
                else:
                    self._queue_of(candidate).again.appendleft(candidate)

    def _count(self, outcome: Outcome) -> bool:
        """False if this very verdict was counted before."""
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
        self.candidates += 1
        self._judged_in[slot.cell] += 1
        if outcome.reason is None:
            self.accepted[slot] = attempt
            self._accepted_in[slot.cell] += 1
            self.accepted_by_class[slot.cell.class_name] += 1
        else:
            self.rejected_by_reason[outcome.reason] += 1
            self._reasons[outcome.candidate] = outcome.reason
            self._settle_if_exhausted(slot)
        return True

    def _settle_if_exhausted(self, slot: Slot) -> None:
        if self._is_exhausted(slot) and not self._is_settled(slot):
            self._settle_short(slot)

    def _settle_short(self, slot: Slot) -> None:
        self.short.add(slot)
        self.short_by_class[slot.cell.class_name] += 1

    def _is_exhausted(self, slot: Slot) -> bool:
        return self._next_number(slot) > self.attempts

    def _is_settled(self, slot: Slot) -> bool:
        return slot in self.accepted or slot in self.short

    # ---- cells that are given up --------------------------------------------------------------

    def _reconsider(self, cell: Cell) -> None:
        hopeless = self.tally(cell).is_below(self.give_up_below)
        if hopeless and cell not in self._given_up:
            self._give_up(cell)
        elif not hopeless and cell in self._given_up:
            self._take_up_again(cell)

    def _give_up(self, cell: Cell) -> None:
        """All open slots are short, but for those whose candidate is under way."""
        self._given_up[cell] = None
        for queue in self._waiting.values():
            queue.drop(cell)
        under_way = {candidate.slot for candidate in self.in_flight}
        for slot in self._slots_of(cell):
            if slot not in under_way and not self._is_settled(slot):
                self._settle_short(slot)

    def _take_up_again(self, cell: Cell) -> None:
        del self._given_up[cell]
        for slot in self._slots_of(cell):
            if slot not in self.short or self._is_exhausted(slot):
                continue
            self.short.discard(slot)
            self.short_by_class[cell.class_name] -= 1
            if slot.index < self._reached[cell] or slot in self._reopened:  # the others come in their turn
                self._climb(slot)

    def _slots_of(self, cell: Cell) -> Iterator[Slot]:
        return (Slot(cell, index) for index in range(self._quota_of[cell]))

    def tally(self, cell: Cell) -> Tally:
        """The candidates of a cell, and how many of them passed."""
        passing = self._void_in[cell]  # by now: so says the verdict that made them void
        return Tally(self._accepted_in[cell] + passing, self._judged_in[cell] + passing)

    @property
    def given_up(self) -> Mapping[Cell, Tally]:
        """Cells whose open slots are short because too few of their candidates pass."""
        return {cell: self.tally(cell) for cell in self._given_up}

    # ---- where the run stands ----------------------------------------------------------------

    @property
    def budget_spent(self) -> bool:
        if self.max_candidates is None:
            return False
        return self.candidates + len(self.in_flight) >= self.max_candidates

    @property
    def done(self) -> bool:
        """Nothing is under way and nothing more will be handed out."""
        return not self.in_flight and (self.budget_spent or self._queue_for(1) is None)

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
