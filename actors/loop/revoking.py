"""Near-duplicates among the accepted images of a run that is filled, which are revoked."""

from __future__ import annotations

from balancer.dataset.near_duplicates import COMPARED, duplicate_flaw, find_near_duplicates, known_images
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import RunFacts, revoked
from balancer.runs.resume import accepted_in_order
from balancer.scheduling.schedule import Schedule


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
