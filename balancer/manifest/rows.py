"""Rows of the manifest: one for each judged candidate, accepted or not, and one for each real image."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.cells import Candidate, Cell, Slot
from balancer.dataset.splits import TRAIN
from balancer.planning.rounding import as_written
from balancer.scheduling.prompts import Request, Rung
from balancer.verification.verdict import NO_LIMITS, DomainLimits, Measurement, Nearest, Verdict

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import RealImage

Row = dict[str, Any]

SYNTHETIC, REAL = "synthetic", "real"
ACCEPTED, REJECTED = "accepted", "rejected"

DOMAIN_COLUMNS = ("typicality", "domain_score")
NEAREST_COLUMNS = ("nearest_id", "nearest_distance", "nearest_similarity")
PARENT_COLUMNS = ("parent_id", "parent_pixel_sha256", "strength", "parent_distance", "parent_similarity")

VOID = "void"
"""Status of a candidate that passes by now, but whose image was not kept: it is made again. Of a real image
that left the dataset; if it comes back, it is committed again."""


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What all rows of a run share. `cell_offsets` number the slots through, cell after cell. Runs of earlier
    versions have no columns of the domain: `has_domain` is False."""

    run_id: str
    facets: tuple[str, ...]
    config: Config
    model_revision: str | None
    verifier_revision: str | None
    cell_offsets: Mapping[str, int]
    domain: DomainLimits = NO_LIMITS
    has_domain: bool = True
    loras: tuple[str, ...] | None = None
    """The column `loras`; None in runs of earlier versions, which have none."""
    now: Callable[[], dt.datetime] = utc_now

    def number(self, slot: Slot) -> int:
        """Its place in the plan's order."""
        return self.cell_offsets[slot.cell.key] + slot.index

    def is_for_review(self, slot: Slot) -> bool:
        """Every n-th slot in the plan's order, so that the sample is spread evenly over the cells."""
        number = self.number(slot)
        fraction = as_written(self.config.review.fraction)
        return int((number + 1) * fraction) > int(number * fraction)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A durable image file; `file_name` is relative to the run folder, `sha256` hex."""

    file_name: str
    sha256: str
    num_bytes: int


def unjudged_in(cell: Cell, config: Config) -> list[str]:
    """Entries of `verification.unjudged` that concern a cell: its properties, and its values."""
    concerned = {name for name, _ in cell.properties} | {f"{name}={value}" for name, value in cell.properties}
    return [name for name in config.verification.unjudged if name in concerned]


def candidate_row(
    candidate: Candidate,
    rung: Rung,
    request: Request,
    measurement: Measurement,
    verdict: Verdict,
    file: ImageFile | None,
    *,
    nearest: Nearest | None = None,
    parent: Nearest | None = None,
    device: str,
    batch_size: int,
    facts: RunFacts,
) -> Row:
    """The row of a judged candidate; `file` is None for a rejected one, whose image is not kept. `parent` is
    the image that it was made from, compared with it."""
    cell, generation = candidate.slot.cell, facts.config.generation
    return {
        "id": candidate.id,
        "class": cell.class_name,
        **{facet: cell.value(facet) for facet in facts.facets},
        "cell": cell.key,
        "slot": candidate.slot.key,
        "attempt": candidate.attempt,
        "source": SYNTHETIC,
        "status": ACCEPTED if verdict.accepted else REJECTED,
        "reason": verdict.reason,
        "review": verdict.accepted and facts.is_for_review(candidate.slot),
        "score": verdict.score,
        "scores": dict(verdict.scores),
        "probabilities": {name: list(of.values()) for name, of in measurement.probabilities.items()},
        "second_scores": dict(measurement.second_scores) or None,
        "unjudged": unjudged_in(cell, facts.config),
        "threshold": rung.threshold,
        "fallback": rung.fallback,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "wording": request.wording,
        "changes": list(request.changes),
        "seed": request.seed,
        "model": facts.config.generator_name,
        "model_revision": facts.model_revision,
        **({} if facts.loras is None else {"loras": list(facts.loras) or None}),
        "verifier": facts.config.verifier_name,
        "verifier_revision": facts.verifier_revision,
        "steps": measurement.flags.steps or generation.steps,
        "guidance": rung.guidance,
        "width": generation.width,
        "height": generation.height,
        "brightness": measurement.brightness,
        "deviation": measurement.deviation,
        "nonfinite": measurement.flags.nonfinite,
        "unsafe": measurement.unsafe,
        **({name: getattr(measurement, name) for name in DOMAIN_COLUMNS} if facts.has_domain else {}),
        "pixel_sha256": measurement.pixel_sha256,
        "phash": measurement.phash,
        **(nearest_columns(nearest) if nearest else {}),
        "embedding": measurement.embedding,
        **(parent_columns(parent, request) if parent else {}),
        "split": TRAIN,
        "device": device,
        "batch_size": batch_size,
        "generated_at": facts.now(),
        "run_id": facts.run_id,
        **(_file_columns(file) if file else {}),
    }


def revoked(row: Row, reason: str, nearest: Nearest | None = None) -> Row:
    """The row of an accepted candidate that is no longer accepted; it still names its image."""
    comparison = nearest_columns(nearest) if nearest else {}
    return {**row, "status": REJECTED, "reason": reason, "review": False, **comparison}


def real_id(image: RealImage) -> str:
    return f"real/{image.file_name}"


def real_row(
    image: RealImage,
    file: ImageFile,
    facts: RunFacts,
    *,
    embedding: bytes | None = None,
    split: str = TRAIN,
    copied: Nearest | None = None,
) -> Row:
    """The row of a real image; facets the dataset does not state are null. `copied` is the hold-out image
    that shows the same, if there is one."""
    return {
        "id": real_id(image),
        "class": image.class_name,
        **{facet: image.facets.get(facet) for facet in facts.facets},
        "source": REAL,
        "status": ACCEPTED,
        "review": False,
        "width": image.width,
        "height": image.height,
        "pixel_sha256": image.pixel_sha256,
        "phash": image.phash,
        "embedding": embedding,
        **(nearest_columns(copied) if copied else {}),
        "split": split,
        "run_id": facts.run_id,
        **_file_columns(file),
    }


def nearest_columns(nearest: Nearest) -> Row:
    return {
        "nearest_id": nearest.id,
        "nearest_distance": nearest.distance,
        "nearest_similarity": nearest.similarity,
    }


def parent_columns(parent: Nearest, request: Request) -> Row:
    pixels = None if request.parent is None else request.parent.pixel_sha256
    values = (parent.id, pixels, request.strength, parent.distance, parent.similarity)
    return dict(zip(PARENT_COLUMNS, values, strict=True))


def _file_columns(file: ImageFile) -> Row:
    return {"file_name": file.file_name, "sha256": file.sha256, "num_bytes": file.num_bytes}
