"""Which rejected images are kept for the report. No verdict waits for their files."""

from __future__ import annotations

from balancer.scheduling.schedule import Counted

DOUBTFUL_AFTER = 20
"""Candidates of a cell, none of which passed, after which it may have to be given up."""

EXAMPLES_OF_A_CELL = 3


def is_example(rejected: Counted, kept_per_reason: int) -> bool:
    """The first ones rejected for each reason, and a few of a cell in which nothing passes."""
    if rejected.same_reason_before < kept_per_reason:
        return True
    tally = rejected.tally_before
    in_doubt = not tally.accepted and 0 <= tally.candidates - DOUBTFUL_AFTER < EXAMPLES_OF_A_CELL
    return kept_per_reason > 0 and in_doubt
