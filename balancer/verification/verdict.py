"""The verdict on one candidate: a pure function of its measurement and the criteria."""

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
"""An image is blank if its luminance has a standard deviation (0 to 1) below this. A blacked-out image or a
failed decoder gives 0; even a dim scene of one colour gives more than twice this."""

PIPELINE_MAX_UNSAFE = 0.5
"""A pipeline's own safety checker answers yes or no, recorded as 1 or 0."""


class Flaw(enum.StrEnum):
    """Reasons for rejection other than a property, the gravest first."""

    NOT_FINITE = "not_finite"
    FLAGGED = "flagged"
    BLANK = "blank"
    UNDEREXPOSED = "underexposed"
    OVEREXPOSED = "overexposed"
    OFF_DOMAIN = "off_domain"
    DUPLICATE = "duplicate"
    NEAR_COPY = "near_copy"
    NEAR_PARENT = "near_parent"


@dataclass(frozen=True, slots=True)
class ImageFlags:
    """What only the generator knows of an image: the number of NaN or infinite values in its latents and
    pixels, the pipeline's own safety score, 0 to 1 (None without a checker), and the denoising steps that
    were run, None if all were that it was asked for."""

    nonfinite: int = 0
    unsafe: float | None = None
    steps: int | None = None


class Used(NamedTuple):
    """What of a request went into the call of a pipeline: the guidance, None if it takes none, and whether
    negative prompts acted."""

    guidance: float | None
    negative: bool


class Made(NamedTuple):
    """What a generator returns with the pixels of a batch: flags of each image, its batch size, how long the
    batch took, and what it used; None stands for all that was asked."""

    flags: list[ImageFlags]
    batch_size: int
    seconds: float
    used: Used | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A verifier's measurements of one image, without any decision.

    `probabilities[property][value]` sums to 1 over the values of a property, in the config's order.
    `second_scores` has, for each wanted property, the second judge's P(yes); it is empty without one.
    `unsafe` is the higher score of the pipeline's and the configured safety checker, None without either.
    `brightness` and `deviation` are mean and standard deviation of luminance, 0 to 1.
    `embedding` is the image embedding as little-endian float16 bytes, `phash` 16 hex digits,
    `pixel_sha256` the hash of the decoded pixels, the same for all files of one picture.
    `typicality` is a p-value: the share of real images that are as odd; `domain_score` the probability of the
    classes rather than of what they are not. Either is None if the run does not measure it.
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
    typicality: float | None = None
    domain_score: float | None = None


@dataclass(frozen=True, slots=True)
class Nearest:
    """The known image most similar to a candidate: differing bits of their perceptual hashes (0 to 64),
    cosine similarity of their embeddings, and whether their pixels are the same."""

    id: str
    distance: int
    similarity: float
    same_pixels: bool = False


@dataclass(frozen=True, slots=True)
class DomainLimits:
    """What an image must exceed to be one of the things of the dataset at all; None where nothing is
    asked."""

    typicality: float | None = None
    domain_score: float | None = None

    def accept(self, measurement: Measurement) -> bool:
        """A NaN is no."""
        measured = (
            (self.typicality, measurement.typicality),
            (self.domain_score, measurement.domain_score),
        )
        return all(limit is None or value is None or value > limit for limit, value in measured)


NO_LIMITS = DomainLimits()


@dataclass(frozen=True, slots=True)
class Criteria:
    """The limits for a candidate. Properties in `unjudged` do not count."""

    threshold: float
    brightness: tuple[float, float] = (0.0, 1.0)
    max_unsafe: float = PIPELINE_MAX_UNSAFE
    max_distance: int = 4
    min_similarity: float = 0.95
    parent_max_distance: int = 8
    parent_min_similarity: float = 0.9
    unjudged: frozenset[str] = frozenset()
    domain: DomainLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is None if accepted, else a Flaw or the name of the weakest property. `score` is that of the
    weakest property that was judged, None if none was."""

    accepted: bool
    reason: str | None
    score: float | None
    scores: Mapping[str, float]


def criteria_for(cell: Cell, threshold: float, config: Config, domain: DomainLimits = NO_LIMITS) -> Criteria:
    """The limits for a candidate of `cell`; the strictest brightness of its facet values counts. `domain` are
    those of the run, which do not count if `off_domain` is unjudged."""
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
        parent_max_distance=wanted.parent.max_distance,
        parent_min_similarity=wanted.parent.min_similarity,
        unjudged=frozenset(wanted.unjudged) & {CLASS_PROPERTY, *config.facets},
        domain=NO_LIMITS if Flaw.OFF_DOMAIN in wanted.unjudged else domain,
    )


def judge(
    measurement: Measurement,
    cell: Cell,
    criteria: Criteria,
    nearest: Nearest | None = None,
    parent: Nearest | None = None,
) -> Verdict:
    """Accept a candidate without flaws if each property it was asked to show is likely enough.

    `parent` is the image it was made from, compared with it; `nearest` is another one.
    A property's score is the verifier's probability, or the second judge's if that is lower.
    """
    scores = {
        name: _lower(measurement.probabilities[name][wanted], measurement.second_scores.get(name))
        for name, wanted in cell.properties
    }
    judged = [name for name in scores if name not in criteria.unjudged]
    # NaN counts as lower than any number; min() alone could skip it.
    weakest = min(judged, key=lambda name: -1.0 if math.isnan(scores[name]) else scores[name], default=None)
    score = None if weakest is None else scores[weakest]
    reason: str | None = find_flaw(measurement, criteria, nearest, parent)
    if reason is None and score is not None and not score >= criteria.threshold:  # NaN is a rejection
        reason = weakest
    return Verdict(accepted=reason is None, reason=reason, score=score, scores=scores)


def find_flaw(
    measurement: Measurement, criteria: Criteria, nearest: Nearest | None, parent: Nearest | None = None
) -> Flaw | None:
    """The gravest flaw of an image, whatever it shows."""
    darkest, brightest = criteria.brightness
    flaws = {
        Flaw.NOT_FINITE: measurement.flags.nonfinite > 0,
        Flaw.FLAGGED: measurement.unsafe is not None and not measurement.unsafe <= criteria.max_unsafe,
        Flaw.BLANK: not measurement.deviation >= BLANK_DEVIATION,
        Flaw.UNDEREXPOSED: not measurement.brightness >= darkest,
        Flaw.OVEREXPOSED: not measurement.brightness <= brightest,
        Flaw.OFF_DOMAIN: not criteria.domain.accept(measurement),
        Flaw.DUPLICATE: nearest is not None and nearest.same_pixels,
        Flaw.NEAR_COPY: nearest is not None
        and is_near_copy(nearest, criteria.max_distance, criteria.min_similarity),
        Flaw.NEAR_PARENT: parent is not None
        and (
            parent.same_pixels
            or is_near_copy(parent, criteria.parent_max_distance, criteria.parent_min_similarity)
        ),
    }
    return next((flaw for flaw, present in flaws.items() if present), None)


def is_near_copy(nearest: Nearest, max_distance: int, min_similarity: float) -> bool:
    return nearest.distance <= max_distance and nearest.similarity >= min_similarity


def _lower(first: float, second: float | None) -> float:
    """The lower score; a NaN counts as lower than any number."""
    if second is None or math.isnan(first):
        return first
    return second if math.isnan(second) else min(first, second)
