"""The rows of a manifest as an Arrow dataset: compacted files, and the fragments that came after them.

Nothing is in memory but names, numbers and hashes; a scan reads the columns it is asked for, of the files
that can hold what it looks for. Two columns that are no part of the manifest tell rows apart, FILE and PLACE.
By them a row that a later one of its id replaced is left out, wherever it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from balancer.manifest.layout import fragment_path
from balancer.manifest.log.reader import ID, Entry, read_chain
from balancer.manifest.row_values import Known
from balancer.manifest.rows import VOID
from balancer.manifest.rules import collect_rules
from balancer.manifest.runfile import RunInfo
from balancer.manifest.snapshot.build import LIGHT
from balancer.manifest.snapshot.files import LOG, PARQUET, ManifestFiles
from balancer.manifest.snapshot.index import STATUS, DataFile, Index, check_folders, read_index
from balancer.manifest.snapshot.places import ids_judged_anew
from balancer.manifest.snapshot.scan import Scan
from balancer.manifest.snapshot.superseded import FILE, PLACE, has_its_place, survey
from balancer.storage import Storage

HIDDEN = (FILE, PLACE)
_MARK = b"balancer.hidden"

_NOWHERE = pyarrow.fs.SubTreeFileSystem(
    "/a manifest is read by the methods of its dataset", pyarrow.fs.LocalFileSystem()
)
"""Where Arrow finds nothing: it knows the names of files, and what their rows have in common."""


class _Rows(ds.UnionDataset):  # type: ignore[misc]
    """Rows by way of `Scan`, whatever method asks for them. `narrowed` has conditions on single files that
    all rows which are looked for meet."""

    files: ManifestFiles
    narrowed: Mapping[str, pc.Expression]

    @classmethod
    def made(
        cls,
        schema: pa.Schema,
        children: Sequence[ds.Dataset],
        files: ManifestFiles,
        condition: pc.Expression,
        narrowed: Mapping[str, pc.Expression],
    ) -> _Rows:
        every = cls(schema, children)
        every.files, every.narrowed = files, narrowed
        return every.filter(condition)

    def filter(self, expression: pc.Expression) -> _Rows:
        found: _Rows = super().filter(expression)
        found.files, found.narrowed = self.files, self.narrowed
        return found

    def scanner(self, **options: Any) -> Scan:
        return Scan(super().schema, self.children, self.files, self.narrowed, self._scanner_options(options))

    def sort_by(self, sorting: Any, **options: Any) -> ds.Dataset:
        return _in_memory(self).sort_by(sorting, **options)

    def join(self, right_dataset: ds.Dataset, *arguments: Any, **options: Any) -> ds.Dataset:
        return _in_memory(self).join(_in_memory(right_dataset), *arguments, **options)

    def join_asof(self, right_dataset: ds.Dataset, *arguments: Any, **options: Any) -> ds.Dataset:
        return _in_memory(self).join_asof(_in_memory(right_dataset), *arguments, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        condition = self._scan_options["filter"]
        return self.made, (super().schema, self.children, self.files, condition, self.narrowed)


def _in_memory(dataset: ds.Dataset) -> ds.Dataset:
    """Arrow joins and sorts what it reads by itself."""
    return ds.InMemoryDataset(dataset.to_table()) if isinstance(dataset, _Rows) else dataset


class ManifestDataset(_Rows):
    """Shows some columns of the manifest. It has others that are needed to tell rows apart."""

    @property
    def schema(self) -> pa.Schema:
        every = super().schema
        return pa.schema([column for column in every if _MARK not in (column.metadata or {})], every.metadata)

    def _scanner_options(self, options: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super()._scanner_options(options)
        if found.get("columns") is None:
            found["columns"] = self.schema.names
        return found


class RowSource:
    """All rows of a manifest as they were when it was opened, to be read as often as one likes."""

    def __init__(self, storage: Storage, info: RunInfo) -> None:
        self.schema = info.schema()
        index = read_index(storage, info.run_id)
        if index is not None:
            check_folders(index, info)
        after = (index.covers, index.sha256) if index else (0, "")
        chain = read_chain(storage, self.schema, info.run_id, LIGHT, after)
        stamps = [entry.stamp for entry in chain.entries]
        self.run = info.under(collect_rules(stamps, since=index.revision if index else None))
        """The run in the plan revision that the log names."""
        self.run_id = info.run_id
        self.reach = (chain.last.stamp.seq, chain.last.known_as) if chain.last else (0, "")
        """Number and sha256 of the last fragment that was there; 0 and "" for a log without any."""
        entries = [entry for entry in chain.entries if entry.rows]
        self.files = ManifestFiles(
            storage,
            {file.path: file for file in index.files} if index else {},
            {fragment_path(entry.stamp.seq): entry.sha256 for entry in entries},
            Known.of(info),
        )
        self._compacted = _compacted_fragments(index) if index else []
        self._newest = _log_fragments(entries)
        ids = self._ids_that_may_be_twice(storage, entries, index)
        compacted = self._compacted if len(ids) else []
        before = self._rows_in(compacted, pc.field(ID).isin(ids), [ID, *HIDDEN])
        self._survey = survey(storage, entries, self.schema, ids, before, index.rows if index else 0)
        self._counts = self._survey.condition
        """Whether a row counts; false of superseded ones."""

    def dataset(self, schema: pa.Schema | None = None) -> ds.Dataset:
        """Every row that counts, in no order. `schema` has the columns to show, in types that those of the
        manifest can be cast to."""
        return self._of(self._compacted, self._newest, schema or self.schema, self._counts)

    def numbered(self, schema: pa.Schema) -> ds.Dataset:
        """As `dataset`, with FILE and PLACE for everyone to see."""
        children = self.dataset(schema).children
        return _Rows.made(_full(schema), children, self.files, self._counts, {})

    def rows(self, columns: Sequence[str], condition: pc.Expression | None = None) -> pa.Table:
        """In the order of commits. Raises what Arrow raises for a condition that makes no sense."""
        return self._in_order(self.dataset(), columns, condition)

    def rows_at(self, matches: pa.Table, columns: Sequence[str]) -> pa.Table:
        """Rows by their FILE, PLACE and ID, in the order of commits; files that hold none are left alone."""
        numbers = matches[FILE].to_numpy()
        compacted, narrowed = [], {}
        for number in np.unique(numbers[numbers < 0]).tolist():
            ends = pc.min_max(matches[PLACE].filter(pa.array(numbers == number))).as_py()
            between = (pc.field(PLACE) >= ends["min"]) & (pc.field(PLACE) <= ends["max"])
            compacted.append(self._compacted[-number - 1])
            narrowed[compacted[-1].path] = between
        positions = np.searchsorted(self._survey.sequences, np.unique(numbers[numbers > 0]))
        newest = [self._newest[position] for position in positions.tolist()]
        places = matches[PLACE].drop_null().combine_chunks()
        ids = matches[ID].filter(pa.array(numbers > 0)).combine_chunks()
        wanted = ((pc.field(FILE) < 0) & pc.field(PLACE).isin(places)) | (
            (pc.field(FILE) > 0) & pc.field(ID).isin(ids)
        )
        dataset = self._of(compacted, newest, self.schema, self._counts, narrowed)
        return self._in_order(dataset, columns, wanted)

    def _in_order(
        self, dataset: ds.Dataset, columns: Sequence[str], condition: pc.Expression | None
    ) -> pa.Table:
        names = list(columns)
        if not self._compacted and not self._survey.moves_rows:
            return dataset.scanner(columns=names, filter=condition).to_table()
        hidden = [*HIDDEN, ID] if self._survey.moves_rows else HIDDEN
        table = dataset.scanner(columns=list(dict.fromkeys([*names, *hidden])), filter=condition).to_table()
        order = np.argsort(self._survey.find_places(table), kind="stable")
        return table.select(names).take(pa.array(order))

    def _ids_that_may_be_twice(
        self, storage: Storage, entries: Sequence[Entry], index: Index | None
    ) -> pa.Array:
        """Those that were judged anew since the compaction, and those of candidates that wait to be made
        again since before."""
        judged = ids_judged_anew(storage, entries, self.schema)
        waiting = self._rows_in(self._compacted, pc.field(STATUS) == VOID, [ID])[ID]
        return pc.unique(pa.chunked_array([judged, *waiting.chunks], pa.string()))

    def _rows_in(
        self, compacted: Sequence[ds.Fragment], condition: pc.Expression, columns: Sequence[str]
    ) -> pa.Table:
        dataset = self._of(compacted, [], self.schema, has_its_place())
        return dataset.scanner(columns=list(columns), filter=condition).to_table()

    def _of(
        self,
        compacted: Sequence[ds.Fragment],
        newest: Sequence[ds.Fragment],
        schema: pa.Schema,
        condition: pc.Expression,
        narrowed: Mapping[str, pc.Expression] | None = None,
    ) -> _Rows:
        full = _full(schema)
        children = [
            ds.FileSystemDataset(list(compacted), full, PARQUET, _NOWHERE),
            ds.FileSystemDataset(list(newest), full, LOG, _NOWHERE),
        ]
        return ManifestDataset.made(full, children, self.files, condition, narrowed or {})


def compacted_dataset(storage: Storage, schema: pa.Schema, index: Index) -> ds.Dataset:
    """The rows of the compacted copy alone."""
    files = ManifestFiles(storage, {file.path: file for file in index.files}, {})
    full = _full(schema)
    child = ds.FileSystemDataset(_compacted_fragments(index), full, PARQUET, _NOWHERE)
    return ManifestDataset.made(full, [child], files, has_its_place(), {})


def _full(schema: pa.Schema) -> pa.Schema:
    """With the columns that tell rows apart, which are not shown."""
    for column in (pa.field(ID, pa.string()), pa.field(FILE, pa.int64()), pa.field(PLACE, pa.int64())):
        if column.name not in schema.names:
            schema = schema.append(column.with_metadata({_MARK: b""}))
    return schema


def _compacted_fragments(index: Index) -> list[ds.Fragment]:
    return [
        PARQUET.make_fragment(file.path, _NOWHERE, partition_expression=_holds(index, number, file))
        for number, file in enumerate(index.files, start=1)
    ]


def _holds(index: Index, number: int, file: DataFile) -> pc.Expression:
    """What is true of all rows of a file. That there is no value the file says itself: Arrow would make a
    dictionary of a constant null, and cannot join it with others."""
    holds = pc.field(FILE) == -number
    for name, value in zip(index.layout.columns, file.values, strict=True):
        if value is not None:
            holds &= pc.field(name) == value
    return holds


def _log_fragments(entries: Sequence[Entry]) -> list[ds.Fragment]:
    return [
        LOG.make_fragment(
            fragment_path(entry.stamp.seq), _NOWHERE, partition_expression=pc.field(FILE) == entry.stamp.seq
        )
        for entry in entries
    ]
