"""A manifest as a Ray Data dataset: rows are given to Ray, pixels are read where they are needed.

Ray Data is never let near a file of the manifest. It runs code from Arrow extension types that it meets in
files (CVE-2026-41486); the rows it gets have been read and checked here, and have plain types.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.text.names import free_names
from balancer.training.columns import plain_table, usual_columns
from balancer.training.extras import need
from balancer.training.hugging_face import IMAGE, LABEL
from balancer.training.images import Decoder, check_size, fitted
from balancer.training.labels import Labels
from balancer.training.selection import select, warn_of_left_out

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from balancer.images import Pixels
    from balancer.manifest.query.rows import ManifestRows
    from balancer.training.choice import Choice

BLOCK_BYTES = 64_000_000
"""Pixels of one block, which a worker holds at once."""


def ray_dataset(
    manifest: ManifestRows, choice: Choice, columns: Sequence[str] | None, size: int | None
) -> ray.data.Dataset:
    check_size(size)
    library = need("ray.data", "ray-data")
    names = usual_columns(manifest.run, columns)
    selection = select(manifest, [*names, "file_name", "source", "width", "height"], choice)
    warn_of_left_out(selection)
    rows = selection.rows
    table = plain_table(rows, list(dict.fromkeys([*names, "file_name", "source"])))
    table = table.rename_columns(free_names(table.column_names, (IMAGE, LABEL)))
    table = table.append_column(LABEL, [Labels.of(manifest.run).numbers(rows, CLASS_PROPERTY)])
    length = _block_rows(rows)
    blocks = [table.slice(start, length) for start in range(0, table.num_rows, length)]
    read = functools.partial(_with_pixels, decoder=Decoder.of(manifest.uri, manifest.run), size=size)
    dataset: ray.data.Dataset = library.from_arrow(blocks)
    return dataset.map_batches(read, batch_size=None, batch_format="pyarrow")


def _block_rows(rows: pa.Table) -> int:
    pixels = pc.mean(pc.multiply(rows["width"].cast("int64"), rows["height"].cast("int64"))).as_py() or 1
    return max(1, min(1024, round(BLOCK_BYTES / (3 * pixels))))


def _with_pixels(rows: pa.Table, decoder: Decoder, size: int | None = None) -> pa.Table:
    """Rows with a column of tensors, all of one shape or not. Arrow in and out: other formats of Ray's have
    no missing whole numbers."""
    extensions = need("ray.data.extensions", "ray-data")
    named = zip(rows["file_name"].to_pylist(), rows["source"].to_pylist(), strict=True)
    images = _together([fitted(decoder.pixels(name, source), size) for name, source in named])
    return rows.append_column(IMAGE, extensions.ArrowTensorArray.from_numpy(images))


def _together(images: Sequence[Pixels]) -> np.ndarray[Any, Any]:
    """(N, height, width, 3), or N arrays if their sizes differ."""
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    apart = np.empty(len(images), object)
    for place, image in enumerate(images):  # numpy would look for a common shape
        apart[place] = image
    return apart
