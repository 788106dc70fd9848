"""Rows of the manifest: one for each judged candidate, accepted or not, and one for each real image."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from balancer.cells import Candidate, Slot
from balancer.prompts import Request, Rung
from balancer.verdict import Measurement, Verdict

if TYPE_CHECKING:
    from balancer.audit import RealImage
    from balancer.config import Config

Row = dict[str, Any]

SYNTHETIC, REAL = "synthetic", "real"
ACCEPTED, REJECTED = "accepted", "rejected"


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What all rows of a run share. `cell_offsets` number the slots through, cell after cell."""

    run_id: str
    facets: tuple[str, ...]
    config: Config
    model_revision: str | None
    verifier_revision: str | None
    cell_offsets: Mapping[str, int]
    now: Callable[[], dt.datetime] = utc_now

    def is_for_review(self, slot: Slot) -> bool:
        """Every n-th slot in the plan's order, so that the sample is spread evenly over the cells."""
        number = self.cell_offsets[slot.cell.key] + slot.index
        fraction = Fraction(str(self.config.review.fraction))
        return int((number + 1) * fraction) > int(number * fraction)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A durable image file; `file_name` is relative to the run folder, `sha256` hex."""

    file_name: str
    sha256: str
    num_bytes: int


def candidate_row(
    candidate: Candidate,
    rung: Rung,
    request: Request,
    measurement: Measurement,
    verdict: Verdict,
    file: ImageFile | None,
    *,
    device: str,
    facts: RunFacts,
) -> Row:
    """The row of a judged candidate; `file` is None for a rejected one, whose image is not kept."""
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
        "threshold": rung.threshold,
        "fallback": rung.fallback,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "model": generation.model,
        "model_revision": facts.model_revision,
        "verifier": facts.config.verification.model,
        "verifier_revision": facts.verifier_revision,
        "steps": generation.steps,
        "guidance": rung.guidance,
        "width": generation.width,
        "height": generation.height,
        "phash": measurement.phash,
        "embedding": measurement.embedding,
        "split": "train",
        "device": device,
        "batch_size": generation.batch_size,
        "generated_at": facts.now(),
        "run_id": facts.run_id,
        **(_file_columns(file) if file else {}),
    }


def real_row(image: RealImage, file: ImageFile, facts: RunFacts) -> Row:
    """The row of a real image; facets the dataset does not state are null."""
    return {
        "id": f"real/{image.file_name}",
        "class": image.class_name,
        **{facet: image.facets.get(facet) for facet in facts.facets},
        "source": REAL,
        "status": ACCEPTED,
        "review": False,
        "width": image.width,
        "height": image.height,
        "phash": image.phash,
        "split": "train",
        "run_id": facts.run_id,
        **_file_columns(file),
    }


def _file_columns(file: ImageFile) -> Row:
    return {"file_name": file.file_name, "sha256": file.sha256, "num_bytes": file.num_bytes}
