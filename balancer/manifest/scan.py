"""The rows of a manifest as an Arrow dataset: compacted files, and the fragments that came after them.

Nothing is in memory but names, numbers and hashes; a scan reads the columns it is asked for, of the files
that can hold what it looks for. Two columns that are no part of the manifest tell rows apart, FILE and PLACE.
By them a row that a later one of its id replaced is left out, wherever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from balancer.manifest.chain import ID, Entry, read_chain
from balancer.manifest.compacted import STATUS, DataFile, Index, read_index
from balancer.manifest.compaction import LIGHT
from balancer.manifest.files import ManifestFiles
from balancer.manifest.layout import fragment_path
from balancer.manifest.places import ids_judged_anew
from balancer.manifest.replaced import FILE, HAS_ITS_PLACE, PLACE, survey
from balancer.manifest.rows import VOID
from balancer.manifest.runfile import RunInfo
from balancer.storage import Storage

HIDDEN = (FILE, PLACE)
_MARK = b"balancer.hidden"

PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
LOG = ds.IpcFileFormat()


class _Scanner:
    """A scanner of Arrow, but for `to_reader`: Arrow's holds the interpreter's lock while threads that open
    files wait for it, and neither ever goes on if one of these fails."""

    def __init__(self, scanner: ds.Scanner) -> None:
        self._scanner = scanner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scanner, name)

    def to_reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._scanner.projected_schema, self._scanner.to_batches())


class _Rows(ds.UnionDataset):  # type: ignore[misc]
    def scanner(self, **options: Any) -> ds.Scanner:
        return _Scanner(super().scanner(**options))


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

    def __reduce__(self) -> tuple[Any, ...]:
        return _dataset, (super().schema, self.children, self._scan_options.get("filter"))


def _dataset(schema: pa.Schema, children: Sequence[ds.Dataset], condition: pc.Expression) -> ManifestDataset:
    dataset: ManifestDataset = ManifestDataset(schema, children).filter(condition)
    return dataset


class Source:
    """All rows of a manifest as they were when it was opened, to be read as often as one likes."""

    def __init__(self, storage: Storage, info: RunInfo) -> None:
        self.schema = info.schema()
        index = read_index(storage, info.run_id)
        after = (index.covers, index.sha256) if index else (0, "")
        chain = read_chain(storage, self.schema, info.run_id, LIGHT, after)
        entries = [entry for entry in chain.entries if entry.rows]
        self.files = ManifestFiles(
            storage,
            {file.path: file for file in index.files} if index else {},
            {fragment_path(entry.stamp.seq): entry.sha256 for entry in entries},
        )
        self._system = pyarrow.fs.PyFileSystem(self.files)
        self._compacted = _compacted_fragments(index, self._system) if index else []
        self._newest = _log_fragments(entries, self._system)
        ids = self._ids_that_may_be_twice(storage, entries, index)
        compacted = self._compacted if len(ids) else []
        before = self._rows_in(compacted, pc.field(ID).isin(ids), [ID, *HIDDEN])
        self._survey = survey(storage, entries, self.schema, ids, before, index.rows if index else 0)

    def dataset(self, schema: pa.Schema | None = None) -> ManifestDataset:
        """Every row that counts, in no order. `schema` has the columns to show, in types that those of the
        manifest can be cast to."""
        return self._of(self._compacted, self._newest, schema or self.schema, self._survey.condition)

    def numbered(self, schema: pa.Schema) -> ds.Dataset:
        """As `dataset`, with FILE and PLACE for everyone to see."""
        children = self.dataset(schema).children
        return _Rows(_full(schema), children).filter(self._survey.condition)

    def rows(self, columns: Sequence[str], condition: pc.Expression | None = None) -> pa.Table:
        """In the order of commits. Raises what Arrow raises for a condition that makes no sense."""
        return self._in_order(self.dataset(), columns, condition)

    def rows_at(self, found: pa.Table, columns: Sequence[str]) -> pa.Table:
        """Rows by their FILE, PLACE and ID, in the order of commits; files that hold none are left alone."""
        numbers = found[FILE].to_numpy()
        compacted = []
        for number in np.unique(numbers[numbers < 0]).tolist():
            ends = pc.min_max(found[PLACE].filter(pa.array(numbers == number))).as_py()
            between = (pc.field(PLACE) >= ends["min"]) & (pc.field(PLACE) <= ends["max"])
            compacted.append(self._compacted[-number - 1].subset(filter=between))
        positions = np.searchsorted(self._survey.sequences, np.unique(numbers[numbers > 0]))
        newest = [self._newest[position] for position in positions.tolist()]
        places = found[PLACE].drop_null().combine_chunks()
        ids = found[ID].filter(pa.array(numbers > 0)).combine_chunks()
        wanted = ((pc.field(FILE) < 0) & pc.field(PLACE).isin(places)) | (
            (pc.field(FILE) > 0) & pc.field(ID).isin(ids)
        )
        dataset = self._of(compacted, newest, self.schema, self._survey.condition)
        return self._in_order(dataset, columns, wanted)

    def _in_order(
        self, dataset: ManifestDataset, columns: Sequence[str], condition: pc.Expression | None
    ) -> pa.Table:
        names = list(columns)
        if not self._compacted and not self._survey.moves_rows:
            return dataset.scanner(columns=names, filter=condition).to_table()
        hidden = [*HIDDEN, ID] if self._survey.moves_rows else HIDDEN
        table = dataset.scanner(columns=list(dict.fromkeys([*names, *hidden])), filter=condition).to_table()
        order = np.argsort(self._survey.places_of(table), kind="stable")
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
        dataset = self._of(compacted, [], self.schema, HAS_ITS_PLACE)
        return dataset.scanner(columns=list(columns), filter=condition).to_table()

    def _of(
        self,
        compacted: Sequence[ds.Fragment],
        newest: Sequence[ds.Fragment],
        schema: pa.Schema,
        condition: pc.Expression,
    ) -> ManifestDataset:
        full = _full(schema)
        children = [
            ds.FileSystemDataset(list(compacted), full, PARQUET, self._system),
            ds.FileSystemDataset(list(newest), full, LOG, self._system),
        ]
        return _dataset(full, children, condition)


def compacted_dataset(storage: Storage, schema: pa.Schema, index: Index) -> ManifestDataset:
    """The rows of the compacted copy alone."""
    files = ManifestFiles(storage, {file.path: file for file in index.files}, {})
    system = pyarrow.fs.PyFileSystem(files)
    full = _full(schema)
    child = ds.FileSystemDataset(_compacted_fragments(index, system), full, PARQUET, system)
    return _dataset(full, [child], HAS_ITS_PLACE)


def _full(schema: pa.Schema) -> pa.Schema:
    """With the columns that tell rows apart, which are not shown."""
    for column in (pa.field(ID, pa.string()), pa.field(FILE, pa.int64()), pa.field(PLACE, pa.int64())):
        if column.name not in schema.names:
            schema = schema.append(column.with_metadata({_MARK: b""}))
    return schema


def _compacted_fragments(index: Index, system: pyarrow.fs.FileSystem) -> list[ds.Fragment]:
    return [
        PARQUET.make_fragment(file.path, system, partition_expression=_holds(index, number, file))
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


def _log_fragments(entries: Sequence[Entry], system: pyarrow.fs.FileSystem) -> list[ds.Fragment]:
    return [
        LOG.make_fragment(
            fragment_path(entry.stamp.seq), system, partition_expression=pc.field(FILE) == entry.stamp.seq
        )
        for entry in entries
    ]
