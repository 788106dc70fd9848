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
from actors.writer import RejectedItem, WriteItem
from balancer.adaptive import WordingCounts
from balancer.cells import Candidate, Cell
from balancer.config import Config
from balancer.copies import CopyIndex, copies_among, copy_flaw, known_images
from balancer.errors import InterruptedRun
from balancer.manifest.fragment import State
from balancer.manifest.layout import image_stem, rejected_path
from balancer.manifest.log import ManifestLog
from balancer.manifest.rows import ImageFile, Row, RunFacts, candidate_row, revoked
from balancer.manifest.schema import rows_with_ids
from balancer.progress import ClassProgress, RateMeter, Snapshot, eta_s
from balancer.prompts import Request, Rung, ladder, request_for, wordings_of
from balancer.schedule import Outcome, Schedule
from balancer.verdict import Measurement, Nearest, Verdict, criteria_for, judge

BATCHES_PER_GENERATOR = 2
"""One being made and one waiting, so that a generator never waits for the driver."""

BATCHES_BEHIND = 4
"""Batches per generator that may wait for verifiers and writers before generation pauses."""

DOUBTFUL_AFTER = 20
"""Candidates of a cell, none of which passed, after which it may have to be given up."""

EXAMPLES_OF_A_CELL = 3

WAIT_S = 0.25
"""Longest pause of the loop: signals, deadlines and commits are looked at this often."""

DRAIN_S = 120.0
"""After an interruption, work under way has this long to end; the rest is made again on resume."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate's verdict and what led to it; `index` is its place in the batch."""

    index: int
    measurement: Measurement
    nearest: Nearest | None
    verdict: Verdict


