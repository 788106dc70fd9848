"""The threshold at which accepted images are right as often as is wanted, by what people said of a sample.

Fixed-sequence testing, as in Angelopoulos et al., "Learn then Test" (2021): thresholds are tried from strict
to lax, in an order that the scores alone give. At each, the hypothesis that the images above are right less
often than wanted is tested by the binomial distribution, and the first that cannot be refuted ends the
sequence. So with 95 % probability the precision at the threshold that is returned is what was wanted, however
many were tried. The sequence begins at several sizes, among which the error is divided (Bonferroni).

A sample of accepted images says nothing of lower thresholds than they had to reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.log.view import read_log
from balancer.manifest.runfile import read_run
from balancer.review.decisions import Decision, first_words, from_details, verdicts
from balancer.review.estimates import CONFIDENCE, clopper_pearson
from balancer.review.pending import all_decisions
from balancer.review.sampling import verified_images
from balancer.review.summary import COLUMNS

if TYPE_CHECKING:
    from balancer.storage import Storage

STARTS = 3
"""Sizes at which a sequence begins: the least that can show anything, twice and four times as many."""

GROWTH = 1.1
"""From one size of a sequence to the next."""

Judged = tuple[float, bool]
"""The score of an image, and whether people say that it is right."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """`threshold` is None if nothing shows the precision that is wanted; otherwise, of the `judged` images
    `above` reach it, of which `right` are right, with the limits of 95 % confidence. `needed` images without
    an error would show it. `now` is the share that is right of all that were judged, which the run
    accepted."""

    threshold: float | None
    judged: int
    above: int
    right: int
    low: float
    high: float
    needed: int
    now: float | None

    @property
    def kept(self) -> float:
        """The share of accepted images that would still be."""
        return self.above / self.judged if self.judged else 0.0


def find_threshold(judged: Iterable[Judged], wanted: float, confidence: float = CONFIDENCE) -> Threshold:
    """The least threshold that shows a precision of `wanted`, 0 to 1, with `confidence`."""
    ordered = sorted(judged, key=lambda one: -one[0])
    error = (1 - confidence) / STARTS
    needed = math.ceil(math.log(error) / math.log(wanted) - 1e-9)
    total = len(ordered)
    now = sum(right for _, right in ordered) / total if total else None
    sizes = [_sequence(ordered, needed * 2**start) for start in range(STARTS)]
    passed = [size for sequence in sizes for size in _passing(ordered, sequence, wanted, error)]
    if not passed:
        return Threshold(None, total, 0, 0, 0.0, 1.0, needed, now)
    return replace(figures_at(ordered, ordered[max(passed) - 1][0]), needed=needed)


def figures_at(judged: Iterable[Judged], threshold: float) -> Threshold:
    """What this threshold would leave; it need not show anything."""
    judged = list(judged)
    above = [right for score, right in judged if score >= threshold]
    low, high = clopper_pearson(sum(above), len(above)) if above else (0.0, 1.0)
    now = sum(right for _, right in judged) / len(judged) if judged else None
    return Threshold(threshold, len(judged), len(above), sum(above), low, high, 0, now)


def _sequence(ordered: Sequence[Judged], first: int) -> Iterator[int]:
    """How many of the highest scores are looked at, one size after the other; equal scores stay together."""
    size = first
    while size <= len(ordered):
        while size < len(ordered) and ordered[size][0] == ordered[size - 1][0]:
            size += 1
        yield size
        size = len(ordered) if size < len(ordered) < size * GROWTH else math.ceil(size * GROWTH)


def _passing(ordered: Sequence[Judged], sizes: Iterable[int], wanted: float, error: float) -> Iterator[int]:
    for size in sizes:
        wrong = sum(not right for _, right in ordered[:size])
        if _at_most(wrong, size, 1 - wanted) > error:
            return
        yield size


def _at_most(wrong: int, count: int, rate: float) -> float:
    """The probability of at most so many errors at this rate."""
    from scipy.special import bdtr

    return float(bdtr(wrong, count, rate))


def judged_by_people(
    images: Iterable[Mapping[str, Any]], decisions: Iterable[Decision]
) -> dict[str, list[Judged]]:
    """By class, the images on which people do not tie, asked in the estimate sample, with their scores."""
    said = verdicts(first_words(decision for decision in decisions if decision.queue == "estimate"))
    found: dict[str, list[Judged]] = {}
    for row in images:
        score, verdict = row["score"], said.get(row["id"], "tie")
        if verdict != "tie" and score is not None and not math.isnan(score):
            found.setdefault(row["class"], []).append((score, verdict == "accept"))
    return found


def read_judged(storage: Storage) -> dict[str, list[Judged]]:
    """What people said of the estimate sample of a run, by class; decisions that wait count, too."""
    info = read_run(storage)
    view = read_log(storage, (*COLUMNS, CLASS_PROPERTY, "score"))
    decisions = all_decisions(storage, info.run_id, from_details(view.details))
    return judged_by_people(verified_images(view.table.to_pylist()), decisions)
