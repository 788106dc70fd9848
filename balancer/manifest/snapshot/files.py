"""The files of a manifest as Arrow gets them: buffers of its own, read and checked by whoever asks for rows.

Arrow's threads may be at work when the interpreter ends. One that calls Python then, to open a file or to let
go of a Python object, takes the process down or waits for ever. So Arrow is given buffers, and never a file,
a path or a Python object.

A fragment of the log is read whole and must have the sha256 it had. Of a compacted file the footer is
checked, and only the pages that a scan looks at are read; Arrow compares the checksum of each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from balancer.errors import BalancerError
from balancer.manifest.layout import DATA_DIR
from balancer.manifest.log.fragment import MAX_FRAGMENT_BYTES, BrokenFragmentError
from balancer.manifest.row_values import Known, check_together, wrong_values
from balancer.manifest.snapshot.index import MAX_FILE_BYTES, DamagedCopyError, DataFile
from balancer.storage import LocalStorage, MissingFileError, Storage, open_storage

GONE = "it is missing; if the manifest was compacted anew since, open it again"

PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
LOG = ds.IpcFileFormat()

GAP_BYTES = 16 << 10
"""Parts of a file that are nearer to each other are read as one: a request costs more than these bytes."""

SPARSE = pa.system_memory_pool()
"""Memory from it is taken when it is first written to; Arrow's own pool takes it all at once."""

ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a scan looks at: columns, and rows by a condition. `schema` is that of the columns."""

    schema: pa.Schema
    condition: pc.Expression | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A part of a dataset whose bytes are in memory; None if no row of the file can meet the condition."""

    fragment: ds.Fragment | None
    num_bytes: int
    path: str = ""
    rows: pa.Table | None = None
    """Of a fragment of the log: to be checked before anyone gets them."""


class ManifestFiles:
    """Loads the files it was made for, and no others. It can be pickled, so that workers can read."""

    def __init__(
        self,
        storage: Storage,
        compacted: Mapping[str, DataFile],
        committed: Mapping[str, str],
        known: Known | None = None,
    ) -> None:
        self.storage = storage
        self._compacted = compacted
        self._committed = committed
        self._known = known
        self.problem: BalancerError | None = None
        """The last one met: a library in between may not pass it on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.storage.uri, self._compacted, self._committed, self._known)

    def num_bytes(self, path: str) -> int:
        """Of a compacted file. Fragments of the log are small; their size is not known before."""
        return self._compacted[path].num_bytes if path in self._compacted else 0

    def load(self, path: str, holds: pc.Expression, wanted: Wanted) -> Loaded:
        """A file of which all rows are such as `holds` says."""
        try:
            if path in self._committed:
                return self._fragment(path, holds, wanted)
            return self._data_file(self._compacted[path], holds, wanted)
        except BalancerError as error:
            self.problem = error
            raise

    def check(self, together: Sequence[Loaded]) -> None:
        """BrokenFragmentError if a row has a value that no run can have written."""
        fragments = [(one.path, one.rows) for one in together if one.rows is not None]
        try:
            check_together(fragments, self._known)
        except BalancerError as error:
            self.problem = error
            raise

    def check_compacted(self, batch: pa.RecordBatch) -> None:
        """DamagedCopyError if a row has a value that no run can have written: a copy with valid checksums may
        still say anything."""
        if not self._compacted or self._known is None:
            return
        rows = pa.Table.from_batches([batch])
        own = {  # whoever asks may name a column twice
            column.name: number
            for number, column in enumerate(rows.schema)
            if self._known.types.get(column.name) == column.type
        }
        for rule, detail in wrong_values(rows.select([*own.values()]), self._known):
            self.problem = DamagedCopyError(DATA_DIR, rule, detail)
            raise self.problem

    def damage(self) -> DamagedCopyError | None:
        """The first compacted file that is not what it was, found by reading all of them."""
        for file in self._compacted.values():
            if (detail := difference(self.storage, file)) is not None:
                return DamagedCopyError(file.path, *detail)
        return None

    def _fragment(self, path: str, holds: pc.Expression, wanted: Wanted) -> Loaded:
        try:
            data = self.storage.read(path, MAX_FRAGMENT_BYTES)
        except MissingFileError:
            raise BrokenFragmentError(path, "log without gaps", "it is missing, and was there") from None
        if hashlib.sha256(data).hexdigest() != self._committed[path]:
            raise BrokenFragmentError(path, "checksum", "its bytes are not those that were there")
        buffer, rows = _narrowed(data, wanted.schema.names)
        return Loaded(LOG.make_fragment(buffer, partition_expression=holds), buffer.size, path, rows)

    def _data_file(self, file: DataFile, holds: pc.Expression, wanted: Wanted) -> Loaded:
        try:
            with _opened(self.storage, file.path) as read_range:
                return _loaded(file, read_range, holds, wanted, self.storage)
        except MissingFileError:
            raise DamagedCopyError(file.path, "compacted files are there", GONE) from None


def difference(storage: Storage, file: DataFile) -> tuple[str, str] | None:
    """The rule that a compacted file breaks, and how; None if it is what was written."""
    try:
        data = storage.read(file.path, MAX_FILE_BYTES)
    except MissingFileError:
        return "compacted files are there", GONE
    if len(data) != file.num_bytes:
        return "compacted files have their size", f"it has {len(data)} bytes, the index says {file.num_bytes}"
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return "compacted files have their sha256", "its bytes are not those that were written"
    return None


def arrow_buffer(data: bytes) -> pa.Buffer:
    """A copy that Arrow owns: its threads may let go of it at any time, without the interpreter's lock."""
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return buffer


