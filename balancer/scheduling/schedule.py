"""The run's state machine: which candidate to make next, and when a slot is settled.

No I/O and no clock. A slot climbs the ladder one attempt at a time, so it ends with its lowest passing
attempt, in whatever order batches come back. Attempts may be made ahead while the one before has no verdict
yet; their own verdicts wait until it is their turn, and are dropped if a lower attempt passes.

A candidate that was handed out is rejected, or passes and is accepted once its image is committed, or is lost
with its actor and made again with the same seed. An accepted one may be revoked later; its slot climbs on.

A cell of which too few candidates pass is given up: its open slots are short. That follows from the counts of
judged candidates alone, so a restart finds the same; a candidate under way that is accepted after all can
bring the cell back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from balancer.cells import Candidate, Cell, Slot
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.ledger import Ledger, Outcome
from balancer.scheduling.queues import Queues
from balancer.scheduling.speculation import Speculation

T = TypeVar("T")

Quota = tuple[Cell, int, int]
"""A cell, how many images it lacks, and its rank: lower ranks come first."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A verdict that counts, and what was counted just before it: of its cell, and for its reason."""

    outcome: Outcome
    tally_before: Tally
    same_reason_before: int


class Schedule:
    """Slots in the order of `quotas`, taken in turns between neighbouring cells of equal rank.

    `attempts` is the height of the ladder, `max_candidates` the budget of judged candidates, `max_slots` how
    many of the open slots to work on. Candidates share a batch only if `group_of` is equal for them, such as
    the guidance of their attempt. `may_be_ahead` says whether an attempt of that number can be made before
    the verdict on the one below. Cells whose acceptance is surely below `give_up_below` are given up.
    """

    def __init__(
        self,
        quotas: Sequence[Quota],
        *,
        attempts: int,
        max_candidates: int | None = None,
        max_slots: int | None = None,
        history: Iterable[Outcome] = (),
        group_of: Callable[[Candidate], Hashable] = lambda candidate: None,
        may_be_ahead: Callable[[int], bool] = lambda attempt: False,
        give_up_below: float = 0.0,
    ) -> None:
        self.quotas = tuple(quotas)
        self.attempts = attempts
        self.max_candidates = max_candidates
        self.give_up_below = give_up_below
        self.wanted_by_class = by_class(quotas)
        self.wanted = self.wanted_by_class.total()
        self.in_flight: set[Candidate] = set()
        self.speculation = Speculation(attempts, may_be_ahead)
        self._ledger = ledger = Ledger(attempts)
        self.accepted, self.accepted_by_class = ledger.accepted, ledger.accepted_by_class
        self.short, self.short_by_class = ledger.short, ledger.short_by_class
        self.rejected_by_reason = ledger.rejected_by_reason
        self.reason_before, self.tally = ledger.reason_before, ledger.tally
        self._group_of = group_of
        self._queues = Queues(group_of, self._first_attempts(max_slots))
        self._quota_of = {cell: quota for cell, quota, _ in quotas}
        self._given_up: dict[Cell, None] = {}
        self._reached: Counter[Cell] = Counter()
        self._reopened: set[Slot] = set()
        count_all(history, ledger, self._quota_of)
        for cell in self._quota_of:
            self._reconsider(cell)

    # ---- handing out -------------------------------------------------------------------------

    def next_batch(self, size: int) -> list[Candidate]:
        """Up to `size` candidates of one group to make now; empty if none has its turn.

        A group that cannot fill the batch waits while another one can. Attempts ahead take the places that
        are left, which cost a generator nothing.
        """
        affordable = self._affordable(size)
        queue = self._queues.find(affordable)
        if queue is None:
            return []
        batch = queue.take(affordable)
        self.in_flight.update(batch)
        if len(batch) < size:
            group = self._group_of(batch[0])
            chosen = self._choose_ahead(size - len(batch))
            batch += self.speculation.start([one for one in chosen if self._group_of(one) == group])
        return batch

    def batches_ahead(self, size: int, count: int) -> list[list[Candidate]]:
        """Up to `count` batches of attempts ahead, for generators that would stand idle."""
        batches = in_batches(self._choose_ahead(size * count), self._group_of, size)
        return [self.speculation.start(batch) for batch in batches[:count]]

    def can_fill(self, size: int) -> bool:
        queue = self._queues.find(size)
        return queue is not None and len(queue) >= size

    def _choose_ahead(self, count: int) -> list[Candidate]:
        """No attempts if they could take from the budget what others may come to need."""
        worst_case = self.candidates + self.open * self.attempts + self.speculation.unused
        if self.max_candidates is not None and worst_case >= self.max_candidates:
            return []
        return self.speculation.choose(self.in_flight, count, self._ledger.likelihood)

    def _first_attempts(self, max_slots: int | None) -> Iterator[Candidate]:
        """The next attempts of slots that this driver has not begun yet."""
        taken = 0
        for slot in slots_in_turn(self.quotas):
            is_open = not self._ledger.is_settled(slot) and slot not in self._reopened
            if is_open and taken == max_slots:
                return
            self._reached[slot.cell] = slot.index + 1
            if is_open:
                taken += 1
                yield self._ledger.next_attempt(slot)

    # ---- what became of them -----------------------------------------------------------------

    def judged(self, outcome: Outcome) -> list[Counted]:
        """Take in a verdict; returns those that count now: this one, if its candidate has its turn, and those
        held on later attempts. A rejected slot climbs, or is short; what passed is accepted by `accept`."""
        slot = outcome.candidate.slot
        if outcome.candidate not in self.in_flight:
            self.speculation.hold(outcome)
            return []
        counted: list[Counted] = []
        verdict: Outcome | None = outcome
        while verdict is not None and not self.speculation.has_passed(slot):
            same_reason = self.rejected_by_reason[verdict.reason or ""]
            counted.append(Counted(verdict, self.tally(slot.cell), same_reason))
            if verdict.reason is None:
                self.speculation.passed(verdict.candidate)
            else:
                self._settle(verdict)
                verdict = self._held_verdict(Candidate(slot, verdict.candidate.attempt + 1))
        return counted

    def _held_verdict(self, candidate: Candidate) -> Outcome | None:
        """The verdict on an attempt whose turn it is now, if it was made ahead and has one."""
        if self.speculation.is_ahead(candidate):
            verdict = self.speculation.claim(candidate)
            if self._queues.claim(candidate):
                self.in_flight.add(candidate)
                return verdict
        return None

    def accept(self, candidate: Candidate) -> None:
        """It passed, and its image is committed."""
        self._settle(Outcome(candidate, None))
        self.speculation.discard(candidate.slot)

    def reopen(self, candidate: Candidate, reason: str) -> None:
        """Revoke an accepted candidate: it counts as rejected, and its slot climbs on, or is short."""
        if self._ledger.revoke(candidate, reason):
            self._reopened.add(candidate.slot)
            self._reconsider(candidate.slot.cell)
            self._climb(candidate.slot)

    def lost(self, candidates: Iterable[Candidate]) -> None:
        """Candidates whose images are gone: made again, same seed, before anything new."""
        for candidate in candidates:
            self.speculation.lost(candidate)
            if candidate in self.in_flight:
                self.in_flight.discard(candidate)
                self._climb(candidate.slot, at_once=True)

    def _settle(self, outcome: Outcome) -> None:
        self.in_flight.discard(outcome.candidate)
        if self._ledger.count(outcome):
            self._reconsider(outcome.candidate.slot.cell)
            self._climb(outcome.candidate.slot)

    def _climb(self, slot: Slot, *, at_once: bool = False) -> None:
        """Let the next attempt wait for its turn, `at_once` before all others."""
        if slot.cell in self._given_up:
            self._ledger.give_up([slot])
        elif not self._ledger.is_settled(slot):
            self._queues.retry(self._ledger.next_attempt(slot), at_once)

    def _reconsider(self, cell: Cell) -> None:
        """Give up a cell, or take it up again. Slots whose candidate is under way stay open."""
        slots = (Slot(cell, index) for index in range(self._quota_of[cell]))
        hopeless = self.tally(cell).is_below(self.give_up_below)
        if hopeless and cell not in self._given_up:
            self._given_up[cell] = None
            self._queues.drop(cell)
            under_way = {candidate.slot for candidate in self.in_flight}
            self._ledger.give_up(slot for slot in slots if slot not in under_way)
        elif not hopeless and cell in self._given_up:
            del self._given_up[cell]
            for slot in self._ledger.take_up_again(slots):
                if slot.index < self._reached[cell] or slot in self._reopened:  # others come in their turn
                    self._climb(slot)

    @property
    def given_up(self) -> Mapping[Cell, Tally]:
        """Cells whose open slots are short because too few of their candidates pass."""
        return {cell: self.tally(cell) for cell in self._given_up}

    @property
    def candidates(self) -> int:
        return self._ledger.candidates

    @property
    def budget_spent(self) -> bool:
        return self._affordable(1) <= 0

    def _affordable(self, count: int) -> int:
        """What the budget allows of `count` candidates; those under way count as spent."""
        if self.max_candidates is None:
            return count
        return min(count, self.max_candidates - self.candidates - len(self.in_flight))

    @property
    def done(self) -> bool:
        """Nothing is under way and nothing more will be handed out."""
        return not self.in_flight and (self.budget_spent or self._queues.find(1) is None)

    @property
    def open(self) -> int:
        """Slots neither accepted nor short."""
        return self.wanted - len(self.accepted) - len(self.short)


def count_all(history: Iterable[Outcome], ledger: Ledger, quotas: Mapping[Cell, int]) -> None:
    """Take in verdicts of before. One on a slot of a larger plan cost a candidate, and settles nothing."""
    for outcome in history:
        slot = outcome.candidate.slot
        if slot.index < quotas[slot.cell]:
            ledger.count(outcome)
        else:
            ledger.candidates += not outcome.void


def slots_in_turn(quotas: Sequence[Quota]) -> Iterator[Slot]:
    """Rank by rank, the first slot of each cell, then the second of each: batches mix cells."""
    for rank in sorted({rank for _, _, rank in quotas}):
        cells = [(cell, quota) for cell, quota, cell_rank in quotas if cell_rank == rank]
        for index in range(max(quota for _, quota in cells)):
            yield from (Slot(cell, index) for cell, quota in cells if index < quota)


def in_batches(items: Iterable[T], group_of: Callable[[T], Hashable], size: int) -> list[list[T]]:
    """Batches of up to `size` items of one group each."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def by_class(quotas: Iterable[Quota]) -> Counter[str]:
    wanted: Counter[str] = Counter()
    for cell, quota, _ in quotas:
        wanted[cell.class_name] += quota
    return +wanted  # without classes that a plan revision took away
