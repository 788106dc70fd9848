"""`webdataset`: tar shards of a bounded size, `train-000000.tar` and so on.

A sample is an image file, its class as a number (`.cls`) and its metadata (`.json`). Readers find images by
one extension and decode by content, so images of mixed formats are all called `.jpg`. Samples are shuffled by
a hash, which spreads the classes over the shards; the same rows always make the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from balancer.cells import CLASS_PROPERTY
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, Row, iterate_rows
from balancer.export.metadata import hash_rows, json_row, metadata_columns, metadata_table
from balancer.export.names import image_name

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = frozenset({"shard_megabytes"})

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)

LEAST_SHARDS = 8

PNG, JPEG = ".png", ".jpg"


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return [*metadata_columns(schema), "num_bytes"]


def write(job: Job) -> None:
    done, suffix = 0, _suffix(job.rows)
    with claimed(job.destination) as folder:
        for split in job.splits:
            rows = _shuffled(job.rows_in_split(split))
            names = [f"{stem}{suffix}" for stem, _ in _file_names(rows)]
            table = metadata_table(rows, job.manifest.run, names)
            sizes = [
                _size(image_bytes, row)
                for image_bytes, row in zip(rows["num_bytes"].to_pylist(), iterate_rows(table), strict=True)
            ]
            for number, (start, stop) in enumerate(_cuts(sizes, round(job.options.shard_megabytes * 1e6))):
                shard = table.slice(start, stop - start)
                make = functools.partial(_tar, job, rows.slice(start, stop - start), shard)
                folder.put_generated(f"{split}-{number:06d}.tar", hash_rows(shard), make)
                done += stop - start
                job.progress(done)


def _file_names(rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Stem and suffix of each image."""
    for row in iterate_rows(rows.select(["id", "file_name"])):
        stem, _, suffix = image_name(row["id"], row["file_name"]).rpartition(".")
        yield stem, f".{suffix}"


def _suffix(rows: pa.Table) -> str:
    """One suffix for all images of all splits."""
    return PNG if {suffix for _, suffix in _file_names(rows)} == {PNG} else JPEG


def _shuffled(rows: pa.Table) -> pa.Table:
    """By a hash, but the fullest row first: `datasets` infers the fields from the first few samples."""
    ids = rows["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda index: hashlib.blake2b(ids[index].encode()).digest())
    filled = sum(column.is_valid().to_numpy().astype(int) for column in rows.columns)
    first = max(order, key=lambda index: filled[index], default=None)
    return rows.take(np.array(sorted(order, key=lambda index: index != first), np.int64))


def _size(image_bytes: int, row: Row) -> int:
    """Bytes of a sample in a tar file: its three members, each with a header."""
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in (image_bytes, BLOCK, len(_json_bytes(row))))


def _cuts(sizes: Sequence[int], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Start and end of each shard: LEAST_SHARDS of similar size, or more if they would exceed `max_bytes`.
    A larger sample has a shard of its own. Several shards let several loader workers read.
    """
    even = sum(sizes) / LEAST_SHARDS
    start, size, before, full = 0, len(END), 0, even
    for place, takes in enumerate(sizes):
        if place > start and (size + takes > max_bytes or before >= full):
            yield start, place
            start, size, full = place, len(END), (before // even + 1) * even
        size += takes
        before += takes
    if sizes:
        yield start, len(sizes)


def _tar(job: Job, rows: pa.Table, table: pa.Table) -> Iterator[bytes]:
    labels = job.labels.numbers(rows, CLASS_PROPERTY).tolist()
    for row, about, label in zip(iterate_rows(rows), iterate_rows(table), labels, strict=True):
        stem = about["file_name"].rpartition(".")[0]
        yield _member(about["file_name"], job.image(row))
        yield _member(f"{stem}.cls", str(label).encode())
        yield _member(f"{stem}.json", _json_bytes(about))
    yield END


def _json_bytes(row: Row) -> bytes:
    # Without empty lists, for which `datasets` can infer no type.
    values = {name: value for name, value in json_row(row).items() if value != []}
    return json.dumps(values, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def _member(name: str, data: bytes) -> bytes:
    """One file of a tar archive, without owner and time: the same file gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)
