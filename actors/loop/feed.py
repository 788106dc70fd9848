"""What generators are asked for: batches of the schedule's candidates, with their words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from actors.loop.batch import Batch
from balancer.cells import Candidate
from balancer.config.schema import Config
from balancer.scheduling.adaptive import WordingCounts
from balancer.scheduling.prompts import Request, Rung, ladder, request_for, wordings_of
from balancer.scheduling.schedule import Schedule


@dataclass(slots=True)
class Feed:
    config: Config
    schedule: Schedule
    wording_counts: WordingCounts | None = None  # with `attempts.adaptive` only
    _rungs: tuple[Rung, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._rungs = ladder(self.config)

    def next_batch(self, shape: int) -> Batch | None:
        """The next batch of `shape` candidates; None if no candidate has its turn."""
        candidates = self.schedule.next_batch(shape)
        return self._batch(candidates) if candidates else None

    def batches_ahead(self, shape: int, count: int) -> Iterator[Batch]:
        """Up to `count` batches for generators that would stand idle."""
        return map(self._batch, self.schedule.batches_ahead(shape, count))

    def _batch(self, candidates: Sequence[Candidate]) -> Batch:
        rungs = tuple(map(self._rung, candidates))
        return Batch(tuple(candidates), rungs, tuple(map(self._request, candidates, rungs)))

    def _rung(self, candidate: Candidate) -> Rung:
        return self._rungs[candidate.attempt - 1]

    def _request(self, candidate: Candidate, rung: Rung) -> Request:
        cell, wording = candidate.slot.cell, None
        if self.wording_counts is not None:
            seed = candidate.seed(self.config.seed)
            wording = self.wording_counts.choose(cell.key, wordings_of(cell, rung, self.config), seed)
        weakest = self.schedule.reason_before(candidate)
        return request_for(candidate, rung, self.config, weakest=weakest, wording=wording)
