"""Making the compacted copy of the log: Parquet files for queries, one index that is published last.

The log is read twice: once to check it, once to take its rows. They are dealt to parts, by class, facets and
status, and each part is written in files as it fills up. Files have names of their own, so that nothing that
was there before is touched; those of an earlier copy go when `balancer gc` finds that no index names them.
A crash at any point leaves either copy whole, and files that gc takes away.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balancer.manifest.columns import EMBEDDING, names_where
from balancer.manifest.layout import INDEX_FILE, fragment_path
from balancer.manifest.log.fragment import MAX_FRAGMENT_BYTES, Fragment
from balancer.manifest.log.reader import Chain, Entry, joined, last_seq, read_again, read_chain
from balancer.manifest.row_values import Known
from balancer.manifest.rules import collect_rules
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.snapshot.index import (
    DamagedCopyError,
    DataFile,
    Index,
    Layout,
    choose_layout,
    data_path,
    encode_index,
    read_index,
)
from balancer.manifest.snapshot.places import Places, ids_judged_anew
from balancer.manifest.snapshot.superseded import PLACE
from balancer.storage import MissingFileError, Storage

LIGHT = ("attempt",)
"""The log is checked by reading it all; of its rows nothing is needed for that."""

ROW_GROUP_ROWS = 16_384
"""What a reader has to take in to look at one value: with a large embedding, about 25 MB of it."""

MAGIC_BYTES = 8
"""Of Parquet: the footer's length, and "PAR1"."""

DISTINCT = (*names_where(lambda column: column.distinct), PLACE)

LONG_LOG = 512
"""Fragments beyond the compacted copy from which on it is renewed when a run ends: about 0.2 s of reading for
every query until then."""

Values = tuple[str | None, ...]


def compact_if_long(storage: Storage) -> Index | None:
    """Compact a log that has grown long since it was compacted; None if it is not worth it."""
    index = read_index(storage, read_run(storage).run_id)
    if last_seq(storage) - (index.covers if index else 0) < LONG_LOG:
        return None
    return compact(storage)


def compact(storage: Storage, *, rebuild: bool = False) -> Index | None:
    """Make or renew the compacted copy of all that is committed; None if it is up to date.

    `rebuild` makes it anew all the same. Drivers and readers may be at work. ManifestError if the log is
    damaged; what is there is never changed then.
    """
    info = read_run(storage)
    schema = info.schema()
    chain = read_chain(storage, schema, info.run_id, LIGHT)
    if chain.last is None or (not rebuild and _is_up_to_date(storage, info, chain)):
        return None
    entries, last = chain.entries, chain.last
    del chain  # it has the ids of all rows, which may be as large as what is held back below
    layout = choose_layout(info, sum(entry.rows for entry in entries))
    rows = RowsInOrder(storage, entries, schema, Known.of(info))
    files = Files(storage, schema)
    dealt = deal(rows.blocks(layout.rows_in_block), layout, info)
    written = [files.write(values, table) for values, table in dealt]
    index = Index(
        run_id=info.run_id,
        covers=last.stamp.seq,
        sha256=last.known_as,
        rows=rows.count,
        layout=layout,
        files=tuple(written),
        revision=collect_rules([entry.stamp for entry in entries]).revision,
    )
    make_durable(storage, fragment_path(index.covers))
    publish_index(storage, index)
    return index


def make_durable(storage: Storage, path: str) -> None:
    """Make sure that a file which can be seen survives a power loss. Whoever wrote it may have been stopped
    just before it knew that; what is built on it must not outlive it."""
    data = storage.read(path, MAX_FRAGMENT_BYTES)
    storage.create(path, data)  # it is there, and made durable when that is found


def publish_index(storage: Storage, index: Index) -> None:
    storage.replace(INDEX_FILE, encode_index(index))


def _is_up_to_date(storage: Storage, info: RunInfo, chain: Chain) -> bool:
    last = chain.last
    try:
        index = read_index(storage, info.run_id)
        if index is None or last is None or (index.covers, index.sha256) != (last.stamp.seq, last.known_as):
            return False
        return all(storage.info(file.path).num_bytes == file.num_bytes for file in index.files)
    except (DamagedCopyError, MissingFileError):
        return False


class RowsInOrder:
    """The rows of a log that count, with their places, for one pass."""

    def __init__(self, storage: Storage, entries: Sequence[Entry], schema: pa.Schema, known: Known) -> None:
        ids = ids_judged_anew(storage, entries, schema)
        self._places = Places(storage, entries, schema, ids)
        self._schema = schema
        with_rows = [entry for entry in entries if entry.rows]
        self._fragments = read_again(storage, with_rows, schema, schema.names, known)

    @property
    def count(self) -> int:
        """Rows that were passed so far."""
        return self._places.next

    def blocks(self, size: int) -> Iterator[pa.Table]:
        block: list[pa.Table] = []
        rows = 0
        for fragment in self._fragments:
            block.append(self._that_count(fragment))
            rows += block[-1].num_rows
            if rows >= size:
                yield self._joined(block)
                block, rows = [], 0
        if rows:
            yield self._joined(block)

    def _that_count(self, fragment: Fragment) -> pa.Table:
        places, counts = self._places.of(fragment)
        table = fragment.table.append_column(PLACE, pa.array(places))
        return table if counts.all() else table.filter(pa.array(counts))

    def _joined(self, tables: list[pa.Table]) -> pa.Table:
        schema = with_place(self._schema)
        return joined(tables, schema, schema.names)


