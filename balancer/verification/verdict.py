"""The decision about one candidate: a pure function of what was measured and what was asked."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from balancer.cells import CLASS_PROPERTY, Cell

if TYPE_CHECKING:
    from balancer.config.schema import Config

BLANK_DEVIATION = 0.005
"""A luminance standard deviation (0 to 1) below this is a blank image: a safety checker that blacks one
out, or a decoder that failed, gives 0; even a dim scene of one colour gives more than twice this."""

PIPELINE_MAX_UNSAFE = 0.5
"""A pipeline's own safety checker says yes or no, which is written as 1 or 0."""


class Flaw(enum.StrEnum):
    """Why a candidate is rejected other than for a property, the gravest first."""

    NOT_FINITE = "not_finite"
    FLAGGED = "flagged"
    BLANK = "blank"
    UNDEREXPOSED = "underexposed"
    OVEREXPOSED = "overexposed"
    DUPLICATE = "duplicate"
    NEAR_COPY = "near_copy"


@dataclass(frozen=True, slots=True)
class ImageFlags:
    """What only the generator can know of an image: how many values of its latents or pixels were not a
    number or infinite, and how sure the pipeline's safety checker objects, 0 to 1 (None without one)."""

    nonfinite: int = 0
    unsafe: float | None = None


class Made(NamedTuple):
    """What a generator says of a batch besides its pixels: what it knows of each image, how many it makes at
    a time, and how long that took."""

    flags: list[ImageFlags]
    batch_size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a verifier saw in one image. Numbers, no opinion.

    `probabilities[property][value]` sums to 1 over the values of a property, in the config's order.
    `second_scores` has, for each wanted property, the second judge's P(yes); it is empty without one.
    `unsafe` is the greater of what the pipeline's and the configured safety checker say, None without
    either. `brightness` and `deviation` are mean and spread of luminance, 0 to 1.
    `embedding` is the image embedding as little-endian float16 bytes, `phash` 16 hex digits,
    `pixel_sha256` the hash of the decoded pixels, which two files of one picture share.
    """

    probabilities: Mapping[str, Mapping[str, float]]
    brightness: float
    deviation: float
    flags: ImageFlags
    phash: str
    embedding: bytes
    pixel_sha256: str = ""
    second_scores: Mapping[str, float] = field(default_factory=dict)
    unsafe: float | None = None


@dataclass(frozen=True, slots=True)
class Nearest:
    """The known image most like a candidate: the bits in which their perceptual hashes differ (0 to 64), the
    cosine of their embeddings, and whether their pixels are the same."""

    id: str
    distance: int
    similarity: float
    same_pixels: bool = False


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a candidate is held to. `unjudged` are properties that are not asked of it."""

    threshold: float
    brightness: tuple[float, float] = (0.0, 1.0)
    max_unsafe: float = PIPELINE_MAX_UNSAFE
    max_distance: int = 4
    min_similarity: float = 0.95
    unjudged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is None if accepted, else a Flaw or the name of the weakest property. `score` is that of the
    weakest property that was judged, None if none was."""

    accepted: bool
    reason: str | None
    score: float | None
    scores: Mapping[str, float]


def criteria_for(cell: Cell, threshold: float, config: Config) -> Criteria:
    """The limits for a candidate of `cell`; the strictest brightness of its facet values counts."""
    wanted = config.verification
    ranges = [wanted.brightness]
    for facet, value in cell.facets:
        if (own := config.facets[facet].values[value].brightness) is not None:
            ranges.append(own)
    return Criteria(
        threshold=threshold,
        brightness=(max(low for low, _ in ranges), min(high for _, high in ranges)),
        max_unsafe=PIPELINE_MAX_UNSAFE if wanted.safety is None else wanted.safety.max_unsafe,
        max_distance=wanted.copies.max_distance,
        min_similarity=wanted.copies.min_similarity,
        unjudged=frozenset(wanted.unjudged) & {CLASS_PROPERTY, *config.facets},
    )


def judge(
    measurement: Measurement, cell: Cell, criteria: Criteria, nearest: Nearest | None = None
) -> Verdict:
    """Accept a candidate without flaws if each property it was asked to show is likely enough.

    A property's score is the verifier's probability, or the second judge's if that is lower.
    """
    scores = {
        name: _lower(measurement.probabilities[name][wanted], measurement.second_scores.get(name))
        for name, wanted in cell.properties
    }
    judged = [name for name in scores if name not in criteria.unjudged]
    # NaN counts as weaker than any number: min() alone would pass over one that is not the first.
    weakest = min(judged, key=lambda name: -1.0 if math.isnan(scores[name]) else scores[name], default=None)
    score = None if weakest is None else scores[weakest]
    reason: str | None = flaw_of(measurement, criteria, nearest)
    if reason is None and score is not None and not score >= criteria.threshold:  # NaN is a rejection
        reason = weakest
    return Verdict(accepted=reason is None, reason=reason, score=score, scores=scores)


def flaw_of(measurement: Measurement, criteria: Criteria, nearest: Nearest | None) -> Flaw | None:
    """The gravest thing wrong with an image, whatever it shows."""
    darkest, brightest = criteria.brightness
    flaws = {
        Flaw.NOT_FINITE: measurement.flags.nonfinite > 0,
        Flaw.FLAGGED: measurement.unsafe is not None and not measurement.unsafe <= criteria.max_unsafe,
        Flaw.BLANK: not measurement.deviation >= BLANK_DEVIATION,
        Flaw.UNDEREXPOSED: not measurement.brightness >= darkest,
        Flaw.OVEREXPOSED: not measurement.brightness <= brightest,
        Flaw.DUPLICATE: nearest is not None and nearest.same_pixels,
        Flaw.NEAR_COPY: nearest is not None
        and is_near_copy(nearest, criteria.max_distance, criteria.min_similarity),
    }
    return next((flaw for flaw, found in flaws.items() if found), None)


def is_near_copy(nearest: Nearest, max_distance: int, min_similarity: float) -> bool:
    return nearest.distance <= max_distance and nearest.similarity >= min_similarity


def _lower(first: float, second: float | None) -> float:
    """The lower score; a NaN counts as lower than any number."""
    if second is None or math.isnan(first):
        return first
    return second if math.isnan(second) else min(first, second)
