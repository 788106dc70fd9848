"""The decision about one candidate: a pure function of what was measured and what was asked."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from balancer.cells import Cell

BLANK_DEVIATION = 0.005
"""A luminance standard deviation (0 to 1) below this is a blank image: a safety checker that blacks one
out, or a decoder that failed, gives 0; even a dim scene of one colour gives more than twice this."""


class Flaw(enum.StrEnum):
    """Why a candidate is rejected other than for a property: these are never close calls."""

    NOT_FINITE = "not_finite"
    FLAGGED = "flagged"
    BLANK = "blank"


@dataclass(frozen=True, slots=True)
class ImageFlags:
    """What only the generator can know of an image: were its latents finite, did the pipeline's
    safety checker object (None where there is none)."""

    finite: bool = True
    flagged: bool | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a verifier saw in one image. Numbers, no opinion.

    `probabilities[property][value]` sums to 1 over the values of a property. `deviation` is the
    spread of luminance, 0 to 1.
    `embedding` is the image embedding as little-endian float16 bytes, `phash` 16 hex digits.
    """

    probabilities: Mapping[str, Mapping[str, float]]
    brightness: float
    deviation: float
    flags: ImageFlags
    phash: str
    embedding: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is None if accepted, else a Flaw or the name of the weakest property."""

    accepted: bool
    reason: str | None
    score: float
    scores: Mapping[str, float]


def judge(measurement: Measurement, cell: Cell, threshold: float) -> Verdict:
    """Accept a candidate if each property it was asked to show is at least `threshold` likely."""
    scores = {name: measurement.probabilities[name][wanted] for name, wanted in cell.properties}
    # NaN counts as weaker than any number: min() alone would pass over one that is not the first.
    weakest = min(scores, key=lambda name: -1.0 if math.isnan(scores[name]) else scores[name])
    score = scores[weakest]
    reason: str | None = _flaw(measurement)
    if reason is None and not score >= threshold:  # so written, a NaN score is a rejection
        reason = weakest
    return Verdict(accepted=reason is None, reason=reason, score=score, scores=scores)


def _flaw(measurement: Measurement) -> Flaw | None:
    if not measurement.flags.finite:
        return Flaw.NOT_FINITE
    if measurement.flags.flagged:
        return Flaw.FLAGGED
    if measurement.deviation < BLANK_DEVIATION:
        return Flaw.BLANK
    return None