def with_place(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(PLACE, pa.int64()))


# ---- dealing ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    rows: int = 0
    tables: list[pa.Table] = field(default_factory=list)


def deal(blocks: Iterable[pa.Table], layout: Layout, info: RunInfo) -> Iterator[tuple[Values, pa.Table]]:
    """The rows of each file, in the order in which files are written, with the values all its rows share.

    The same rows in the same blocks and layout give the same files.
    """
    parts: dict[Values, _Part] = {}
    rest = [name for name in ("class", *info.facets) if name not in layout.folders]
    held = 0
    for block in blocks:
        for values, table in _split(block, layout.columns):
            part = parts.setdefault(values, _Part())
            part.tables.append(table)
            part.rows += table.num_rows
            held += table.num_rows
            while part.rows >= layout.rows_in_file:
                held -= layout.rows_in_file
                yield values, _sorted(_taken(part, layout.rows_in_file), rest)
        while held > layout.rows_at_once:
            values = max(parts, key=lambda values: parts[values].rows)
            held -= parts[values].rows
            yield values, _sorted(_taken(parts[values], parts[values].rows), rest)
    for values, part in parts.items():
        if part.rows:
            yield values, _sorted(_taken(part, part.rows), rest)


def _split(block: pa.Table, columns: tuple[str, ...]) -> Iterator[tuple[Values, pa.Table]]:
    """Rows with the same values in `columns` together, in their order."""
    codes = np.zeros(block.num_rows, np.int64)
    texts = []
    for name in columns:
        encoded = pc.dictionary_encode(_text(block[name]).combine_chunks(), null_encoding="encode")
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        texts.append(encoded)
    _, starts, of_row = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    ends = np.cumsum(np.bincount(of_row))
    for number, first in enumerate(starts):
        rows = order[0 if number == 0 else ends[number - 1] : ends[number]]
        yield tuple(text[int(first)].as_py() for text in texts), block.take(pa.array(rows))


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _taken(part: _Part, rows: int) -> pa.Table:
    """The first rows of a part, which has them no longer."""
    table = pa.concat_tables(part.tables).unify_dictionaries()
    part.tables = [table.slice(rows)] if table.num_rows > rows else []
    part.rows -= rows
    return table.slice(0, rows)


def _sorted(table: pa.Table, columns: list[str]) -> pa.Table:
    """By these columns, and by place: most rows are in that order already."""
    if not columns and (np.diff(table[PLACE].to_numpy()) > 0).all():
        return table.combine_chunks()
    # Keys by number: Arrow reads a name that begins with a dot as a path.
    keys = pa.table({str(number): _text(table[name]) for number, name in enumerate([*columns, PLACE])})
    return table.take(
        pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names])
    ).combine_chunks()


# ---- writing ---------------------------------------------------------------------------------------


class Files:
    """Files of one compaction, in a folder of their own."""

    def __init__(self, storage: Storage, schema: pa.Schema) -> None:
        self._storage = storage
        self._options = parquet_options(with_place(schema))
        self._copy = uuid.uuid4().hex[:12]
        self._number = 0

    def write(self, values: Values, table: pa.Table) -> DataFile:
        self._number += 1
        path = data_path(self._copy, self._number)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **self._options)
        data = sink.getvalue().to_pybytes()
        footer = data[-MAGIC_BYTES - int.from_bytes(data[-MAGIC_BYTES:-4], "little") :]
        self._storage.publish(path, data)
        return DataFile(
            path=path,
            rows=table.num_rows,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            footer_bytes=len(footer),
            footer_sha256=hashlib.sha256(footer).hexdigest(),
            values=values,
        )


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Embeddings are plain numbers that nothing makes smaller. Every page has its checksum."""
    leaves = {column.name: list(_leaves(column.name, column.type)) for column in schema}
    every = [leaf for of_column in leaves.values() for leaf in of_column]
    without_dictionary = {leaf for name in (EMBEDDING, *DISTINCT) for leaf in leaves.get(name, ())}
    return {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": {leaf: "none" if leaf in leaves[EMBEDDING] else "zstd" for leaf in every},
        "use_dictionary": [leaf for leaf in every if leaf not in without_dictionary],
        "column_encoding": {PLACE: "DELTA_BINARY_PACKED"},
        "write_page_checksum": True,
    }


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """The columns of Parquet that a column of Arrow becomes."""
    if pa.types.is_struct(kind):
        for inner in kind:
            yield from _leaves(f"{path}.{inner.name}", inner.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path
