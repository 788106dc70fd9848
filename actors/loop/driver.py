"""The loop of a run: batches go from generators to verifiers to writers, rows go to the manifest.

Pixels never pass through here, only references to them. A candidate that an actor's death took away
is made again; nothing counts as accepted before its row is committed.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from actors.cluster.pool import Actor, ActorPool, Finished, is_lost_object, wait
from actors.loop.batch import Batch, Files, Judged, described
from actors.loop.copy_check import revoke_copies
from actors.loop.disk_full import DiskFullBackoff
from actors.loop.feed import Feed
from actors.loop.group_commit import Committer
from balancer.cells import Candidate, Cell
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.errors import BalancerError, InterruptedRun
from balancer.manifest.log.fragment import State
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import RunFacts
from balancer.process.signals import StopSignal
from balancer.scheduling.progress import ClassCounts, RateMeter, Snapshot, eta_s
from balancer.scheduling.schedule import Outcome, Schedule
from balancer.scheduling.speculation import UnderWay
from balancer.storage import DiskFullError
from balancer.text.quantities import are, counted
from balancer.verification.verdict import Made, criteria_for, judge

BATCHES_PER_GENERATOR = 2
"""One being made and one waiting, so that a generator never waits for the driver."""

BATCHES_BEHIND = 4
"""Batches per generator that may wait for verifiers and writers before generation pauses."""

DOUBTFUL_AFTER = 20
"""Candidates of a cell, none of which passed, after which it may have to be given up."""

EXAMPLES_OF_A_CELL = 3

PATIENCE = 0.1
"""How long an idle generator waits for verdicts before it starts a short batch or speculates, as a fraction
of the time of a batch."""

WAIT_S = 0.25
"""Longest pause of the loop: signals, deadlines and commits are looked at this often."""

DRAIN_S = 120.0
"""After an interruption, work under way has this long to end; the rest is made again on resume."""


@dataclass(slots=True)
class Driver:
    config: Config
    facts: RunFacts
    feed: Feed
    log: ManifestLog
    generators: ActorPool
    verifiers: ActorPool
    writers: ActorPool
    stop: StopSignal = field(default_factory=StopSignal)
    references: NearDuplicateIndex = field(kw_only=True)  # what no candidate may copy
    clock: Callable[[], float] = time.monotonic
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None
    note: Callable[[str], None] = lambda text: None
    announce: Callable[[str], None] = lambda text: None
    wait: Callable[[Sequence[Any], float], list[Any]] = wait
    commit_thread: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "commit"))
    _committer: Committer = field(init=False)
    _backoff: DiskFullBackoff = field(init=False)
    _to_verify: deque[Batch] = field(default_factory=deque)
    _to_write: deque[Files] = field(default_factory=deque)
    _writing: int = 0
    _introduced: set[str] = field(default_factory=set)
    _given_up: set[Cell] = field(default_factory=set)
    _started_s: float = 0.0
    _stopping_since_s: float | None = None
    _patient_since_s: float | None = None
    _batch_s: float = 0.0
    _accepted_rate: RateMeter = field(init=False)
    _candidate_rate: RateMeter = field(init=False)

    def __post_init__(self) -> None:
        output = self.config.output
        self._committer = Committer(self.log, output, self.clock, self.commit_thread)
        self._backoff = DiskFullBackoff(output.disk_full_wait_s, self.clock, lambda text: self.note(text))
        self._accepted_rate = RateMeter(self.clock)
        self._candidate_rate = RateMeter(self.clock)

    @property
    def schedule(self) -> Schedule:
        return self.feed.schedule

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
        except BaseException:
            with contextlib.suppress(BalancerError):  # the first error is the one to tell
                self._acknowledge(self._committer.flush())
            raise
        else:
            self._acknowledge(self._committer.flush())
        finally:
            self._committer.close()
        self.on_progress(self.snapshot())
        if self.stop.number is not None and self.schedule.open:
            raise InterruptedRun(
                f"interrupted: {len(self.schedule.accepted)} of {counted(self.schedule.wanted, 'image')} "
                "committed",
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
        5. Begin the commit that is due, and take in what was committed.
        6. Report progress.
        """
        for ref in self.wait(self._pools, WAIT_S):
            for pool, handle in self._handlers:
                if (finished := pool.finish(ref)) is not None:
                    handle(finished)
        for pool, handle in self._handlers:
            for finished in pool.give_up_overdue():
                handle(finished)
        self._introduce_models()
        self._notice_stop()
        if not self._backoff.is_full:
            self._dispatch()
            self._commit()
        self._tell_of_given_up_cells()
        self.on_progress(self.snapshot())
        return not self._finished()

    @property
    def _pools(self) -> tuple[ActorPool, ...]:
        return (self.generators, self.verifiers, self.writers)

    @property
    def _handlers(self) -> tuple[tuple[ActorPool, Callable[[Finished], None]], ...]:
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
            told = [described(ready.description, name) for name in ("model", "device", "dtype", "placement")]
            self.announce(f"{kind} ready: {told[0]} on {', '.join(filter(None, told[1:]))}")

    # ---- handing out work --------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._to_write and (writer := self.writers.least_busy(BATCHES_PER_GENERATOR)):
            self._write(writer, self._to_write.popleft())
        while self._to_verify and (verifier := self.verifiers.least_busy(BATCHES_PER_GENERATOR)):
            made = self._to_verify.popleft()
            cells = [candidate.slot.cell for candidate in made.candidates]
            self.verifiers.submit(verifier, "measure", made.pixels, made.flags, cells, job=made)
        while self._may_generate() and (generator := self.generators.least_busy(self._depth())):
            shape = self._shape(generator)
            if not self.schedule.can_fill(shape) and self._expects_verdicts():
                break
            if (batch := self.feed.next_batch(shape)) is None:
                self._keep_idle_ones_busy()
                break
            self._generate(generator, batch)

    def _depth(self) -> int:
        """Batches a generator may have at a time. Towards the end just the one being made: what to make next
        is then better known when it is done, and a batch that waits cannot go to one that is idle."""
        waiting = self.schedule.open - len(self.schedule.in_flight)
        full_round = self.config.generation.usual_batch * self.generators.size
        return BATCHES_PER_GENERATOR if waiting >= full_round else 1

    def _keep_idle_ones_busy(self) -> None:
        idle = [actor for actor in self.generators.actors if actor.ready and actor.calls == 0]
        if idle:
            batches = self.feed.batches_ahead(min(map(self._shape, idle)), len(idle))
            for generator, batch in zip(idle, batches, strict=False):
                self._generate(generator, batch)

    def _expects_verdicts(self) -> bool:
        """Whether to wait a moment for verdicts that are on their way: they tell what is needed."""
        if not self._to_verify and not self.verifiers.busy:
            return False
        if self._patient_since_s is None:
            self._patient_since_s = self.clock()
        return self.clock() - self._patient_since_s < PATIENCE * self._batch_s

    def _generate(self, generator: Actor, batch: Batch) -> None:
        guidance = batch.rungs[0].guidance
        self.generators.submit(generator, "begin", batch.requests, guidance, job=batch, num_returns=2)
        self._patient_since_s = None

    def _shape(self, generator: Actor) -> int:
        """How many candidates it makes at once; fewer than configured once its memory ran out."""
        return int(described(generator.description, "batch_size") or self.config.generation.usual_batch)

    def _may_generate(self) -> bool:
        behind = len(self._to_verify) + len(self._to_write)
        return self._stopping_since_s is None and behind < BATCHES_BEHIND * self.generators.size

    def _write(self, writer: Actor, files: Files) -> None:
        items = [files.batch.to_write(judged, self.facts, self.log) for judged in files.accepted]
        self.writers.submit(writer, "write", files.batch.pixels, items, files.examples, job=files)
        self._writing += 1

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
            self.note(f"stopping after {counted(count, 'candidate')} under way; once more to stop at once")

    def _drained_too_long(self) -> bool:
        since = self._stopping_since_s
        return since is not None and self.clock() - since > DRAIN_S

    # ---- what came back ----------------------------------------------------------------------

    def _generated(self, finished: Finished) -> None:
        batch: Batch = finished.job
        if finished.error is not None:
            self._lost(batch)
            return
        batch.pixels = finished.refs[0]
        made: Made = finished.value
        batch.flags, batch.shape, self._batch_s = made
        batch.device = described(finished.actor.description, "device")
        if finished.actor.description is not None:
            finished.actor.description["batch_size"] = batch.shape
        self._to_verify.append(batch)

    def _measured(self, finished: Finished) -> None:
        """Judge each image; rejected ones are settled here, accepted ones go on to a writer."""
        batch: Batch = finished.job
        if is_lost_object(finished.error):
            self._lost(batch)
        elif finished.error is not None:
            self._to_verify.appendleft(batch)
        else:
            files = {id(batch): Files(batch)}
            for index, measurement in enumerate(finished.value):
                cell, rung = batch.candidates[index].slot.cell, batch.rungs[index]
                nearest = self.references.nearest(measurement)
                verdict = judge(measurement, cell, criteria_for(cell, rung.threshold, self.config), nearest)
                self._take_in(batch, Judged(index, measurement, nearest, verdict), files)
            self._candidate_rate.add(len(batch.candidates))
            self._to_write.extend(filter(None, files.values()))

    def _take_in(self, batch: Batch, judged: Judged, files: dict[int, Files]) -> None:
        """A verdict counts if it is its candidate's turn, and with it those that waited for it."""
        candidate = batch.candidates[judged.index]
        if candidate not in self.schedule.in_flight:
            self.feed.speculation.hold(candidate, (batch, judged))
            return
        if self.feed.speculation.has_passed(candidate.slot):
            return  # made twice, after it seemed lost
        reason = judged.verdict.reason
        chosen = files.setdefault(id(batch), Files(batch))
        if reason is None:
            self.feed.speculation.passed(candidate)
            chosen.accepted.append(judged)
            return
        if self._is_example(candidate.slot.cell, reason):
            chosen.examples.append(batch.example(judged, reason, self.facts))
        self._committer.add(batch.row(judged, None, self.facts))
        self._count_wording(batch, judged)
        self.schedule.judged(Outcome(candidate, reason))  # at once: its retry need not wait for the commit
        following = Candidate(candidate.slot, candidate.attempt + 1)
        came = self.feed.speculation.claim(following)
        if came is not None and self.schedule.claim(following) and not isinstance(came, UnderWay):
            self._take_in(*came, files)

    def _is_example(self, cell: Cell, reason: str) -> bool:
        """A few rejected for each reason are shown in the report, and of a cell in which nothing passes;
        no verdict waits for their files."""
        kept = self.config.output.rejected_per_reason
        if self.schedule.rejected_by_reason[reason] < kept:
            return True
        tally = self.schedule.tally(cell)
        return kept > 0 and not tally.accepted and 0 <= tally.candidates - DOUBTFUL_AFTER < EXAMPLES_OF_A_CELL

    def _written(self, finished: Finished) -> None:
        files: Files = finished.job
        batch = files.batch
        self._writing -= 1
        if is_lost_object(finished.error):
            self._lost(batch, files.accepted)
        elif finished.error is not None:
            self._to_write.appendleft(files)
            if isinstance(finished.error, DiskFullError):
                self._backoff.disk_is_full(finished.error)
        else:
            self._backoff.succeeded()
            for judged, file in zip(files.accepted, finished.value, strict=True):
                self._committer.add(
                    batch.row(judged, file, self.facts), Outcome(batch.candidates[judged.index], None)
                )
                self._count_wording(batch, judged)
            self._accepted_rate.add(len(files.accepted))

    def _lost(self, batch: Batch, only: Sequence[Judged] | None = None) -> None:
        """The pixels are gone, with their actor or with a node: candidates that need them are made again."""
        wanted = batch.candidates if only is None else [batch.candidates[judged.index] for judged in only]
        self.feed.speculation.lost(wanted)
        self.schedule.lost(wanted)

    def _count_wording(self, batch: Batch, judged: Judged) -> None:
        if self.feed.wording_counts is not None:
            cell, wording = batch.candidates[judged.index].slot.cell, batch.requests[judged.index].wording
            self.feed.wording_counts.add(cell.key, wording, judged.verdict.accepted)

    # ---- when all have been judged -----------------------------------------------------------

    def _revoke_copies(self) -> bool:
        """True if accepted images turned out to copy others, so that there is more to do."""
        self._acknowledge(self._committer.flush())
        if self.stop.number is not None or self._final_state() == "interrupted":
            return False  # there are more to come
        count = revoke_copies(self.schedule, self.log, self.facts)
        if count:
            self.note(f"{counted(count, 'accepted image')} {are(count)} made again, as copies of others")
        return count > 0

    # ---- committing and reporting ------------------------------------------------------------

    def _commit(self) -> None:
        try:
            self._acknowledge(self._committer.turn())
        except DiskFullError as error:
            self._backoff.disk_is_full(error)

    def _acknowledge(self, committed: Sequence[Outcome]) -> None:
        for outcome in committed:
            self.schedule.judged(outcome)
            self.feed.speculation.discard(outcome.candidate.slot)
        if committed:
            self._backoff.succeeded()
            for pool in self._pools:
                pool.progressed()

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
            by_class=ClassCounts(
                schedule.wanted_by_class, schedule.accepted_by_class, schedule.short_by_class
            ),
            elapsed_s=self.clock() - self._started_s,
            accepted_per_s=accepted_per_s,
            candidates_per_s=self._candidate_rate.per_second(self._started_s),
            eta_s=eta_s(schedule.open, accepted_per_s),
            generators_busy=self.generators.busy,
            generators=self.generators.size,
            in_flight=len(schedule.in_flight),
        )
