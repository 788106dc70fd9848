"""Read files that hold images: Parquet and Arrow tables with a column of images, and WebDataset shards.

Only processes with limits call this. Nothing is unpacked on disk. An image inside a file has a name below the
file's, as if that were a folder: `train.parquet/12`, `shard-0001.tar/00012.jpg`.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from balancer.dataset.readers.annotation_files import NO_CLASS
from balancer.dataset.readers.table_values import is_plain, plain_values, table_key
from balancer.storage.regular_files import TooLargeError, open_regular
from balancer.text.json_reading import read_json

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW, TAR = ".parquet", ".arrow", ".tar"
SUFFIXES = (PARQUET, ARROW, TAR)

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "bytes", "image_bytes", "picture", "photo")
"""Columns of plain bytes that hold images; a column of `{bytes, path}` does whatever its name is."""

ARROW_MAGIC = b"ARROW1"
"""A file begins with it, a stream does not."""

LABEL_SUFFIXES = ("cls", "json")
_NOT_PLAIN = "not a plain file with a plain name in its shard"
PICTURES = frozenset("png jpg jpeg jpe jfif webp tif tiff bmp gif avif heic heif".split())
NO_IMAGES = "no column of images"
MAX_LABEL_BYTES = 1_000_000
BATCH_ROWS = 1_000

Row = list[tuple[str, object]]


def packed_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """A row for each image in a file, named as in the file. Raises ValueError if there can be none."""
    suffix = _suffix(path)
    with open_regular(path, follow_links=False) as file:
        try:
            yield from _tar_rows(file) if suffix == TAR else _table_rows(file, suffix)
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error


def read_member(path: str | os.PathLike[str], member: str, max_bytes: int) -> bytes:
    """The bytes of one image. Raises OSError or ValueError."""
    about = os.stat(path, follow_symlinks=False)
    identity = (os.fspath(path), about.st_mtime_ns, about.st_size)
    return _last.reader(identity)(member, max_bytes)


@dataclass(slots=True)
class _Last:
    """The file read last; it stays open, because neighbours are read together."""

    identity: tuple[str, int, int] | None = None
    file: BinaryIO | None = None
    read: Callable[[str, int], bytes] | None = None

    def reader(self, identity: tuple[str, int, int]) -> Callable[[str, int], bytes]:
        if self.read is None or self.identity != identity:
            if self.file is not None:
                self.file.close()
            self.read, path = None, identity[0]
            self.file, suffix = open_regular(path, follow_links=False), _suffix(path)
            self.read = _tar_reader(self.file) if suffix == TAR else _Table(self.file, suffix).read
            self.identity = identity
        return self.read


_last = _Last()


# Tables


def _table_rows(file: BinaryIO, suffix: str) -> Iterator[Row]:
    import pyarrow as pa

    try:
        table = _Table(file, suffix)
        plain = [field.name for field in table.schema if is_plain(field.type)]
        names = _class_names(table.schema)
        number = 0
        for batch in table.light_batches(plain):
            columns = [_named(plain_values(batch[name]), names.get(name)) for name in plain]
            for paths, *values in zip(table.paths(batch), *columns, strict=True):
                yield [("file_name", f"{number}{_suffix(paths or '')}"), *zip(plain, values, strict=True)]
                number += 1
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _named(values: list[object], names: Sequence[str] | None) -> list[object]:
    """Class labels by name, where the file says them."""
    if names is None:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]


def _class_names(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """The names of `ClassLabel` columns, as the `datasets` library writes them."""
    try:
        about = read_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"].items()
        found = {name: value["names"] for name, value in features if value.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, AttributeError, TypeError):
        return {}
    return {name: names for name, names in found.items() if isinstance(names, list)}


class _Table:
    """A Parquet file, or an Arrow stream or file, read forwards; one batch stays in memory."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        import pyarrow.parquet as pq

        self._file, self._parquet = file, pq.ParquetFile(file) if suffix == PARQUET else None
        self.schema: pa.Schema = self._parquet.schema_arrow if self._parquet else _open_arrow(file).schema
        self._column, self._has_path = _image_column(self.schema)
        self._start, self._batch, self._batches = 0, None, iter(())

    def light_batches(self, plain: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches with plain columns and the images' names; Parquet leaves the images themselves unread."""
        if self._parquet is None:
            yield from _arrow_batches(self._file)
            return
        columns = [*plain, *([f"{self._column}.path"] if self._has_path else [])]
        if columns:
            yield from self._parquet.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)
            return
        raise ValueError("no column besides that of the images, so nothing names a class")

    def paths(self, batch: pa.RecordBatch) -> Iterator[str | None]:
        if not self._has_path:
            return iter([None] * batch.num_rows)
        values: list[str | None] = batch[self._column].field("path").to_pylist()
        return iter(values)

    def read(self, member: str, max_bytes: int) -> bytes:
        row = int(posixpath.splitext(member)[0])
        if row < self._start or self._batch is None:
            self._start, self._batches = self._heavy_batches(row)
            self._batch = None
        while self._batch is None or row >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows if self._batch is not None else 0
            if (batch := next(self._batches, None)) is None:
                self._batch = None
                raise ValueError("no such row")
            self._batch = batch
        column = self._batch[self._column]
        if self._has_path or str(column.type).startswith("struct"):
            column = column.field("bytes")
        value = column[row - self._start]
        if not value.is_valid:
            raise ValueError("the file has no bytes of it, only a path")
        if (num_bytes := value.as_buffer().size) > max_bytes:
            raise TooLargeError(member, num_bytes, max_bytes)
        return bytes(value.as_buffer())

    def _heavy_batches(self, row: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        """The row at which batches begin, that of `row` or an earlier one, and the batches."""
        if self._parquet is None:
            return 0, _arrow_batches(self._file)
        about, start, group = self._parquet.metadata, 0, 0
        while group < about.num_row_groups - 1 and start + about.row_group(group).num_rows <= row:
            start += about.row_group(group).num_rows
            group += 1
        groups = range(group, about.num_row_groups)
        return start, self._parquet.iter_batches(
            64, row_groups=groups, columns=[self._column], use_threads=False
        )


def _image_column(schema: pa.Schema) -> tuple[str, bool]:
    """The column of images, and whether it has their names."""
    from pyarrow import types

    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return field.name, field.type.get_field_index("path") >= 0
    for field in schema:
        if (types.is_binary(field.type) or types.is_large_binary(field.type)) and (
            field.name.lower() in IMAGE_COLUMNS
        ):
            return field.name, False
    raise ValueError(f"{NO_IMAGES}; the columns are {', '.join(schema.names[:10])}")


def _open_arrow(file: BinaryIO) -> Any:
    import pyarrow as pa

    file.seek(0)
    is_file = file.read(len(ARROW_MAGIC)) == ARROW_MAGIC
    file.seek(0)
    return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


def _arrow_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    reader = _open_arrow(file)
    if hasattr(reader, "get_batch"):
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader


# Shards


def _tar_rows(file: BinaryIO) -> Iterator[Row]:
    """Rows of samples: files whose names are equal up to the first dot of the last part."""
    key, image = "", ""
    labels: dict[str, object] = {}
    with closing(tarfile.open(fileobj=file, mode="r:")) as shard:
        for name, member in _members(shard, file):
            mine, suffix = _split(name)
            if not _is_usable(name, member):
                if suffix in PICTURES and not (member.isdir() or posixpath.basename(name).startswith(".")):
                    yield [("file_name", name), ("class", ""), (NO_CLASS, _NOT_PLAIN)]
                continue
            if mine != key:
                yield from _sample(image, labels)
                key, image, labels = mine, "", {}
            if suffix in PICTURES and image:
                yield [
                    ("file_name", name),
                    ("class", ""),
                    (NO_CLASS, f"{image} is the picture of its sample"),
                ]
            elif suffix in PICTURES:
                image = name
            elif suffix in LABEL_SUFFIXES and member.size <= MAX_LABEL_BYTES:
                labels |= _labels(suffix, _content(shard, member))
        yield from _sample(image, labels)


def _sample(image: str, labels: Mapping[str, object]) -> Iterator[Row]:
    if image:
        values = {name: value for name, value in labels.items() if name != "cls"}
        if "class" not in values and "cls" in labels:
            values["class"] = labels["cls"]
        yield [
            ("file_name", image),
            *((name, value) for name, value in values.items() if name != "file_name"),
        ]


def _labels(suffix: str, data: bytes) -> dict[str, object]:
    try:
        if suffix == "cls":
            return {"cls": data.decode().strip()}
        values = read_json(data)
    except ValueError:
        return {}
    plain = (str, int, float, bool)
    items = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in items if isinstance(value, plain) and name != "cls"}


