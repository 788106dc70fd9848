"""Candidates that wait to be made, one queue for each group that may share a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from balancer.cells import Candidate, Cell


@dataclass(slots=True)
class Queue:
    """Slots that this driver has begun come first, to settle them early."""

    retries: deque[Candidate] = field(default_factory=deque)
    fresh: deque[Candidate] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.retries) + len(self.fresh)

    def take(self, most: int) -> list[Candidate]:
        return [(self.retries or self.fresh).popleft() for _ in range(min(most, len(self)))]

    def drop(self, cell: Cell) -> None:
        for part in (self.retries, self.fresh):
            kept = [candidate for candidate in part if candidate.slot.cell != cell]
            part.clear()
            part.extend(kept)


@dataclass(slots=True)
class Queues:
    """`fresh` yields first attempts, one at a time, when retries do not fill a batch."""

    group_of: Callable[[Candidate], Hashable]
    fresh: Iterator[Candidate]
    _queues: dict[Hashable, Queue] = field(default_factory=dict)

    def find(self, size: int) -> Queue | None:
        """The queue that has waited longest of those that fill a batch, else of all; None if none waits."""
        if size <= 0:
            return None
        self._queues = {group: queue for group, queue in self._queues.items() if queue}
        while True:
            for queue in self._queues.values():
                if len(queue) >= size:
                    return queue
            if (candidate := next(self.fresh, None)) is None:
                return next(iter(self._queues.values()), None)
            self._of(candidate).fresh.append(candidate)

    def retry(self, candidate: Candidate, at_once: bool = False) -> None:
        retries = self._of(candidate).retries
        (retries.appendleft if at_once else retries.append)(candidate)

    def claim(self, candidate: Candidate) -> bool:
        """Take this retry out of turn; False if it does not wait."""
        queue = self._queues.get(self.group_of(candidate))
        if queue is None or candidate not in queue.retries:
            return False
        queue.retries.remove(candidate)
        return True

    def drop(self, cell: Cell) -> None:
        for queue in self._queues.values():
            queue.drop(cell)

    def _of(self, candidate: Candidate) -> Queue:
        return self._queues.setdefault(self.group_of(candidate), Queue())
