"""Contact sheets: thumbnails of some accepted images of each class, and some rejected for each reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from balancer.errors import BalancerError
from balancer.manifest.layout import REJECTED_DIR, path_in_reason, rejected_paths
from balancer.report.facts import Facts
from balancer.text.templates import jpeg_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import ManifestRows
    from balancer.storage import Storage

SIZE = ("width", "height")
PER_CLASS = 12
PER_REASON = 12
PER_CELL = 6
SIDE_PIXELS = 96
MAX_PIXELS = 64_000_000

MAX_GENERATED_PIXELS = 4096**2
"""The limit of generation.width and height in configs. A row may claim more, so it is not trusted."""

MAX_OTHER_BYTES = 1_000_000
"""Of a file besides its pixels: its metadata."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """`data_uri` is None if the image cannot be shown; `link` leads from the run folder to the file."""

    caption: str
    link: str
    data_uri: str | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """`title` is a class, a reason or a cell with this number of `images`."""

    title: str
    images: int
    thumbnails: tuple[Thumbnail, ...]


def contact_sheets(facts: Facts, manifest: ManifestRows, storage: Storage) -> tuple[Sheet, ...]:
    import pyarrow.compute as pc

    columns = ["id", "class", "source", "cell", "file_name", "score", *SIZE]
    rows = manifest.to_table(columns)
    rows = rows.filter(pc.equal(rows["source"], "synthetic"))
    return tuple(_sheet(count.name, rows, storage) for count in facts.classes if count.generated)


def _sheet(class_name: str, rows: pa.Table, storage: Storage) -> Sheet:
    import pyarrow.compute as pc

    images = rows.filter(pc.equal(rows["class"], class_name)).sort_by("id")
    chosen = images.take(evenly_spaced(images.num_rows, PER_CLASS)).to_pylist()
    thumbnails = (
        _thumbnail(row["file_name"], f"{row['cell']}, {_score_text(row)}", row, storage) for row in chosen
    )
    return Sheet(class_name, images.num_rows, tuple(thumbnails))


def _score_text(row: dict[str, Any]) -> str:
    return "not judged" if row["score"] is None else f"score {row['score']:.2f}"


def evenly_spaced(total: int, count: int) -> list[int]:
    """Up to `count` indices from 0 to `total` - 1. Ids sort by cell, so these spread over the cells."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def rejected_sheets(
    facts: Facts, manifest: ManifestRows, storage: Storage
) -> tuple[tuple[Sheet, ...], tuple[Sheet, ...]]:
    """Sheets of kept rejected images: by reason, the most frequent first, and by cell given up."""
    kept = list(_find_kept(manifest, storage))
    by_reason = [
        _rejected_sheet(
            reason, count, [item for item in kept if item[1]["reason"] == reason], PER_REASON, storage
        )
        for reason, count in facts.status["rejected_by_reason"].items()
    ]
    by_cell = [
        _rejected_sheet(
            given_up.cell.key,
            given_up.cell.candidates - given_up.cell.accepted,
            [item for item in kept if item[1]["cell"] == given_up.cell.key],
            PER_CELL,
            storage,
        )
        for given_up in facts.given_up
    ]
    return tuple(filter(_shows, by_reason)), tuple(filter(_shows, by_cell))


def _shows(sheet: Sheet) -> bool:
    return bool(sheet.thumbnails)


def _find_kept(manifest: ManifestRows, storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file and the row of each rejected image that was kept, in the folder of its first reason."""
    files: dict[str, list[str]] = {}
    for path in storage.list(REJECTED_DIR):
        files.setdefault(path_in_reason(path), []).append(path)
    if not files:
        return
    columns = ["id", "cell", "reason", "score", "threshold", "nearest_id", *SIZE]
    for row in manifest.to_table(columns, status="rejected").to_pylist():
        places = rejected_paths(row["id"], row["reason"])
        own = {path for place in places for path in files.pop(path_in_reason(place), ())}
        for path in sorted(own.intersection(places) or own):
            yield path, row
        if not files:  # kept images are mostly of the first rows
            return


def _rejected_sheet(
    title: str, images: int, kept: Sequence[tuple[str, dict[str, Any]]], most: int, storage: Storage
) -> Sheet:
    chosen = [kept[index] for index in evenly_spaced(len(kept), most)]
    thumbnails = (_thumbnail(path, _rejection_text(row), row, storage) for path, row in chosen)
    return Sheet(title, images, tuple(thumbnails))


def _rejection_text(row: dict[str, Any]) -> str:
    threshold = "" if row["score"] is None else f" of {row['threshold']:g}"
    nearest = f", nearest {row['nearest_id']}" if row["nearest_id"] else ""
    return f"{row['cell']}, {row['reason']}, {_score_text(row)}{threshold}{nearest}"


def _thumbnail(path: str, caption: str, row: dict[str, Any], storage: Storage) -> Thumbnail:
    pixels = _generated_pixels(row)
    try:
        data_uri = thumbnail_uri(storage.read(path, MAX_OTHER_BYTES + 4 * pixels), max_pixels=pixels)
    except BalancerError:  # a damaged image costs its thumbnail, not the report
        data_uri = None
    return Thumbnail(caption=caption, link=quote(str(PurePosixPath(path))), data_uri=data_uri)


def _generated_pixels(row: dict[str, Any]) -> int:
    """Limits decoding to the image's own size: a page has thousands, and 64 megapixels take a second."""
    width, height = ((row[name] or 0) for name in SIZE)
    return int(min(max(width, 0) * max(height, 0), MAX_GENERATED_PIXELS))


def thumbnail_uri(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """A JPEG of at most 96 x 96 pixels as a data URI; UnreadableImage for what cannot be decoded."""
    from PIL import Image

    from balancer.images import decode_image

    small = Image.fromarray(decode_image(data, max_pixels=max_pixels))
    small.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    return jpeg_uri(small)
