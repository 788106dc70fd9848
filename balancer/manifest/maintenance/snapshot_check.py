"""Is the compacted copy what it says it is: whole files, and the rows of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from balancer.manifest.layout import INDEX_FILE
from balancer.manifest.log.reader import Entry
from balancer.manifest.row_values import Known
from balancer.manifest.runfile import RunInfo
from balancer.manifest.snapshot.build import RowsInOrder, deal, with_place
from balancer.manifest.snapshot.files import arrow_buffer, difference
from balancer.manifest.snapshot.index import MAX_FILE_BYTES, DamagedCopyError, DataFile, Index
from balancer.storage import Storage


def check_files(storage: Storage, index: Index) -> Iterator[DamagedCopyError]:
    """Files that are not what was written."""
    for file in index.files:
        if (broken := difference(storage, file)) is not None:
            yield DamagedCopyError(file.path, *broken)


def check_rows(
    storage: Storage, index: Index, entries: Sequence[Entry], info: RunInfo
) -> Iterator[DamagedCopyError]:
    """Files whose rows are not those of the log: they are dealt once more, and compared file by file.

    `entries` is the sound log, the files are whole.
    """
    covers = entries[: index.covers]
    if not covers or covers[-1].known_as != index.sha256:
        yield DamagedCopyError(INDEX_FILE, "compacted copy is of this log", "it was made of another one")
        return
    schema = info.schema()
    rows = RowsInOrder(storage, covers, schema, Known.of(info))
    files = iter(index.files)
    for values, table in deal(rows.blocks(index.layout.rows_in_block), index.layout, info):
        file = next(files, None)
        if file is None:
            yield _differs(INDEX_FILE, f"rows of {values} are in no file")
            return
        if file.values != values or not same_rows(_read(storage, file, schema), table):
            yield _differs(file.path, "it has other rows than the log")
    for file in files:
        yield _differs(file.path, "it has rows that the log has not")
    if index.rows != rows.count:
        yield _differs(INDEX_FILE, f"it says {index.rows} rows, the log has {rows.count}")


def _differs(path: str, detail: str) -> DamagedCopyError:
    return DamagedCopyError(path, "compacted rows are those of the log", detail)


def _read(storage: Storage, file: DataFile, schema: pa.Schema) -> pa.Table:
    table = pq.read_table(pa.BufferReader(arrow_buffer(storage.read(file.path, MAX_FILE_BYTES))))
    return table if table.schema.equals(with_place(schema)) else table.slice(0, 0)


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables of one schema hold the same values, NaN being the same as NaN."""
    if one.schema != other.schema or one.num_rows != other.num_rows:
        return False
    return all(_same(one[name], other[name]) for name in one.column_names)


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if pa.types.is_dictionary(one.type):
        one, other = (column.cast(one.type.value_type) for column in (one, other))
    # NaN equals nothing in Arrow, and its text is the same in Python.
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
