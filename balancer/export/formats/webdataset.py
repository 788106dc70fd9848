"""`webdataset`: tar shards of a bounded size, `train-000000.tar` and so on.

A sample is an image file, its class as a number (`.cls`) and what else is known (`.json`). Readers take every
file of a kind by one extension, so images of several kinds are all called `.jpg`: they decode by content.
Samples come in an order of no meaning, by a hash, and every shard has all classes in it; the same rows always
make the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, Row, rows_of
from balancer.export.metadata import json_row, metadata_columns, metadata_table, recipe_of
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
            rows = _in_no_order(job.of_split(split))
            names = [f"{stem}{suffix}" for stem, _ in _named(rows)]
            table = metadata_table(rows, job.manifest.run, names)
            sizes = [
                _size(image_bytes, row)
                for image_bytes, row in zip(rows["num_bytes"].to_pylist(), rows_of(table), strict=True)
            ]
            for number, (start, stop) in enumerate(_cuts(sizes, round(job.options.shard_megabytes * 1e6))):
                of_shard = table.slice(start, stop - start)
                make = functools.partial(_tar, job, rows.slice(start, stop - start), of_shard)
                folder.put_made(f"{split}-{number:06d}.tar", recipe_of(of_shard), make)
                done += stop - start
                job.progress(done)


_NAMED = ["id", "file_name"]


def _named(rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Stem and suffix of each image."""
    for row in rows_of(rows.select(_NAMED)):
        stem, _, suffix = image_name(row["id"], row["file_name"]).rpartition(".")
        yield stem, f".{suffix}"


def _suffix(rows: pa.Table) -> str:
    """The one of all images, in all splits."""
    return PNG if {suffix for _, suffix in _named(rows)} == {PNG} else JPEG


def _in_no_order(rows: pa.Table) -> pa.Table:
    """By a hash, but the fullest row first: `datasets` takes the fields of all samples from the first few."""
    ids = rows["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda place: hashlib.blake2b(ids[place].encode()).digest())
    given = sum(column.is_valid().to_numpy().astype(int) for column in rows.columns)
    first = max(order, key=lambda place: given[place], default=None)
    return rows.take(sorted(order, key=lambda place: place != first))


def _size(image_bytes: int, row: Row) -> int:
    """What a sample takes in a tar file: its three members, each with a header."""
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in (image_bytes, BLOCK, len(_about(row))))


def _cuts(sizes: Sequence[int], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Where shards begin and end: LEAST_SHARDS of about one size, or more if these are over `max_bytes`.
    A larger sample has a shard for itself. One worker of a loader reads a whole shard, so there are several.
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
    for row, about, label in zip(rows_of(rows), rows_of(table), labels, strict=True):
        stem = about["file_name"].rpartition(".")[0]
        yield _member(about["file_name"], job.image(row))
        yield _member(f"{stem}.cls", str(label).encode())
        yield _member(f"{stem}.json", _about(about))
    yield END


def _about(row: Row) -> bytes:
    told = {name: value for name, value in json_row(row).items() if value != []}  # of no type for `datasets`
    return json.dumps(told, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def _member(name: str, data: bytes) -> bytes:
    """One file of a tar archive, with no owner and no time, so that the same file gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)
