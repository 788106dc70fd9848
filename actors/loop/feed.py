"""What generators are asked for: the candidates whose turn it is, and when these run out, attempts ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from actors.loop.batch import Batch, Judged
from balancer.cells import Candidate
from balancer.config.schema import Config
from balancer.scheduling.adaptive import WordingCounts
from balancer.scheduling.prompts import Request, Rung, ladder, request_for, wordings_of
from balancer.scheduling.schedule import Schedule
from balancer.scheduling.speculation import Speculation


@dataclass(slots=True)
class Feed:
    """`speculation` holds verdicts on attempts made ahead until their turn comes."""

    config: Config
    schedule: Schedule
    wording_counts: WordingCounts | None = None  # with `attempts.adaptive` only
    speculation: Speculation[tuple[Batch, Judged]] = field(init=False)
    _rungs: tuple[Rung, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._rungs = ladder(self.config)
        self.speculation = Speculation(
            self.schedule.attempts, lambda attempt: not self._rungs[attempt - 1].strengthen
        )

    def next_batch(self, shape: int) -> Batch | None:
        """The next batch of `shape` candidates; None if no candidate has its turn.

        A generator always makes its full shape: places that are left cost nothing, and are used ahead.
        """
        candidates = self.schedule.next_batch(shape)
        if not candidates:
            return None
        if len(candidates) < shape:
            guidance = self._rung(candidates[0]).guidance
            candidates += next(self._chosen_ahead(shape - len(candidates), 1, guidance), [])
        return self._batch(candidates)

    def batches_ahead(self, shape: int, count: int) -> Iterator[Batch]:
        """Up to `count` batches for generators that would stand idle: the next attempts of slots about which
        nothing is left but verdicts to wait for."""
        return map(self._batch, self._chosen_ahead(shape, count))

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

    def _chosen_ahead(
        self, shape: int, count: int, guidance: float | None = None
    ) -> Iterator[list[Candidate]]:
        """Up to `count` groups of attempts, each of one guidance, or all of the one that is given."""
        if not self._can_afford_more():
            return
        chosen = self.speculation.choose(self.schedule.in_flight, shape * count, self._likelihood)
        groups: dict[float, list[Candidate]] = {}
        for candidate in chosen:
            groups.setdefault(self._rung(candidate).guidance, []).append(candidate)
        for candidates in groups.values() if guidance is None else [groups.get(guidance, [])]:
            for start in range(0, len(candidates), shape):
                group = candidates[start : start + shape]
                self.speculation.start(group)
                yield group

    def _can_afford_more(self) -> bool:
        """Attempts made ahead must not take from the budget what others may come to need."""
        if self.schedule.max_candidates is None:
            return True
        most = self.schedule.candidates + self.schedule.open * self.schedule.attempts
        return most + self.speculation.started - self.speculation.used < self.schedule.max_candidates

    def _likelihood(self, candidate: Candidate) -> float:
        tally = self.schedule.tally(candidate.slot.cell)
        return (1 + tally.accepted) / (2 + tally.candidates)
