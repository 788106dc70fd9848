"""The three stages of a batch: generating, verifying, writing.

Each stage hands waiting work to its pool and takes in the results. Pixels never pass through here, only
references to them. Candidates whose images are lost with an actor or a node are made again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.cluster.pool import Actor, ActorPool, Finished, is_lost_object
from actors.loop.batch import Batch, Files, Judged, described
from actors.loop.batching import Batching
from actors.loop.collapse import CollapseWatch
from actors.loop.disk_full import DiskFullBackoff
from actors.loop.examples import is_example
from actors.loop.group_commit import Committer
from actors.loop.patience import Patience
from balancer.cells import Candidate
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import ImageFile, RunFacts
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.progress import RateMeter
from balancer.scheduling.schedule import Counted, Schedule
from balancer.storage import DiskFullError
from balancer.verification.verdict import Made, Measurement, criteria_for, judge

BATCHES_PER_ACTOR = 2
"""One being worked on and one waiting, so that an actor never waits for the driver."""

BATCHES_BEHIND = 4
"""Batches per generator that may wait for verifiers and writers before generation pauses."""


class Stage(Protocol):
    pool: ActorPool

    def hand_out(self) -> None: ...
    def take_in(self, finished: Finished) -> None: ...


@dataclass(frozen=True, slots=True)
class Recorder:
    """A verdict becomes a row, and counts for the wording that was asked for."""

    facts: RunFacts
    committer: Committer
    batching: Batching
    collapse: CollapseWatch | None = None

    def record(self, judged: Judged, file: ImageFile | None) -> None:
        """`file` is None for a rejected one."""
        self.committer.add(judged.row(file, self.facts), None if file is None else judged.candidate)
        self.batching.learn(judged)
        if self.collapse is not None and file is not None:
            self.collapse.add(judged.candidate.slot.cell.class_name, judged.measurement.embedding)


@dataclass(slots=True)
class Writing:
    """Accepted images and examples of rejected ones become files; accepted rows then await their commit."""

    pool: ActorPool
    facts: RunFacts
    log: ManifestLog
    schedule: Schedule
    recorder: Recorder
    backoff: DiskFullBackoff
    rate: RateMeter
    waiting: deque[Files] = field(default_factory=deque)
    under_way: int = 0

    def hand_out(self) -> None:
        while self.waiting and (writer := self.pool.least_busy(BATCHES_PER_ACTOR)):
            files = self.waiting.popleft()
            items = [judged.to_write(self.facts, self.log) for judged in files.accepted]
            self.pool.submit(writer, "write", files.batch.pixels, items, files.examples, job=files)
            self.under_way += 1

    def take_in(self, finished: Finished) -> None:
        files: Files = finished.job
        self.under_way -= 1
        if is_lost_object(finished.error):
            self.schedule.lost(judged.candidate for judged in files.accepted)
        elif finished.error is not None:
            self.waiting.appendleft(files)
            if isinstance(finished.error, DiskFullError):
                self.backoff.disk_is_full(finished.error)
        else:
            self.backoff.succeeded()
            for judged, file in zip(files.accepted, finished.value, strict=True):
                self.recorder.record(judged, file)
            self.rate.add(len(files.accepted))


@dataclass(slots=True)
class Verifying:
    """Images get their verdicts: rejected ones are settled at once, accepted ones go on to a writer.

    `learned` is what verifiers judge with besides the images: typicality and heads, or references to them.
    """

    pool: ActorPool
    config: Config
    facts: RunFacts
    schedule: Schedule
    recorder: Recorder
    references: NearDuplicateIndex
    rate: RateMeter
    following: Writing
    learned: tuple[Any, ...] = ()
    waiting: deque[Batch] = field(default_factory=deque)

    def hand_out(self) -> None:
        while self.waiting and (verifier := self.pool.least_busy(BATCHES_PER_ACTOR)):
            batch = self.waiting.popleft()
            cells = [candidate.slot.cell for candidate in batch.candidates]
            self.pool.submit(verifier, "measure", batch.pixels, batch.flags, cells, *self.learned, job=batch)

    def take_in(self, finished: Finished) -> None:
        batch: Batch = finished.job
        if is_lost_object(finished.error):
            self.schedule.lost(batch.candidates)
        elif finished.error is not None:
            self.waiting.appendleft(batch)
        else:
            files: dict[Batch, Files] = {}
            for index, measurement in enumerate(finished.value):
                judged = self._judge(batch, index, measurement)
                verdict = Outcome(judged.candidate, judged.verdict.reason, evidence=judged)
                for counted in self.schedule.judged(verdict):
                    self._record(counted, files)
            self.rate.add(len(batch.candidates))
            self.following.waiting.extend(filter(None, files.values()))

    def _judge(self, batch: Batch, index: int, measurement: Measurement) -> Judged:
        cell, request = batch.candidates[index].slot.cell, batch.requests[index]
        parent_id = None if request.parent is None else request.parent.id
        criteria = criteria_for(cell, batch.rungs[index].threshold, self.config, self.facts.domain)
        nearest = self.references.nearest(measurement, besides=parent_id)
        parent = None if parent_id is None else self.references.compare(measurement, parent_id)
        verdict = judge(measurement, cell, criteria, nearest, parent)
        return Judged(batch, index, measurement, nearest, verdict, parent)

    def _record(self, counted: Counted, files: dict[Batch, Files]) -> None:
        judged: Judged = counted.outcome.evidence
        chosen = files.setdefault(judged.batch, Files(judged.batch))
        if (reason := judged.verdict.reason) is None:
            chosen.accepted.append(judged)
            return
        if is_example(counted, self.config.output.rejected_per_reason):
            chosen.examples.append(judged.example(reason, self.facts))
        self.recorder.record(judged, None)


@dataclass(slots=True)
class Generating:
    """Candidates become images: those whose turn it is, and attempts ahead where a generator would idle."""

    pool: ActorPool
    config: Config
    schedule: Schedule
    batching: Batching
    patience: Patience
    following: Verifying

    def hand_out(self) -> None:
        if self._is_too_far_ahead():
            return
        while generator := self.pool.least_busy(self._depth()):
            shape = self._shape(generator)
            if not self.schedule.can_fill(shape) and self._waits_for_verdicts():
                break
            if not (candidates := self.schedule.next_batch(shape)):
                self._keep_idle_ones_busy()
                break
            self._begin(generator, candidates)

    def _is_too_far_ahead(self) -> bool:
        behind = len(self.following.waiting) + len(self.following.following.waiting)
        return behind >= BATCHES_BEHIND * self.pool.size

    def _depth(self) -> int:
        """Batches a generator may have at a time. Towards the end just the one being made: what to make next
        is then better known when it is done, and a batch that waits cannot go to one that is idle."""
        waiting = self.schedule.open - len(self.schedule.in_flight)
        full_round = self.config.generation.usual_batch * self.pool.size
        return BATCHES_PER_ACTOR if waiting >= full_round else 1

    def _shape(self, generator: Actor) -> int:
        """How many candidates it makes at once; fewer than configured once its memory ran out."""
        return int(described(generator.description, "batch_size") or self.config.generation.usual_batch)

    def _waits_for_verdicts(self) -> bool:
        on_their_way = bool(self.following.waiting) or self.following.pool.busy > 0
        return on_their_way and self.patience.lasts()

    def _keep_idle_ones_busy(self) -> None:
        idle = [actor for actor in self.pool.actors if actor.ready and actor.calls == 0]
        if idle:
            batches = self.schedule.batches_ahead(min(map(self._shape, idle)), len(idle))
            for generator, candidates in zip(idle, batches, strict=False):
                self._begin(generator, candidates)

    def _begin(self, generator: Actor, candidates: Sequence[Candidate]) -> None:
        batch = self.batching.batch(candidates)
        guidance = batch.rungs[0].guidance
        self.pool.submit(generator, "begin", batch.requests, guidance, job=batch, num_returns=2)
        self.patience.renew()

    def take_in(self, finished: Finished) -> None:
        batch: Batch = finished.job
        if finished.error is not None:
            self.schedule.lost(batch.candidates)
            return
        made: Made = finished.value
        batch.pixels = finished.refs[0]
        batch.flags, batch.shape, self.patience.batch_s, used = made
        batch.correct(used)
        batch.device = described(finished.actor.description, "device")
        if finished.actor.description is not None:
            finished.actor.description["batch_size"] = batch.shape
        self.following.waiting.append(batch)
