"""Candidates that were generated together, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.models.writer import RejectedItem, WriteItem
from balancer.cells import Candidate
from balancer.manifest.layout import image_stem, rejected_path
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import ImageFile, Row, RunFacts, candidate_row
from balancer.scheduling.prompts import Request, Rung
from balancer.verification.verdict import ImageFlags, Measurement, Nearest, Used, Verdict


@dataclass(slots=True, eq=False)
class Batch:
    """Candidates made by one call, all with one guidance and one strength. `pixels` is a reference to their
    images, uint8 (N, height, width, 3), `device` and `shape` are where they were made and how many at a
    time."""

    candidates: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]
    requests: tuple[Request, ...]
    pixels: Any = None
    flags: Sequence[ImageFlags] = ()
    shape: int = 0
    device: str = ""

    def correct(self, used: Used | None) -> None:
        """Rungs and requests say what went into the call, as rows must."""
        if used is None:
            return
        self.rungs = tuple(replace(rung, guidance=used.guidance) for rung in self.rungs)
        if not used.negative:
            self.requests = tuple(replace(request, negative_prompt="") for request in self.requests)


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate's verdict and what led to it; `index` is its place in the batch. `parent` is the image that
    it was made from, compared with it, and `nearest` another one."""

    batch: Batch
    index: int
    measurement: Measurement
    nearest: Nearest | None
    verdict: Verdict
    parent: Nearest | None = None

    @property
    def candidate(self) -> Candidate:
        return self.batch.candidates[self.index]

    @property
    def request(self) -> Request:
        return self.batch.requests[self.index]

    def row(self, file: ImageFile | None, facts: RunFacts) -> Row:
        """`file` is None for a rejected one."""
        return candidate_row(
            self.candidate,
            self.batch.rungs[self.index],
            self.request,
            self.measurement,
            self.verdict,
            file,
            nearest=self.nearest,
            parent=self.parent,
            device=self.batch.device,
            batch_size=self.batch.shape,
            facts=facts,
        )

    def to_write(self, facts: RunFacts, log: ManifestLog) -> WriteItem:
        stem = log.free_name(image_stem(self.candidate, facts.facets))
        return WriteItem(self.index, stem, self._mark(facts))

    def example(self, reason: str, facts: RunFacts) -> RejectedItem:
        """A rejected image that is kept for the report."""
        mark = self._mark(facts) | {"rejected": reason}
        return RejectedItem(self.index, rejected_path(mark["id"], reason), mark)

    def _mark(self, facts: RunFacts) -> dict[str, str]:
        """What an image file says of its own making, wherever it is copied to."""
        return {
            "prompt": self.request.prompt,
            "model": facts.config.generator_name,
            "model_revision": facts.model_revision or "",
            "id": self.candidate.id,
        }


@dataclass(slots=True, eq=False)
class Files:
    """What one call of a writer is to write of a batch: accepted images, and examples of rejected ones."""

    batch: Batch
    accepted: list[Judged] = field(default_factory=list)
    examples: list[RejectedItem] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.accepted or self.examples)


def described(actor_description: Mapping[str, Any] | None, name: str) -> str:
    return str((actor_description or {}).get(name, ""))