def _tar_reader(file: BinaryIO) -> Callable[[str, int], bytes]:
    places: dict[str, tuple[int, int]] = {}
    shard = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # stays open with its file
    for name, member in _members(shard, file):
        if _is_usable(name, member):  # of one name the first counts, as in rows
            places.setdefault(table_key(name), (member.offset_data, member.size))

    def read(name: str, max_bytes: int) -> bytes:
        if name not in places:
            raise ValueError("no such file in the shard")
        offset, size = places[name]
        if size > max_bytes:
            raise TooLargeError(name, size, max_bytes)
        file.seek(offset)
        return file.read(size)

    return read


def _members(shard: tarfile.TarFile, file: BinaryIO) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """What is in a shard, with its names. Raises ValueError if it does not end as shards do."""
    for member in shard:
        shard.members = []  # type: ignore[attr-defined]  # else it keeps all of them
        yield member.name.removeprefix("./"), member
    file.seek(shard.offset)  # tarfile ends without a word where a header is damaged
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise ValueError(f"it is damaged or cut off at byte {shard.offset:,}")


def _is_usable(name: str, member: tarfile.TarInfo) -> bool:
    """Whether it is a plain file with a plain name, not a link, a device or a sparse file."""
    parts = name.split("/")
    hidden = any(part in ("", ".", "..") for part in parts) or parts[-1].startswith(".")
    return member.isreg() and not member.issparse() and not hidden


def _content(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = shard.extractfile(member)
    return b"" if file is None else file.read()


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _suffix(path: str | os.PathLike[str]) -> str:
    return posixpath.splitext(os.fspath(path))[1].lower()