@dataclass(slots=True, eq=False)
class Batch:
    """Candidates generated together, all with one guidance, and what is known of them so far."""

    candidates: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]
    requests: tuple[Request, ...]
    pixels: Any = None
    flags: Any = None
    generator: Mapping[str, Any] = field(default_factory=dict)
    accepted: list[Judged] = field(default_factory=list)
    examples: list[RejectedItem] = field(default_factory=list)


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
    references: CopyIndex = field(kw_only=True)  # what no candidate may copy
    wording_counts: WordingCounts | None = None  # with `attempts.adaptive` only
    clock: Callable[[], float] = time.monotonic
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None
    note: Callable[[str], None] = lambda text: None
    _to_verify: deque[Batch] = field(default_factory=deque)
    _to_write: deque[Batch] = field(default_factory=deque)
    _writing: int = 0
    _rows: list[Row] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)
    _introduced: set[str] = field(default_factory=set)
    _given_up: set[Cell] = field(default_factory=set)
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

        The pools must have been started. InterruptedRun after a signal, with everything accepted so far
        committed.
        """
        self._started_s = self.clock()
        try:
            while self.step() or self._revoke_copies():
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
        self._tell_of_given_up_cells()
        self.on_progress(self.snapshot())
        return not self._finished()

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
        if self._to_write or self._writing:
            return False  # be it examples of rejected images, which no verdict waits for
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
            cells = [candidate.slot.cell for candidate in made.candidates]
            self.verifiers.submit(verifier, "measure", made.pixels, made.flags, cells, job=made)
        while self._may_generate() and (generator := self.generators.least_busy(BATCHES_PER_GENERATOR)):
            batch = self._next_batch()
            if batch is None:
                break
            guidance = batch.rungs[0].guidance
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
        requests = tuple(map(self._request, candidates, climbed))
        return Batch(candidates, climbed, requests)

    def _request(self, candidate: Candidate, rung: Rung) -> Request:
        cell, wording = candidate.slot.cell, None
        if self.wording_counts is not None:
            seed = candidate.seed(self.config.seed)
            wording = self.wording_counts.choose(cell.key, wordings_of(cell, rung, self.config), seed)
        weakest = self.schedule.reason_before(candidate)
        return request_for(candidate, rung, self.config, weakest=weakest, wording=wording)

    def _write(self, writer: Actor, batch: Batch) -> None:
        items = [
            WriteItem(
                index=judged.index,
                stem=image_stem(batch.candidates[judged.index], self.facts.facets),
                mark=self._mark(batch, judged.index),
            )
            for judged in batch.accepted
        ]
        self.writers.submit(writer, "write", batch.pixels, items, batch.examples, job=batch)
        self._writing += 1

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
            cell = candidate.slot.cell
            nearest = self.references.nearest(measurement)
            verdict = judge(measurement, cell, criteria_for(cell, rung.threshold, self.config), nearest)
            judged = Judged(index, measurement, nearest, verdict)
            if verdict.reason is None:
                batch.accepted.append(judged)
            else:
                self._keep_example(batch, index, verdict.reason)
                self._settle(batch, judged, None)
        self._candidate_rate.add(len(batch.candidates))
        if batch.accepted or batch.examples:
            self._to_write.append(batch)

    def _keep_example(self, batch: Batch, index: int, reason: str) -> None:
        """A few rejected for each reason are shown in the report, and of a cell in which nothing passes;
        no verdict waits for their files."""
        kept = self.config.output.rejected_per_reason
        cell = batch.candidates[index].slot.cell
        if self.schedule.rejected_by_reason[reason] < kept or (kept and self._is_telling(cell)):
            mark = self._mark(batch, index) | {"rejected": reason}
            batch.examples.append(RejectedItem(index, rejected_path(mark["id"], reason), mark))

    def _is_telling(self, cell: Cell) -> bool:
        tally = self.schedule.tally(cell)
        return tally.accepted == 0 and 0 <= tally.candidates - DOUBTFUL_AFTER < EXAMPLES_OF_A_CELL

    def _written(self, finished: Finished) -> None:
        batch: Batch = finished.job
        self._writing -= 1
        if finished.error is not None:
            self._again(batch, finished, self._to_write)
            return
        for judged, file in zip(batch.accepted, finished.value, strict=True):
            self._settle(batch, judged, file)
        self._accepted_rate.add(len(batch.accepted))

    def _again(self, batch: Batch, finished: Finished, queue: deque[Batch]) -> None:
        """The pixels outlive a verifier or writer that died; if they were lost, generate them again."""
        if is_lost_object(finished.error):
            self.schedule.lost(batch.candidates)
        else:
            queue.appendleft(batch)

    def _settle(self, batch: Batch, judged: Judged, file: ImageFile | None) -> None:
        index, verdict = judged.index, judged.verdict
        candidate = batch.candidates[index]
        if not self._rows:
            self._oldest_row_s = self.clock()
        self._rows.append(
            candidate_row(
                candidate,
                batch.rungs[index],
                batch.requests[index],
                judged.measurement,
                verdict,
                file,
                nearest=judged.nearest,
                device=str(batch.generator.get("device", "")),
                facts=self.facts,
            )
        )
        outcome = Outcome(candidate, verdict.reason)
        if self.wording_counts is not None:
            wording = batch.requests[index].wording
            self.wording_counts.add(candidate.slot.cell.key, wording, verdict.accepted)
        if verdict.accepted:
            self._outcomes.append(outcome)
        else:
            self.schedule.judged(outcome)  # at once: its retry need not wait for the commit

    # ---- when all have been judged -----------------------------------------------------------

    def _revoke_copies(self) -> bool:
        """Accepted images are compared with each other; the slot of one that copies another tries again.

        Only at the end, and in the plan's order: as they come in, chance would say which of two is the copy.
        True if there was any.
        """
        if self.stop.number is not None or self._final_state() == "interrupted":
            return False  # there are more to come
        offsets = self.facts.cell_offsets
        candidates = [Candidate(slot, attempt) for slot, attempt in self.schedule.accepted.items()]
        candidates.sort(key=lambda one: offsets[one.slot.cell.key] + one.slot.index)
        rows = rows_with_ids(self.log.table(), [candidate.id for candidate in candidates])
        copies = copies_among(known_images(rows), self.config.verification.copies)
        if not copies:
            return False
        verdicts = [
            revoked(row, copy_flaw(copies[row["id"]]), copies[row["id"]])
            for row in rows_with_ids(rows, list(copies)).to_pylist()
        ]
        self.log.commit_verdicts(verdicts, {"reason": "copies of other accepted images"})
        for candidate in candidates:
            if candidate.id in copies:
                self.schedule.reopen(candidate, copy_flaw(copies[candidate.id]))
        self.note(f"{len(copies)} accepted images are copies of others and are made again")
        return True

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

    def _tell_of_given_up_cells(self) -> None:
        for cell, tally in self.schedule.given_up.items():
            if cell not in self._given_up:
                self._given_up.add(cell)
                self.note(f"{cell.key} is given up: {tally}")

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
