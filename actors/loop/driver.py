"""The loop of a run: batches go from generators to verifiers to writers, rows go to the manifest.

Nothing counts as accepted before its row is committed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.cluster.pool import ActorPool
from actors.loop.disk_full import DiskFullBackoff
from actors.loop.group_commit import Committer
from actors.loop.notices import Notices, interruption
from actors.loop.revoking import Reviewing, revoke_duplicates
from actors.loop.stages import Generating, Stage, Verifying, Writing
from actors.loop.stopping import Stopping
from balancer.cells import Candidate
from balancer.errors import BalancerError
from balancer.manifest.log.fragment import State
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import RunFacts
from balancer.scheduling.progress import RunMeter, Snapshot
from balancer.scheduling.schedule import Schedule
from balancer.storage import DiskFullError

WAIT_S = 0.25
"""Longest pause of the loop: signals, deadlines and commits are looked at this often."""


@dataclass(slots=True)
class Driver:
    facts: RunFacts
    schedule: Schedule
    log: ManifestLog
    generating: Generating
    verifying: Verifying
    writing: Writing
    committer: Committer
    backoff: DiskFullBackoff
    stopping: Stopping
    notices: Notices
    meter: RunMeter
    on_progress: Callable[[Snapshot], None]
    wait: Callable[[Sequence[ActorPool], float], list[Any]]
    reviewing: Reviewing | None = None

    def run(self) -> State:
        """Work until every slot is settled or the budget is spent; returns the state the run ends in.

        The pools must have been started. InterruptedRun after a signal, with everything accepted so far
        committed.
        """
        self.meter.start()
        try:
            while self.step() or self._revoke_duplicates():
                pass
        except BaseException:
            with contextlib.suppress(BalancerError):  # the first error is the one to report
                self._accept(self.committer.flush())
            raise
        else:
            self._accept(self.committer.flush())
        finally:
            self.committer.close()
        self._report_progress()
        if (number := self.stopping.signal.number) is not None and self.schedule.open:
            raise interruption(number, self.schedule)
        return self._final_state()

    def step(self) -> bool:
        """One turn; False when there is nothing left to do.

        1. Wait for calls to end, and take in their results.
        2. Give up calls that overran their deadline.
        3. Notice a signal, or the end of the time budget.
        4. Hand out work: writing first, then verifying, then generating.
        5. Begin the commit that is due, and accept what was committed; take in what people decided.
        6. Report progress.
        """
        for ref in self.wait([stage.pool for stage in self._stages], WAIT_S):
            for stage in self._stages:
                if (finished := stage.pool.finish(ref)) is not None:
                    stage.take_in(finished)
        for stage in self._stages:
            for finished in stage.pool.give_up_overdue():
                stage.take_in(finished)
        self.notices.introduce_models([self.generating.pool, self.verifying.pool])
        self._notice_stop()
        if not self.backoff.is_full:
            self._hand_out()
            self._commit()
        self.notices.given_up_cells(self.schedule)
        self._report_progress()
        return not self._finished()

    @property
    def _stages(self) -> tuple[Stage, Stage, Stage]:
        return (self.generating, self.verifying, self.writing)

    def _notice_stop(self) -> None:
        if self.stopping.begins(self.meter.elapsed_s):
            if self.stopping.signal.number is not None:
                self.notices.draining(len(self.schedule.in_flight))
            elif self.stopping.collapsed:
                self.notices.note(f"stopping: {self.stopping.collapsed} (attempts.stop_when_collapsed)")

    def _hand_out(self) -> None:
        self.writing.hand_out()
        self.verifying.hand_out()
        if not self.stopping.is_draining:
            self.generating.hand_out()

    def _commit(self) -> None:
        try:
            self._accept(self.committer.turn())
            if self.reviewing is not None and self.reviewing.turn():
                self._accept(self.committer.turn())  # what was committed before people were heard
                self.reviewing.settle()
        except DiskFullError as error:
            self.backoff.disk_is_full(error)

    def _accept(self, committed: Sequence[Candidate]) -> None:
        for candidate in committed:
            self.schedule.accept(candidate)
        if committed:
            self.backoff.succeeded()
            for stage in self._stages:
                stage.pool.progressed()

    def _report_progress(self) -> None:
        generators = self.generating.pool
        snapshot = self.meter.snapshot(
            self.schedule, generators_busy=generators.busy, generators=generators.size
        )
        self.on_progress(snapshot)

    def _finished(self) -> bool:
        if self.stopping.is_over:
            return True
        if self.writing.waiting or self.writing.under_way:
            return False  # perhaps only examples of rejected images, which no verdict waits for
        return not self.schedule.in_flight if self.stopping.is_draining else self.schedule.done

    def _revoke_duplicates(self) -> bool:
        """True if accepted images turned out to copy others: their slots are open again."""
        self._accept(self.committer.flush())
        rejected = 0 if self.reviewing is None else self.reviewing.settle()
        if self.stopping.signal.number is not None or self._final_state() == "interrupted":
            return rejected > 0 and not self.stopping.is_draining  # or there are more to come
        if self.reviewing is not None and rejected + self.reviewing.look_now():
            return True
        count = revoke_duplicates(self.schedule, self.log, self.facts)
        if count:
            self.notices.revoked(count)
        return count > 0

    @property
    def collapsed(self) -> str:
        """Which class stopped the run, and how; empty if none did."""
        return self.stopping.collapsed if self.schedule.open else ""

    def _final_state(self) -> State:
        if self.collapsed:
            return "interrupted"
        if self.schedule.open:
            spent = self.schedule.budget_spent or self.stopping.is_draining
            return "budget" if spent else "interrupted"
        return "short" if self.schedule.short else "complete"
