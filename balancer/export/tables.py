"""One table in one file: every column of the manifest, and the image files with `embed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.export.job import Job, Options
from balancer.export.metadata import class_label, hugging_face_types
from balancer.export.names import image_name
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.formats import exact
from balancer.storage.regular_files import open_regular
from balancer.text.names import free_names
from balancer.training.labels import plain

OPTIONS = frozenset({"embed"})

IDENTITY = b"balancer.export"
IMAGE, LABEL = "image", "label"

BATCH_ROWS = 65_536
BATCH_ROWS_EMBEDDED = 256
"""Few rows with images fit into memory."""


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return list(schema.names)


def encode_identity(job: Job) -> bytes:
    return json.dumps(job.destination.identity, sort_keys=True).encode()


def exported_schema(job: Job) -> pa.Schema:
    """Types that all readers know: no dictionaries, no 16-bit floats, seeds as text. With images, metadata
    tells Hugging Face's `datasets` which column they are in."""
    empty = _plain(job.rows.schema.empty_table(), job.options.embed)
    metadata = {IDENTITY: encode_identity(job)}
    if not job.options.embed:
        return empty.schema.with_metadata(metadata)
    image = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    label = pa.field(LABEL, pa.int64())
    metadata |= hugging_face_types({IMAGE: {"_type": "Image"}, LABEL: class_label(job.labels.classes)})
    return pa.schema([image, label, *empty.schema], metadata=metadata)


def batches(job: Job, schema: pa.Schema) -> Iterator[pa.Table]:
    done = 0
    size = BATCH_ROWS_EMBEDDED if job.options.embed else BATCH_ROWS
    for batch in job.rows.to_batches(max_chunksize=size):
        table = _plain(pa.Table.from_batches([batch]), job.options.embed)
        if job.options.embed:
            rows = pa.Table.from_batches([batch])
            table = table.add_column(0, LABEL, [job.labels.numbers(rows, CLASS_PROPERTY)])
            table = table.add_column(0, IMAGE, _images(job, batch))
        done += table.num_rows
        job.progress(done)
        yield table.cast(schema)


def _plain(rows: pa.Table, embed: bool) -> pa.Table:
    columns: dict[str, Any] = {name: plain(rows[name]) for name in rows.column_names}
    size = rows.schema.field(EMBEDDING).type.list_size
    columns[EMBEDDING] = rows[EMBEDDING].cast(pa.list_(pa.float32(), size))
    names = free_names(rows.column_names, [IMAGE, LABEL] if embed else [])
    return exact(pa.table({names[name]: column for name, column in columns.items()}))


def _images(job: Job, batch: pa.RecordBatch) -> pa.Array:
    rows = batch.select(["id", "file_name", "source", "sha256"]).to_pylist()
    data = pa.array([job.image(row) for row in rows], pa.binary())
    names = pa.array([image_name(row["id"], row["file_name"]) for row in rows], pa.string())
    return pa.StructArray.from_arrays([data, names], names=["bytes", "path"])


def is_own(path: Path, job: Job, read_schema: Callable[[BinaryIO], pa.Schema]) -> bool:
    """Whether a file is of this export; it may be any file."""
    try:
        with open_regular(path, follow_links=False) as file:
            metadata = read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return bool(metadata.get(IDENTITY) == encode_identity(job))