def _reopened(
    uri: str, compacted: Mapping[str, DataFile], committed: Mapping[str, str], known: Known | None
) -> ManifestFiles:
    return ManifestFiles(open_storage(uri, create=False), compacted, committed, known)


def _narrowed(data: bytes, columns: Sequence[str]) -> tuple[pa.Buffer, pa.Table]:
    """A fragment with these of its columns: rows that a query keeps would keep all of its bytes in memory."""
    schema = pa.ipc.open_file(pa.py_buffer(data)).schema
    included = [position for position, name in enumerate(schema.names) if name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
    if len(included) == len(schema):
        buffer = arrow_buffer(data)
        return buffer, pa.ipc.open_file(buffer, options=options).read_all()
    table = pa.ipc.open_file(pa.py_buffer(data), options=options).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue(), table


# ---- compacted files -------------------------------------------------------------------------------


def _loaded(
    file: DataFile, read_range: ReadRange, holds: pc.Expression, wanted: Wanted, storage: Storage
) -> Loaded:
    """The file as a buffer of its size, of which only what the scan looks at is filled in."""
    image = pa.allocate_buffer(file.num_bytes, memory_pool=SPARSE)
    view = memoryview(image).cast("B")
    start = file.num_bytes - file.footer_bytes
    footer = read_range(start, file.footer_bytes + 1)  # one more, to see that the file ends there
    if len(footer) != file.footer_bytes:
        raise _wrong_size(file, storage)
    if hashlib.sha256(footer).hexdigest() != file.footer_sha256:
        raise DamagedCopyError(file.path, "compacted files have their sha256", "its footer was changed")
    view[start:] = footer
    fragment = PARQUET.make_fragment(image, partition_expression=holds)
    if wanted.condition is not None:
        fragment = fragment.subset(filter=wanted.condition, schema=wanted.schema)
    groups = [group.id for group in fragment.row_groups]
    num_bytes = file.footer_bytes
    for begin, end in _joined(_column_chunks(fragment.metadata, groups, set(wanted.schema.names))):
        part = read_range(begin, end - begin)
        if len(part) != end - begin:
            raise _wrong_size(file, storage)
        view[begin:end] = part
        num_bytes += len(part)
    return Loaded(fragment if groups else None, num_bytes)


def _wrong_size(file: DataFile, storage: Storage) -> DamagedCopyError:
    detail = f"it has {storage.info(file.path).num_bytes} bytes, the index says {file.num_bytes}"
    return DamagedCopyError(file.path, "compacted files have their size", detail)


def _column_chunks(
    metadata: pq.FileMetaData, groups: Sequence[int], columns: set[str]
) -> Iterator[tuple[int, int]]:
    """Where the columns are: from a byte to the one behind."""
    schema = metadata.schema
    paths = (schema.column(number).path for number in range(metadata.num_columns))
    leaves = [number for number, path in enumerate(paths) if not columns.isdisjoint(_beginnings(path))]
    for group in groups:
        of_group = metadata.row_group(group)
        for number in leaves:
            chunk = of_group.column(number)
            begin = chunk.data_page_offset
            if chunk.has_dictionary_page:
                begin = min(begin, chunk.dictionary_page_offset)
            yield begin, begin + chunk.total_compressed_size


def _beginnings(path: str) -> Iterator[str]:
    """The columns that a path can be in: their names may have dots, too."""
    parts = path.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _joined(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Parts in order, those with a small gap between them as one."""
    last: tuple[int, int] | None = None
    for begin, end in sorted(parts):
        if last is None or begin - last[1] > GAP_BYTES:
            if last is not None:
                yield last
            last = begin, end
        else:
            last = last[0], max(last[1], end)
    if last is not None:
        yield last


@contextmanager
def _opened(storage: Storage, path: str) -> Iterator[ReadRange]:
    """Reads any part of a file, shorter where it ends; MissingFileError if there is none."""
    if isinstance(storage, LocalStorage) and (target := storage.path_on_disk(path)) is not None:
        try:
            file = pa.OSFile(os.fsencode(target))  # a str must be UTF-8
        except FileNotFoundError as error:
            raise MissingFileError(f"{target} is missing") from error
        with file:
            yield lambda start, length: file.read_at(length, start)
    else:
        yield lambda start, length: storage.read_range(path, start, length)
