"""The loop of a run: batches go from generators to verifiers to writers, rows go to the manifest.

Pixels never pass through here, only references to them. A candidate that an actor's death took away
is made again; nothing counts as accepted before its row is committed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.pool import Actor, Finished, Pool, is_lost_object, wait
from actors.writer import WriteItem
from balancer.cells import Candidate
from balancer.config import Config
from balancer.errors import InterruptedRun
from balancer.manifest.fragment import State
from balancer.manifest.layout import image_stem
from balancer.manifest.log import ManifestLog
from balancer.manifest.rows import ImageFile, Row, RunFacts, candidate_row
from balancer.progress import ClassProgress, RateMeter, Snapshot, eta_s
from balancer.prompts import Request, Rung, ladder, request_for
from balancer.schedule import Outcome, Schedule
from balancer.verdict import Measurement, Verdict, judge

BATCHES_PER_GENERATOR = 2
"""One being made and one waiting, so that a generator never waits for the driver."""

BATCHES_BEHIND = 4
"""Batches per generator that may wait for verifiers and writers before generation pauses."""

WAIT_S = 0.25
"""Longest pause of the loop: signals, deadlines and commits are looked at this often."""

DRAIN_S = 120.0
"""After an interruption, work under way has this long to end; the rest is made again on resume."""


@dataclass(slots=True, eq=False)
class Batch:
    """Candidates generated together, and what is known of them so far."""

    candidates: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]
    requests: tuple[Request, ...]
    pixels: Any = None
    flags: Any = None
    generator: Mapping[str, Any] = field(default_factory=dict)
    accepted: list[tuple[int, Measurement, Verdict]] = field(default_factory=list)


@dataclass(slots=True)
class StopSignal:
    """What a signal handler leaves for the loop: the first signal drains, the second stops."""

    number: int | None = None
    count: int = 0

    def __call__(self, number: int, frame: object = None) -> None:
        self.number = self.number or number
        self.count += 1


@dataclass(slots=True)
class Driver:
    config: Config
    facts: RunFacts
    schedule: Schedule
    log: ManifestLog
    generators: Pool
    verifiers: Pool
    writers: Pool
    stop: StopSignal = field(default_factory=StopSignal)
    clock: Callable[[], float] = time.monotonic
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None
    note: Callable[[str], None] = lambda text: None
    _to_verify: deque[Batch] = field(default_factory=deque)
    _to_write: deque[Batch] = field(default_factory=deque)
    _rows: list[Row] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)
    _introduced: set[str] = field(default_factory=set)
    _oldest_row_s: float = 0.0
    _started_s: float = 0.0
    _stopping_since_s: float | None = None
    _accepted_rate: RateMeter = field(init=False)
    _candidate_rate: RateMeter = field(init=False)

    def __post_init__(self) -> None:
        self._accepted_rate = RateMeter(self.clock)
        self._candidate_rate = RateMeter(self.clock)

    # ---- the loop ----------------------------------------------------------------------------

    def run(self) -> State:
        """Work until every slot is settled or the budget is spent; returns the state the run ends in.

        InterruptedRun after a signal, with everything accepted so far committed.
        """
        self._started_s = self.clock()
        self._start_actors()
        try:
            while self.step():
                pass
        finally:
            self._commit()
        self.on_progress(self.snapshot())
        if self.stop.number is not None and self.schedule.open:
            raise InterruptedRun(
                f"interrupted: {len(self.schedule.accepted)} of {self.schedule.wanted} images are committed",
                signal_number=self.stop.number,
                hint="the same command goes on from here",
            )
        return self._final_state()

    def _start_actors(self) -> None:
        self.generators.start()
        if self.verifiers.spec.num_gpus:
            # Two verifiers on one GPU would take the room that a generator needs: it goes first.
            self.generators.wait_until_placed()
        self.verifiers.start()
        self.writers.start()

    def step(self) -> bool:
        """One turn; False when there is nothing left to do.

        1. Wait for calls to end, and see what they brought.
        2. Give up calls that overran their deadline.
        3. Notice a signal, or the end of the time budget.
        4. Hand out work: writing first, then verifying, then generating.
        5. Commit the rows that are due.
        6. Report progress.
        """
        for ref in wait(self._pools, WAIT_S):
            for pool, handle in self._handlers:
                if (finished := pool.finish(ref)) is not None:
                    handle(finished)
        for pool, handle in self._handlers:
            for finished in pool.give_up_overdue():
                handle(finished)
        self._introduce_models()
        self._notice_stop()
        self._dispatch()
        if self._rows and self._commit_is_due():
            self._commit()
        self.on_progress(self.snapshot())
        return not self._finished()

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    @property
    def _pools(self) -> tuple[Pool, ...]:
        return (self.generators, self.verifiers, self.writers)

    @property
    def _handlers(self) -> tuple[tuple[Pool, Callable[[Finished], None]], ...]:
        return (
            (self.generators, self._generated),
            (self.verifiers, self._measured),
            (self.writers, self._written),
        )

    def _finished(self) -> bool:
        if self.stop.count > 1 or self._drained_too_long():
            return True
        if self._stopping_since_s is not None:
            return not self.schedule.in_flight
        return self.schedule.done

    def _introduce_models(self) -> None:
        """Say once what the first actor of each kind found out by itself: device, precision and why."""
        for pool in (self.generators, self.verifiers):
            kind = pool.spec.kind
            ready = next((actor for actor in pool.actors if actor.ready), None)
            if ready is None or kind in self._introduced:
                continue
            self._introduced.add(kind)
            told = ready.description or {}
            parts = [f"{told.get('model')} on {told.get('device')}", told.get("dtype")]
            self.note(f"{kind}: {', '.join(filter(None, parts))}")

    # ---- handing out work --------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._to_write and (writer := self.writers.least_busy(BATCHES_PER_GENERATOR)):
            self._write(writer, self._to_write.popleft())
        while self._to_verify and (verifier := self.verifiers.least_busy(BATCHES_PER_GENERATOR)):
            made = self._to_verify.popleft()
            self.verifiers.submit(verifier, "measure", made.pixels, made.flags, job=made)
        while self._may_generate() and (generator := self.generators.least_busy(BATCHES_PER_GENERATOR)):
            batch = self._next_batch()
            if batch is None:
                break
            guidance = self.config.generation.guidance
            self.generators.submit(generator, "generate", batch.requests, guidance, job=batch, num_returns=2)

    def _may_generate(self) -> bool:
        behind = len(self._to_verify) + len(self._to_write)
        return self._stopping_since_s is None and behind < BATCHES_BEHIND * self.generators.size

    def _notice_stop(self) -> None:
        """From a signal on, or past `budget.max_hours`, no new batches are begun."""
        if self._stopping_since_s is not None:
            return
        max_hours = self.config.budget.max_hours
        out_of_time = max_hours is not None and self.clock() - self._started_s >= max_hours * 3600
        if self.stop.number is None and not out_of_time:
            return
        self._stopping_since_s = self.clock()
        if self.stop.number is not None:
            count = len(self.schedule.in_flight)
            self.note(f"stopping when {count} candidates under way are done; once more to stop at once")

    def _drained_too_long(self) -> bool:
        since = self._stopping_since_s
        return since is not None and self.clock() - since > DRAIN_S

    def _next_batch(self) -> Batch | None:
        candidates = tuple(self.schedule.next_batch(self.config.generation.batch_size))
        if not candidates:
            return None
        rungs = ladder(self.config)
        climbed = tuple(rungs[candidate.attempt - 1] for candidate in candidates)
        requests = tuple(
            request_for(candidate, rung, self.config)
            for candidate, rung in zip(candidates, climbed, strict=True)
        )
        return Batch(candidates, climbed, requests)

    def _write(self, writer: Actor, batch: Batch) -> None:
        items = [
            WriteItem(
                index=index,
                stem=image_stem(batch.candidates[index], self.facts.facets),
                mark=self._mark(batch, index),
            )
            for index, _, _ in batch.accepted
        ]
        self.writers.submit(writer, "write", batch.pixels, items, job=batch)

    def _mark(self, batch: Batch, index: int) -> dict[str, str]:
        """What an image file says of its own making, wherever it is copied to."""
        return {
            "prompt": batch.requests[index].prompt,
            "model": self.config.generation.model,
            "model_revision": self.facts.model_revision or "",
            "id": batch.candidates[index].id,
        }

    # ---- what came back ----------------------------------------------------------------------

    def _generated(self, finished: Finished) -> None:
        batch: Batch = finished.job
        if finished.error is not None:
            self.schedule.lost(batch.candidates)
            return
        batch.pixels, batch.flags = finished.refs
        batch.generator = finished.actor.description or {}
        self._to_verify.append(batch)

    def _measured(self, finished: Finished) -> None:
        """Judge each image; rejected ones are settled here, accepted ones go on to a writer."""
        batch: Batch = finished.job
        if finished.error is not None:
            self._again(batch, finished, self._to_verify)
            return
        for index, measurement in enumerate(finished.value):
            candidate, rung = batch.candidates[index], batch.rungs[index]
            verdict = judge(measurement, candidate.slot.cell, rung.threshold)
            if verdict.accepted:
                batch.accepted.append((index, measurement, verdict))
            else:
                self._settle(batch, index, measurement, verdict, None)
        self._candidate_rate.add(len(batch.candidates))
        if batch.accepted:
            self._to_write.append(batch)

    def _written(self, finished: Finished) -> None:
        batch: Batch = finished.job
        if finished.error is not None:
            self._again(batch, finished, self._to_write)
            return
        for (index, measurement, verdict), file in zip(batch.accepted, finished.value, strict=True):
            self._settle(batch, index, measurement, verdict, file)
        self._accepted_rate.add(len(batch.accepted))

    def _again(self, batch: Batch, finished: Finished, queue: deque[Batch]) -> None:
        """The pixels outlive a verifier or writer that died; if they were lost, generate them again."""
        if is_lost_object(finished.error):
            self.schedule.lost(batch.candidates)
        else:
            queue.appendleft(batch)

    def _settle(
        self, batch: Batch, index: int, measurement: Measurement, verdict: Verdict, file: ImageFile | None
    ) -> None:
        candidate = batch.candidates[index]
        if not self._rows:
            self._oldest_row_s = self.clock()
        self._rows.append(
            candidate_row(
                candidate,
                batch.rungs[index],
                batch.requests[index],
                measurement,
                verdict,
                file,
                device=str(batch.generator.get("device", "")),
                facts=self.facts,
            )
        )
        outcome = Outcome(candidate, verdict.reason)
        if verdict.accepted:
            self._outcomes.append(outcome)
        else:
            self.schedule.judged(outcome)  # at once: its retry need not wait for the commit

    # ---- committing and reporting ------------------------------------------------------------

    def _commit_is_due(self) -> bool:
        output = self.config.output
        waited_s = self.clock() - self._oldest_row_s
        return len(self._rows) >= output.commit_rows or waited_s >= output.commit_seconds

    def _commit(self) -> None:
        if not self._rows:
            return
        self.log.commit(self._rows)
        for outcome in self._outcomes:
            self.schedule.judged(outcome)
        if self._outcomes:
            for pool in self._pools:
                pool.progressed()
        self._rows, self._outcomes = [], []

    def _final_state(self) -> State:
        if self.schedule.open:
            spent = self.schedule.budget_spent or self._stopping_since_s is not None
            return "budget" if spent else "interrupted"
        return "short" if self.schedule.short else "complete"

    def snapshot(self) -> Snapshot:
        schedule = self.schedule
        accepted_per_s = self._accepted_rate.per_second(self._started_s)
        return Snapshot(
            wanted=schedule.wanted,
            accepted=len(schedule.accepted),
            short=len(schedule.short),
            candidates=schedule.candidates,
            rejected_by_reason=dict(schedule.rejected_by_reason.most_common()),
            by_class={
                name: ClassProgress(wanted, schedule.accepted_by_class[name], schedule.short_by_class[name])
                for name, wanted in schedule.wanted_by_class.items()
            },
            elapsed_s=self.clock() - self._started_s,
            accepted_per_s=accepted_per_s,
            candidates_per_s=self._candidate_rate.per_second(self._started_s),
            eta_s=eta_s(schedule.open, accepted_per_s),
            generators_busy=self.generators.busy,
            generators=self.generators.size,
            in_flight=len(schedule.in_flight),
        )
