"""A scan of a manifest: files go to Arrow in shares, read and checked by the thread that asks for rows.

What a share takes in memory is bounded, whatever the manifest holds. The shares grow, so the first rows come
soon. `to_reader` is the exception: its rows are for libraries that ask from threads of their own, so all that
the scan looks at is read before the first of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from balancer.manifest.log.reader import begin
from balancer.manifest.snapshot.ending import well_ended
from balancer.manifest.snapshot.files import LOG, PARQUET, Loaded, ManifestFiles, Wanted
from balancer.storage import LocalStorage

T = TypeVar("T")

SHARE_BYTES = 32 << 20
"""A share is full when its files have so much that the scan looks at."""

SHARE_FILES = 32
GROWTH = 4
"""The first share is one file; each has so many times as many as the one before, up to SHARE_FILES."""

REQUESTS = 8
"""Files of a bucket that are read at once."""

AT_ONCE_BYTES = 128 << 20
"""The same files together, all columns included."""


class Scan:
    """As Arrow's `Scanner`, for the files of a manifest; `children` have their names, and what all rows of a
    file have in common. Raises what Arrow raises for options that make no sense; reads nothing yet."""

    def __init__(
        self,
        schema: pa.Schema,
        children: Sequence[ds.Dataset],
        files: ManifestFiles,
        narrowed: Mapping[str, pc.Expression],
        options: Mapping[str, Any],
    ) -> None:
        self.dataset_schema = schema
        self.projected_schema: pa.Schema
        self._children = children
        self._files = files
        self._narrowed = narrowed
        self._options = dict(options)
        self._schema = _columns_looked_at(schema, self._options)
        try:
            self.projected_schema = self._scanner([]).projected_schema
        except pa.ArrowInvalid:
            self._schema = schema
            self.projected_schema = self._scanner([]).projected_schema

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        return well_ended(self._pipelined(ds.Scanner.to_batches))

    def scan_batches(self) -> Iterator[ds.TaggedRecordBatch]:
        return well_ended(self._pipelined(ds.Scanner.scan_batches))

    def to_table(self) -> pa.Table:
        return pa.Table.from_batches(list(self.to_batches()), self.projected_schema)

    def head(self, num_rows: int) -> pa.Table:
        batches: list[pa.RecordBatch] = []
        for batch in self.to_batches() if num_rows > 0 else ():
            batches.append(batch.slice(0, num_rows))
            num_rows -= batches[-1].num_rows
            if not num_rows:
                break
        return pa.Table.from_batches(batches, self.projected_schema)

    def count_rows(self) -> int:
        columns: dict[str, Any] = {"columns": []}
        scan = Scan(self.dataset_schema, self._children, self._files, self._narrowed, self._options | columns)
        return sum(batch.num_rows for batch in scan.to_batches())

    def take(self, indices: Any) -> pa.Table:
        return self._whole().take(indices)

    def to_reader(self) -> pa.RecordBatchReader:
        return self._whole(use_threads=False).to_reader()  # which does nothing while nobody asks

    def _whole(self, **options: Any) -> ds.Scanner:
        every = [loaded for loaded in self._loaded() if loaded.fragment is not None]
        self._files.check(every)
        return self._scanner([one.fragment for one in every], **options)

    def _pipelined(self, start: Callable[[ds.Scanner], Iterator[T]]) -> Generator[T, None, None]:
        """Arrow works on a share, from when it is started, while the next one is read."""
        at_work: deque[Iterator[T]] = deque()
        try:
            for number, share in enumerate(self._shares()):
                at_work.append(start(share))
                if number == 0 or len(at_work) == 2:
                    yield from map(self._believed, at_work[0])
                    at_work.popleft()
            for started in at_work:
                yield from map(self._believed, started)
        finally:
            for started in at_work:
                _finish(started)

    def _believed(self, rows: T) -> T:
        """The same rows, if a run can have written their values. Computed columns are not looked at."""
        batch = rows.record_batch if isinstance(rows, ds.TaggedRecordBatch) else rows
        if isinstance(batch, pa.RecordBatch) and not isinstance(self._options.get("columns"), Mapping):
            self._files.check_compacted(batch)
        return rows

    def _shares(self) -> Iterator[ds.Scanner]:
        share: list[Loaded] = []
        num_bytes, num_files = 0, 1
        for loaded in self._loaded():
            num_bytes += loaded.num_bytes
            if loaded.fragment is not None:
                share.append(loaded)
            if len(share) >= num_files or num_bytes >= SHARE_BYTES:
                yield self._checked(share)
                share, num_bytes, num_files = [], 0, min(GROWTH * num_files, SHARE_FILES)
        if share:
            yield self._checked(share)

    def _checked(self, share: Sequence[Loaded]) -> ds.Scanner:
        self._files.check(share)
        return self._scanner([one.fragment for one in share])

    def _scanner(self, fragments: Sequence[ds.Fragment], **options: Any) -> ds.Scanner:
        compacted = [one for one in fragments if isinstance(one, ds.ParquetFileFragment)]
        newest = [one for one in fragments if not isinstance(one, ds.ParquetFileFragment)]
        children = [
            ds.FileSystemDataset(compacted, self._schema, PARQUET),
            ds.FileSystemDataset(newest, self._schema, LOG),
        ]
        return ds.Scanner.from_dataset(ds.UnionDataset(self._schema, children), **self._options | options)

    def _loaded(self) -> Iterator[Loaded]:
        condition = self._options.get("filter")
        everything = Wanted(self._schema, condition)
        files = (one for child in self._children for one in child.get_fragments(condition))

        def load(file: ds.Fragment) -> Loaded:
            wanted = everything
            if file.path in self._narrowed:
                wanted = dataclasses.replace(wanted, condition=self._narrowed[file.path])
            return self._files.load(file.path, file.partition_expression, wanted)

        if isinstance(self._files.storage, LocalStorage):
            yield from map(load, files)
            return
        for together in self._groups(files):
            with ThreadPoolExecutor(REQUESTS) as pool:
                begun = [begin(pool, load, file) for file in together]
            yield from (one.result() for one in begun)

    def _groups(self, files: Iterable[ds.Fragment]) -> Iterator[list[ds.Fragment]]:
        """Files that are read at once: the first one alone, for those who want no more."""
        group: list[ds.Fragment] = []
        num_bytes, num_files = 0, 1
        for file in files:
            group.append(file)
            num_bytes += self._files.num_bytes(file.path)
            if len(group) == num_files or num_bytes >= AT_ONCE_BYTES:
                yield group
                group, num_bytes, num_files = [], 0, REQUESTS
        if group:
            yield group


def _finish(started: Iterator[object]) -> None:
    """Nothing that Arrow has begun goes on after this."""
    with suppress(Exception):  # whoever left the scan does not want to know
        deque(started, maxlen=0)


def _columns_looked_at(schema: pa.Schema, options: Mapping[str, Any]) -> pa.Schema:
    """The columns that a scan looks at, perhaps some more: all whose names occur in its expressions."""
    columns = options.get("columns")
    if columns is None:
        return schema
    # A name can have dots of its own, or lead into a struct.
    names = (
        set() if isinstance(columns, Mapping) else {*columns, *(name.partition(".")[0] for name in columns)}
    )
    computed = columns.values() if isinstance(columns, Mapping) else ()
    try:
        text = "\n".join(map(str, (*computed, options.get("filter"))))
    except UnicodeDecodeError:  # Arrow cuts long values short, and may do so within a character
        return _columns_it_misses(schema, names, options)
    if "FieldPath(" in text:  # a column by its number
        return schema
    return _subset(schema, {name for name in schema.names if name in names or _mentions(text, name)})


def _columns_it_misses(schema: pa.Schema, names: set[str], options: Mapping[str, Any]) -> pa.Schema:
    """Columns one by one, as Arrow complains that they are not there."""
    found = names & {*schema.names}
    while True:
        nothing = ds.FileSystemDataset([], _subset(schema, found), LOG)
        try:
            ds.Scanner.from_dataset(nothing, **options)
        except pa.ArrowInvalid as error:
            message = str(error)
            missing = [
                name for name in schema.names if f"FieldRef.Name({name}) " in message and name not in found
            ]
            if not missing:
                return schema
            found.update(missing)
        else:
            return _subset(schema, found)


def _subset(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    return pa.schema([column for column in schema if column.name in names], schema.metadata)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
