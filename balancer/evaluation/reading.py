"""The images of an experiment: those of the run by its rows, and those of a hold-out from its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from balancer.cells import CLASS_PROPERTY
from balancer.dataset.audit import Audit, audit_holdout
from balancer.dataset.location import refuse_shared_holdout
from balancer.evaluation.examples import Example, Kind, Role, Split, deal_validation, keep_apart
from balancer.images import Pixels, decode_image, perceptual_hash, pixel_sha256, read_image
from balancer.manifest.image_files import max_image_bytes, max_image_pixels
from balancer.manifest.layout import REJECTED_DIR, path_in_reason, rejected_paths
from balancer.manifest.rows import REAL, SYNTHETIC
from balancer.text.quantities import counted
from balancer.training.choice import Choice
from balancer.training.images import Decoder, fitted
from balancer.training.labels import Labels
from balancer.training.selection import select

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.config.schema import Config
    from balancer.manifest.query.rows import ManifestRows
    from balancer.storage import Storage

LOOK = 16
"""Height and width of the thumbnails that two images are compared by, in grey."""

KEPT_ENOUGH = 0.9
"""Share of the rejected candidates whose pixels must be there for all candidates to be an arm."""

_COLUMNS = (CLASS_PROPERTY, "id", "file_name", "source", "split", "parent_id")


@dataclass(frozen=True, slots=True)
class Gathered:
    """`pixels` are uint8 (size, size, 3) by id. `notes` say what was left out, and `no_unfiltered` why there
    is no arm of all candidates, or is empty."""

    split: Split
    pixels: dict[str, Pixels]
    notes: tuple[str, ...]
    no_unfiltered: str

    def array(self, role: Role) -> NDArray[np.uint8]:
        """(images, size, size, 3), in the order of `split.of(role)`."""
        return np.stack([self.pixels[each.id] for each in self.split.of(role)])


@dataclass(slots=True)
class _Reader:
    """Collects examples and their pixels."""

    size: int
    examples: list[Example]
    pixels: dict[str, Pixels]
    read: Callable[[int], None]

    def add(
        self, picture: Pixels, name: str, label: int, role: Role, kind: Kind, parent: str | None = None
    ) -> None:
        """Compared by its pixels, not by its row: the file may have changed since the row was written."""
        self.pixels[name] = np.ascontiguousarray(fitted(picture, self.size))
        self.examples.append(
            Example(
                id=name,
                label=label,
                role=role,
                kind=kind,
                phash=perceptual_hash(picture),
                pixel_sha256=pixel_sha256(picture),
                look=thumbnail(picture),
                parent=parent,
            )
        )
        self.read(len(self.examples))


def thumbnail(picture: Pixels) -> bytes:
    """Of LOOK x LOOK grey numbers around their mean, as the embeddings of the manifest are kept: half
    precision, little-endian."""
    grey = Image.fromarray(picture).convert("L").resize((LOOK, LOOK), Image.Resampling.BOX)
    numbers = np.asarray(grey, np.float32) / 255
    look: bytes = (numbers - numbers.mean()).astype("<f2").tobytes()
    return look


def gather(
    manifest: ManifestRows,
    storage: Storage,
    config: Config,
    size: int,
    read: Callable[[int], None] = lambda count: None,
) -> Gathered:
    """Read all images, and keep those that test out of those that train.

    Test images are the real ones of split `test`, or without any the hold-out's; validation images those of
    `validation`, or the hold-out's if they do not test, or one in four of those that would test.
    """
    reader = _Reader(size, [], {}, read)
    notes = [_read_rows(manifest, reader, role) for role in ("train", "validation", "test")]
    no_unfiltered = _read_rejected(manifest, storage, reader)
    if not (_has(reader, "test") and _has(reader, "validation")):
        _read_holdout(config, reader, "validation" if _has(reader, "test") else "test")
    if not _has(reader, "validation"):
        held_out = [each for each in reader.examples if each.role == "test"]
        reader.examples = [each for each in reader.examples if each.role != "test"] + deal_validation(
            held_out
        )
    split = keep_apart(reader.examples, _generated_pixels(manifest), config.verification.copies)
    return Gathered(split, reader.pixels, tuple(filter(None, notes)), no_unfiltered)


def _has(reader: _Reader, role: Role) -> bool:
    return any(each.role == role for each in reader.examples)


def _read_rows(manifest: ManifestRows, reader: _Reader, role: Role) -> str:
    """Images of one split; generated ones only to train on. Returns what the rules of splits left out."""
    real = None if role == "train" else pc.field("source") == REAL
    selection = select(manifest, _COLUMNS, Choice(role, real), may_be_empty=True)
    decoder = Decoder.of(manifest.uri, manifest.run)
    labels = Labels.of(manifest.run).numbers(selection.rows, CLASS_PROPERTY)
    for row, label in zip(selection.rows.to_pylist(), labels, strict=True):
        kind: Kind = "real" if row["source"] == REAL else "accepted"
        picture = decoder.pixels(row["file_name"], row["source"])
        reader.add(picture, row["id"], int(label), role, kind, row["parent_id"])
    return selection.remark


def _read_rejected(manifest: ManifestRows, storage: Storage, reader: _Reader) -> str:
    """Rejected candidates whose pixels were kept; or why they make no arm."""
    columns = [CLASS_PROPERTY, "id", "reason", "parent_id"]
    rows = manifest.to_table(columns, pc.field("source") == SYNTHETIC, status="rejected")
    if not rows.num_rows:
        return "no candidate was rejected, so all candidates are the accepted ones"
    files = {path_in_reason(path): path for path in storage.list(REJECTED_DIR)}
    labels = Labels.of(manifest.run).numbers(rows, CLASS_PROPERTY)
    kept = [
        (row, int(label), path)
        for row, label in zip(rows.to_pylist(), labels, strict=True)
        if (path := _place(row, files)) is not None
    ]
    if len(kept) < KEPT_ENOUGH * rows.num_rows:
        return (
            f"the pixels of {len(kept)} of {counted(rows.num_rows, 'rejected candidate')} were kept, and all"
            f" candidates need {KEPT_ENOUGH:.0%}: output.rejected_per_reason says how many a run keeps"
        )
    for row, label, path in kept:
        data = storage.read(path, max_image_bytes(manifest.run))
        picture = decode_image(data, max_pixels=max_image_pixels(manifest.run))
        reader.add(picture, f"rejected/{row['id']}", label, "train", "rejected", row["parent_id"])
    return ""


def _place(row: dict[str, Any], files: dict[str, str]) -> str | None:
    paths = (files.get(path_in_reason(place)) for place in rejected_paths(row["id"], row["reason"]))
    return next(filter(None, paths), None)


def _read_holdout(config: Config, reader: _Reader, role: Role) -> None:
    refuse_shared_holdout(config)
    audit = audit_holdout(config)
    if audit is None:
        return
    limits = config.dataset
    for name, label, path in _holdout_images(audit, list(config.classes)):
        picture = read_image(
            path,
            max_bytes=round(limits.max_image_megabytes * 1e6),
            max_pixels=round(limits.max_image_megapixels * 1e6),
        )
        reader.add(picture, name, label, role, "real")


def _holdout_images(audit: Audit, classes: Sequence[str]) -> Iterator[tuple[str, int, Path]]:
    for image in audit.images:
        if not image.marked_synthetic:
            label = classes.index(image.class_name)
            yield f"holdout/{image.file_name}", label, audit.path / image.file_name


def _generated_pixels(manifest: ManifestRows) -> frozenset[str]:
    rows = manifest.to_table(["pixel_sha256"], pc.field("source") == SYNTHETIC, status="all")
    return frozenset(filter(None, rows["pixel_sha256"].to_pylist()))


def digest(split: Split) -> str:
    """A hash of which images take part, as what, under which label."""
    text = hashlib.sha256()
    for each in split.examples:
        text.update(f"{each.id}\0{each.label}\0{each.role}\0{each.kind}\0{each.pixel_sha256}\n".encode())
    return text.hexdigest()
