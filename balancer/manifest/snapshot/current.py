"""`manifest/current.parquet`: the accepted images in one plain file, for readers that do not know the log.

Whoever closes the log writes it, so it is up to date after every command that commits. It is behind while a
run is in progress, and after a driver that was killed: its metadata says which fragment it reaches, and
`head.json` which there is. It can be lost without loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balancer.errors import ManifestError
from balancer.manifest.columns import names_where
from balancer.manifest.layout import CURRENT_FILE
from balancer.manifest.log.fragment import Link
from balancer.manifest.log.head import Head, read_head
from balancer.manifest.log.reader import ID, last_seq
from balancer.manifest.maintenance.snapshot_check import same_rows
from balancer.manifest.rows import ACCEPTED
from balancer.manifest.runfile import read_run
from balancer.manifest.snapshot.dataset import RowSource
from balancer.manifest.snapshot.files import arrow_buffer
from balancer.manifest.snapshot.index import MAX_FILE_BYTES, STATUS
from balancer.storage import MissingFileError, Storage
from balancer.text.json_reading import read_json

METADATA = b"balancer.current"
"""Key of the file's metadata: JSON with `run_id`, and `seq` and `sha256` of the last fragment it covers."""

LEFT_OUT = names_where(lambda column: column.large)
"""They are in the log."""

ROW_GROUP_ROWS = 65_536

ROUNDS = 3
"""Others may commit while the file is written. Whoever still does after so many rounds will write it."""

TAIL_BYTES = 64 << 10
"""Enough for the footer of most files."""

MAGIC_BYTES = 8
"""Of Parquet: the footer's length, and "PAR1"."""

REWRITE = "no row is lost: `balancer compact RUN --rebuild` writes it anew"


def write_current(storage: Storage) -> None:
    """Write the file from the log as it is now, and again if somebody else commits meanwhile."""
    for _ in range(ROUNDS):
        source = RowSource(storage, read_run(storage))
        storage.replace(CURRENT_FILE, _encoded(source))
        if last_seq(storage) <= source.reach[0]:
            return


def renew_current(storage: Storage, *, rebuild: bool = False) -> bool:
    """Write the file if it is missing, damaged or behind the log, or to `rebuild` it; says whether it did."""
    info = read_run(storage)
    last, head = last_seq(storage), read_head(storage, info.run_id)
    if not last:
        return False
    if not rebuild and head is not None and head.seq == last:
        try:
            if read_reach(storage) == head:
                return False
        except ManifestError:
            pass  # it is written anew
    write_current(storage)
    return True


def read_reach(storage: Storage) -> Head | None:
    """How far the file reaches; None if there is none, ManifestError if it cannot be read."""
    try:
        size = storage.info(CURRENT_FILE).num_bytes
        tail = storage.read_range(CURRENT_FILE, max(size - TAIL_BYTES, 0), TAIL_BYTES)
        footer_bytes = int.from_bytes(tail[-MAGIC_BYTES:-4], "little") + MAGIC_BYTES
        if len(tail) < footer_bytes <= size:
            tail = storage.read_range(CURRENT_FILE, size - footer_bytes, footer_bytes)
    except MissingFileError:
        return None
    try:
        return _reach_in(pq.read_schema(pa.BufferReader(tail)))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{CURRENT_FILE} cannot be read: {error}", hint=REWRITE) from error


def problem_of_current(storage: Storage, run_id: str, last: Link) -> str:
    """What is wrong with the file of a log that is sound and ends at `last`; "" if it is right, behind the
    log, or not there."""
    try:
        reach = read_reach(storage)
    except ManifestError as error:
        return error.message
    if reach is None:
        return ""
    if reach.run_id != run_id:
        return f"it is of run {reach.run_id!r}"
    if reach.seq < last.stamp.seq:
        return ""
    if (reach.seq, reach.sha256) != (last.stamp.seq, last.known_as):
        return "it was made of another log"
    source = RowSource(storage, read_run(storage))
    rows = pa.Table.from_batches(_accepted(source), _schema(source))
    data = arrow_buffer(storage.read(CURRENT_FILE, MAX_FILE_BYTES))
    try:
        if pq.read_metadata(pa.BufferReader(data)).num_rows != rows.num_rows:
            return "it has other rows than the log"
        found = _read_as(rows, data)
    except (pa.ArrowException, OSError) as error:
        return f"it cannot be read: {error}"
    is_same = found is not None and same_rows(found.sort_by(ID), rows.sort_by(ID))
    return "" if is_same else "it has other rows than the log"


def _read_as(rows: pa.Table, data: pa.Buffer) -> pa.Table | None:
    """The table in a file that may have these rows; None if its schema or the size of its texts differs.

    Parquet keeps a text once for any number of rows, and so does this until the size is known.
    """
    columns = pq.read_metadata(pa.BufferReader(data)).schema
    leaves = (columns.column(number) for number in range(len(columns)))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    if pq.read_schema(pa.BufferReader(data)) != rows.schema:
        return None
    found = pq.read_table(pa.BufferReader(data), read_dictionary=texts)
    if any(_text_bytes(found[name]) != _text_bytes(rows[name]) for name in rows.column_names):
        return None
    return found.cast(rows.schema)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Of all rows of a column of texts or of lists of them; 0 for others."""
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_dictionary(column.type):
        parts = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
        return sum(pc.sum(part.cast(pa.int64())).as_py() or 0 for part in parts)
    return pc.sum(pc.binary_length(column)).as_py() or 0 if pa.types.is_string(column.type) else 0


def _encoded(source: RowSource) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, _schema(source), compression="zstd") as writer:
        for table in _row_groups(_accepted(source), _schema(source)):
            writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _schema(source: RowSource) -> pa.Schema:
    """Types that every reader knows: no dictionaries, and text for seeds, whose 64 bits become a float
    wherever a column has nulls."""
    fields = [
        pa.field(column.name, _plain(column)) for column in source.schema if column.name not in LEFT_OUT
    ]
    seq, sha256 = source.reach
    reach = {"run_id": source.run_id, "seq": seq, "sha256": sha256}
    return pa.schema(fields, {METADATA: json.dumps(reach)})


def _plain(column: pa.Field) -> pa.DataType:
    if pa.types.is_uint64(column.type):
        return pa.string()
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _accepted(source: RowSource) -> Iterator[pa.RecordBatch]:
    schema = _schema(source)
    rows = source.dataset().scanner(columns=schema.names, filter=pc.field(STATUS) == ACCEPTED)
    for batch in rows.to_batches():
        columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Fragments have few rows; a row group of each would make a large file that is slow to read."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(part.num_rows for part in group) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(group, schema)
            group = []
    yield pa.Table.from_batches(group, schema)


def _reach_in(schema: pa.Schema) -> Head:
    reach = read_json((schema.metadata or {})[METADATA])
    return Head(str(reach["run_id"]), int(reach["seq"]), str(reach["sha256"]))
