"""Contact sheets: a few of each class's accepted images, small enough to live inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from balancer.errors import BalancerError
from balancer.report.facts import Facts

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query import Manifest
    from balancer.storage import Storage

PER_CLASS = 12
SIDE_PIXELS = 96
MAX_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """`data_uri` is None if the image cannot be shown; `link` leads from the report to the file."""

    caption: str
    link: str
    data_uri: str | None


@dataclass(frozen=True, slots=True)
class Sheet:
    class_name: str
    images: int
    thumbnails: tuple[Thumbnail, ...]


def contact_sheets(facts: Facts, manifest: Manifest, storage: Storage) -> tuple[Sheet, ...]:
    import pyarrow.compute as pc

    columns = ["id", "class", "source", "cell", "file_name", "score"]
    rows = manifest.to_table(columns)
    rows = rows.filter(pc.equal(rows["source"], "synthetic"))
    return tuple(_sheet(count.name, rows, storage) for count in facts.classes if count.generated)


def _sheet(class_name: str, rows: pa.Table, storage: Storage) -> Sheet:
    import pyarrow.compute as pc

    of_class = rows.filter(pc.equal(rows["class"], class_name)).sort_by("id")
    chosen = of_class.take(evenly_spaced(of_class.num_rows, PER_CLASS)).to_pylist()
    return Sheet(class_name, of_class.num_rows, tuple(_thumbnail(row, storage) for row in chosen))


def evenly_spaced(total: int, count: int) -> list[int]:
    """Up to `count` indices from 0 to `total` - 1. Ids sort by cell, so these spread over the cells."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _thumbnail(row: dict[str, Any], storage: Storage) -> Thumbnail:
    try:
        data_uri = thumbnail_uri(storage.read(row["file_name"]))
    except (BalancerError, OSError):  # a damaged image costs its thumbnail, not the report
        data_uri = None
    return Thumbnail(
        caption=f"{row['cell']}, score {row['score']:.2f}",
        link="./" + quote(str(PurePosixPath(row["file_name"]))),
        data_uri=data_uri,
    )


def thumbnail_uri(data: bytes) -> str:
    """A JPEG of at most 96 x 96 pixels as a data URI. Raises OSError for what is no PNG or JPEG."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f"{image.width} x {image.height} pixels are too many for a thumbnail")
        small = image.convert("RGB")
    small.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
