"""From candidates to a batch: the words, the seed and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actors.loop.batch import Batch, Judged
from balancer.cells import Candidate
from balancer.config.schema import Config
from balancer.scheduling.adaptive import WordingCounts
from balancer.scheduling.prompts import (
    ParentImage,
    Request,
    Rung,
    allowed_wordings,
    ladder,
    request_for,
)
from balancer.scheduling.schedule import Schedule


class Parents(Protocol):
    def draw(self, candidate: Candidate) -> ParentImage | None: ...


@dataclass(slots=True)
class Batching:
    config: Config
    schedule: Schedule
    wording_counts: WordingCounts | None = None
    """With `attempts.adaptive` only."""
    parents: Parents | None = None
    """With `generation.conditioning: image` only."""
    _rungs: tuple[Rung, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._rungs = ladder(self.config)

    def batch(self, candidates: Sequence[Candidate]) -> Batch:
        rungs = tuple(self._rungs[candidate.attempt - 1] for candidate in candidates)
        return Batch(tuple(candidates), rungs, tuple(map(self._request, candidates, rungs)))

    def _request(self, candidate: Candidate, rung: Rung) -> Request:
        cell, wording = candidate.slot.cell, None
        if self.wording_counts is not None:
            seed = candidate.seed(self.config.seed)
            wording = self.wording_counts.choose(cell.key, allowed_wordings(cell, rung, self.config), seed)
        weakest = self.schedule.reason_before(candidate)
        parent = None if self.parents is None else self.parents.draw(candidate)
        return request_for(candidate, rung, self.config, weakest=weakest, wording=wording, parent=parent)

    def learn(self, judged: Judged) -> None:
        """Count how the wording of a candidate did, for those to come."""
        if self.wording_counts is not None:
            cell = judged.candidate.slot.cell
            self.wording_counts.add(cell.key, judged.request.wording, judged.verdict.accepted)
