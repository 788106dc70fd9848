"""Accepted images that are revoked while a run goes on: copies of others, and those that people reject."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from balancer.dataset.near_duplicates import COMPARED, duplicate_flaw, find_near_duplicates, known_images
from balancer.errors import StorageError
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import RunFacts, revoked
from balancer.manifest.runfile import RunInfo
from balancer.review.effects import REVIEWED
from balancer.review.taking import Taken, describe_taken, take_in
from balancer.runs.resume import accepted_in_order, cells_of_plan, parse_candidate
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage

LOOK_EVERY_S = 10.0
"""Between two looks for decisions that wait."""

REST = 20
"""Times as long as a look took that nobody looks again: taking decisions in reads the log anew."""


def revoke_duplicates(schedule: Schedule, log: ManifestLog, facts: RunFacts) -> int:
    """Revoke accepted images that copy others, and so reopen their slots; returns how many there were.

    This is done when all are there, and in the plan's order: earlier, chance would decide which of two is the
    copy.
    """
    candidates = accepted_in_order(schedule, facts)
    rows = log.rows([candidate.id for candidate in candidates], COMPARED)
    copies = find_near_duplicates(known_images(rows), facts.config.verification.copies)
    if not copies:
        return 0
    verdicts = [
        revoked(row, duplicate_flaw(copies[row["id"]]), copies[row["id"]])
        for row in log.rows(list(copies)).to_pylist()
    ]
    log.commit_verdicts(verdicts, {"reason": "copies of other accepted images"})
    for candidate in candidates:
        if candidate.id in copies:
            schedule.reopen(candidate, duplicate_flaw(copies[candidate.id]))
    return len(copies)


@dataclass(slots=True)
class Reviewing:
    """One look at a time, by the thread that commits: nobody else may use the log meanwhile.

    Images that people reject are revoked, and their slots climb on. Images that they want in come with the
    next start.
    """

    storage: Storage
    info: RunInfo
    log: ManifestLog
    schedule: Schedule
    clock: Callable[[], float]
    thread: Executor
    note: Callable[[str], None] = lambda text: None
    _look: Future[Taken] | None = None
    _took_s: float = 0.0
    _next_s: float = 0.0

    def turn(self) -> bool:
        """Begin a look if one is due; True if one is done, and waits for `settle`."""
        if self._look is not None:
            return self._look.done()
        if self.clock() >= self._next_s:
            self._look = self.thread.submit(self._take_in)
        return False

    def _take_in(self) -> Taken:
        began_s = self.clock()
        try:
            return take_in(self.storage, self.log, self.info, restoring=False)
        finally:
            self._took_s = self.clock() - began_s

    def settle(self) -> int:
        """What the look found counts for the schedule, once it knows of all that was committed before; the
        number of images that were revoked. Waits for a look under way. What a full disk, or a bucket that did
        not answer, kept from being taken in waits for the next look; FencedError is raised."""
        if self._look is None:
            return 0
        look, self._look = self._look, None
        try:
            taken = look.result()
        except StorageError as error:
            self.note(f"warning: what people decided waits: {error.message}")
            taken = Taken()
        self._next_s = self.clock() + max(LOOK_EVERY_S, REST * self._took_s)
        return self._revoke(taken)

    def look_now(self) -> int:
        """One more look, for what was decided just now."""
        revoked = self.settle()
        self._next_s = self.clock()
        self.turn()
        return revoked + self.settle()

    def _revoke(self, taken: Taken) -> int:
        cells, rows = cells_of_plan(self.info), taken.rows or {}
        revoked = taken.ids("revoked")
        for row_id in revoked:
            if rows[row_id]["cell"] in cells:
                self.schedule.reopen(parse_candidate(rows[row_id], cells), REVIEWED)
        if taken.decisions:
            self.note(describe_taken(taken))
        return len(revoked)
