"""Where an image of a run comes from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from balancer.errors import ManifestError, UsageError
from balancer.manifest.columns import names_read_by
from balancer.manifest.formats import json_value

if TYPE_CHECKING:
    from balancer.manifest.query.rows import ManifestRows

_NOT_AS_JSON = ("generated_at", "parent")


@dataclass(frozen=True, slots=True)
class Lineage:
    """One image, the one it was generated from if there is one, and so on.

    Of a real image everything from `score` to `generated_at` is None. `scores` are those of each property,
    `score` is the lowest of those that were judged, None if none was, and `unjudged` the entries of
    `verification.unjudged` that concern it. `nearest_id` is the known image most like it, besides its parent;
    `strength` is how far it moved away from that one, `parent_distance` and `parent_similarity` how much it
    still looks like it; `origin_run_id` and `origin_id` name the run that it was taken over from, and its row
    there; `versions` are those of the libraries when the run began.
    """

    id: str
    source: str
    class_name: str
    facets: Mapping[str, str | None]
    split: str | None
    file_name: str | None
    sha256: str | None
    status: str
    reason: str | None
    score: float | None
    scores: Mapping[str, float | None]
    unjudged: tuple[str, ...]
    threshold: float | None
    attempt: int | None
    prompt: str | None
    negative_prompt: str | None
    changes: tuple[str, ...]
    seed: int | None
    steps: int | None
    guidance: float | None
    width: int | None
    height: int | None
    model: str | None
    model_revision: str | None
    verifier: str | None
    verifier_revision: str | None
    device: str | None
    batch_size: int | None
    generated_at: dt.datetime | None
    nearest_id: str | None
    nearest_distance: int | None
    nearest_similarity: float | None
    run_id: str
    run_name: str
    versions: Mapping[str, str]
    loras: tuple[str, ...] = ()
    origin_run_id: str | None = None
    origin_id: str | None = None
    strength: float | None = None
    parent_pixel_sha256: str | None = None
    parent_distance: int | None = None
    parent_similarity: float | None = None
    parent: Lineage | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, but for the time, which is a datetime: seeds are text, because most readers of JSON round
        whole numbers beyond 2^53."""
        values = {name: getattr(self, name) for name in self.__slots__}
        plain = {name: json_value(value) for name, value in values.items() if name not in _NOT_AS_JSON}
        return (
            values
            | plain
            | {
                "seed": None if self.seed is None else str(self.seed),
                "parent": self.parent and self.parent.as_dict(),
            }
        )


def read_lineage(manifest: ManifestRows, image_id: str) -> Lineage:
    """UsageError if the run has no such image, ManifestError if parents go in a circle or are missing."""
    row = _row(manifest, image_id)
    if row is None:
        raise UsageError(
            f"no image {image_id!r} in run {manifest.run.run_id}",
            hint="`balancer query RUN --all --columns id` lists them; a real image is real/FILE",
        )
    chain = [row]
    while (parent_id := chain[-1]["parent_id"]) is not None:
        parent = _row(manifest, parent_id)
        if parent is None or any(parent_id == earlier["id"] for earlier in chain):
            what = "is not in the manifest" if parent is None else "was generated from it in turn"
            raise ManifestError(
                f"{chain[-1]['id']!r} was generated from {parent_id!r}, which {what}",
                hint="`balancer fsck` lists everything that is wrong",
            )
        if chain[-1].get("parent_pixel_sha256") not in (None, parent["pixel_sha256"]):
            break  # another picture has its name by now
        chain.append(parent)
    found = None
    for link in reversed(chain):
        found = _lineage(link, manifest, found)
    assert found is not None
    return found


def _row(manifest: ManifestRows, image_id: str) -> dict[str, Any] | None:
    columns = [*names_read_by("lineage", manifest.run.format), *manifest.run.facets, "pixel_sha256"]
    rows = manifest.to_table(columns, pc.field("id") == image_id, status="all").to_pylist()
    return rows[0] if rows else None


def _lineage(row: dict[str, Any], manifest: ManifestRows, parent: Lineage | None) -> Lineage:
    own = ("class", "parent_id", "scores", "unjudged", "changes", "loras")
    columns = {name: row[name] for name in names_read_by("lineage", manifest.run.format) if name not in own}
    return Lineage(
        **columns,
        class_name=row["class"],
        facets={name: row[name] for name in manifest.run.facets},
        scores=row["scores"] or {},
        unjudged=tuple(row["unjudged"] or ()),
        changes=tuple(row["changes"] or ()),
        loras=tuple(row.get("loras") or ()),
        run_name=manifest.run.name,
        versions=manifest.run.versions,
        parent=parent,
    )
