"""Rows of a run by a condition, counts by columns, SQL.

Conditions are evaluated by DuckDB over an Arrow dataset, which reads what they look at. It does so in a
database of its own that can reach no files, no network, no extensions and no Python variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from balancer.errors import ManifestError, UsageError, first_line
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.log.reader import ID
from balancer.manifest.query.sql_text import as_spelled, explained, no_column, quoted
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.snapshot.dataset import RowSource
from balancer.manifest.snapshot.index import STATUS
from balancer.manifest.snapshot.superseded import FILE, PLACE
from balancer.storage import Storage
from balancer.text.names import composed, free_names

if TYPE_CHECKING:
    import duckdb

Status = Literal["accepted", "rejected", "void", "all"]

STATUSES: tuple[Status, ...] = get_args(Status)
Filter: TypeAlias = "str | pc.Expression"

TABLE = "manifest"
COUNT = "count"
_READING_FAILED = re.compile(r"reading the stream registered as \S+ failed: ")


@dataclass(frozen=True, slots=True)
class ManifestRows:
    """The rows of a run as they were when it was opened. `Manifest` documents the public methods."""

    run: RunInfo
    uri: str
    _source: RowSource

    @property
    def schema(self) -> pa.Schema:
        return self._source.schema

    def dataset(self, columns: Sequence[str] | None = None) -> ds.Dataset:
        """Every row, in no order."""
        names = self._names(columns)
        return self._source.dataset(pa.schema(map(self.schema.field, names), self.schema.metadata))

    def to_table(
        self,
        columns: Sequence[str] | None = None,
        filter: Filter | None = None,
        status: Status = "accepted",
    ) -> pa.Table:
        """Rows that meet `filter`, in the order of commits."""
        names = self._names(columns)
        with self._reading():
            if isinstance(filter, str) and filter.strip():
                table = self._source.rows_at(self._find(as_spelled(filter, self.run), status), names)
            else:
                table = self._source.rows(names, self._condition(filter, status))
        return _as_one(table).replace_schema_metadata(self.schema.metadata)

    def count_by(
        self, *columns: str | Sequence[str], filter: Filter | None = None, status: Status = "accepted"
    ) -> pa.Table:
        """How often each combination of values occurs."""
        names = self._names([name for given in columns for name in as_list(given)])
        if any(pa.types.is_nested(self.schema.field(name).type) for name in names):
            raise UsageError(f"rows cannot be counted by {', '.join(names)}")
        with self._reading():
            if isinstance(filter, str) and filter.strip():
                counts = self._count_by_sql(names, as_spelled(filter, self.run), status)
            else:
                counts = self._count(names, self._condition(filter, status))
        if names:
            counts = counts.sort_by([(key, "ascending") for key in _keys(names)])
        return counts.rename_columns([*names, *free_names([COUNT], names).values()])

    def sql(self, query: str, status: Status = "accepted") -> pa.Table:
        """The result of a SQL query over the table `manifest`, whose rows are in no order."""
        schema = _for_sql(self.schema, with_embedding=EMBEDDING in query)
        with self._reading(), _database(_of_status(self._source.dataset(schema), status)) as database:
            spelled = as_spelled(query, self.run)
            return _execute(lambda: database.sql(spelled), spelled, schema.names)

    def _names(self, columns: Sequence[str] | None) -> list[str]:
        """As the manifest spells them; one that is given twice counts once."""
        if columns is None:
            return list(self.schema.names)
        spelled = {composed(name): name for name in self.schema.names}
        names = [
            name if name in spelled.values() else spelled.get(composed(name), name)
            for name in as_list(columns)
        ]
        for name in names:
            if name not in self.schema.names:
                raise no_column(name, self.schema.names)
        return list(dict.fromkeys(names))

    def _condition(self, filter: Filter | None, status: Status) -> pc.Expression | None:
        """Raises UsageError for an expression that cannot be applied."""
        _check_status(status)
        of_status = None if status == "all" else pc.field(STATUS) == status
        if not isinstance(filter, pc.Expression):
            return of_status
        try:
            self._source.dataset().scanner(filter=filter)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
            raise self._not_applicable(error) from error
        return filter if of_status is None else of_status & filter

    def _find(self, condition: str, status: Status) -> pa.Table:
        """Where the rows that meet a SQL condition stand. Arrow reads them from there, because DuckDB changes
        types."""
        schema = _for_sql(self.schema, with_embedding=False)
        with _database(_of_status(self._source.numbered(schema), status)) as database:
            rows = database.table(TABLE)
            return _execute(
                lambda: rows.filter(condition).project(f"{FILE}, {PLACE}, {ID}"), condition, schema.names
            )

    def _count_by_sql(self, names: Sequence[str], condition: str, status: Status) -> pa.Table:
        schema = _for_sql(self.schema, with_embedding=False)
        grouped = ", ".join(map(quoted, names))
        shown = ", ".join(
            f"{quoted(name)} AS {quoted(key)}" for name, key in zip(names, _keys(names), strict=True)
        )
        with _database(_of_status(self._source.dataset(schema), status)) as database:
            rows = database.table(TABLE)
            counts = _execute(
                lambda: rows.filter(condition).aggregate(
                    f"{shown}{', ' * bool(names)}count(*) AS {COUNT}", grouped
                ),
                condition,
                schema.names,
            )
        return counts.cast(self._counts_schema(names))

    def _count(self, names: Sequence[str], condition: pc.Expression | None) -> pa.Table:
        scanner = self._source.dataset().scanner(columns=list(names) or [ID], filter=condition)
        if not names:
            return pa.table({COUNT: [scanner.count_rows()]})
        keys = _keys(names)
        parts = [self._counts_schema(names).empty_table()]
        for batch in scanner.to_batches():
            rows = pa.Table.from_batches([batch]).rename_columns(keys)
            counts = rows.group_by(keys, use_threads=False).aggregate([([], "count_all")])
            parts.append(counts.rename_columns([*keys, COUNT]).cast(parts[0].schema))
        groups = pa.concat_tables(parts).group_by(keys, use_threads=False).aggregate([(COUNT, "sum")])
        return groups.rename_columns([*keys, COUNT])

    def _counts_schema(self, names: Sequence[str]) -> pa.Schema:
        """With keys in the place of names."""
        kinds = [_plain(self.schema.field(name).type) for name in names]
        return pa.schema([*zip(_keys(names), kinds, strict=True), (COUNT, pa.int64())])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells damage from mistakes, through whatever library it was met."""
        files = self._source.files
        files.problem = None
        try:
            yield
        except (UsageError, OSError, pa.ArrowInvalid) as error:
            if files.problem is not None:
                raise files.problem from None
            if isinstance(error, UsageError):
                raise
            if (damage := files.damage()) is not None:
                raise damage from error
            if isinstance(error, pa.ArrowInvalid):
                raise self._not_applicable(error) from error
            raise ManifestError(f"the manifest cannot be read: {first_line(error)}") from error

    def _not_applicable(self, error: Exception) -> UsageError:
        what = str(error).partition(" in ")[0]
        hint = f"the columns are {', '.join(self.schema.names)}"
        return UsageError(f"the filter cannot be applied: {first_line(ValueError(what))}", hint=hint)


def open_rows(storage: Storage) -> ManifestRows:
    """UsageError if the folder holds no run, ManifestError if it is damaged."""
    info = read_run(storage)
    source = RowSource(storage, info)
    return ManifestRows(source.run, storage.uri, source)


def as_list(names: Sequence[str]) -> list[str]:
    """A single name is meant as one, not as its letters."""
    return [names] if isinstance(names, str) else [*names]


def _keys(names: Sequence[str]) -> list[str]:
    """Stand for names where Arrow would read a path: one that begins with a dot."""
    return [f"key {number}" for number in range(len(names))]


def _check_status(status: str) -> None:
    if status not in STATUSES:
        raise UsageError(f"no status {status!r}", hint=f"it is one of {', '.join(STATUSES)}")


def _of_status(rows: ds.Dataset, status: Status) -> ds.Dataset:
    _check_status(status)
    return rows if status == "all" else rows.filter(pc.field(STATUS) == status)


def _for_sql(schema: pa.Schema, with_embedding: bool) -> pa.Schema:
    """DuckDB has no 16-bit floats."""
    position = schema.get_field_index(EMBEDDING)
    if not with_embedding:
        return schema.remove(position)
    size = schema.field(position).type.list_size
    return schema.set(position, pa.field(EMBEDDING, pa.list_(pa.float32(), size)))


def _as_one(table: pa.Table) -> pa.Table:
    """One chunk a column; of dictionaries only what occurs, whatever files it was read from."""
    for position, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            values = table[position].cast(column.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(position, column, values)
    return table.combine_chunks()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _database(rows: ds.Dataset) -> duckdb.DuckDBPyConnection:
    import duckdb

    database = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
        },
    )
    database.register(TABLE, rows)
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _execute(
    query: Callable[[], duckdb.DuckDBPyRelation | None], text: str, columns: Sequence[str]
) -> pa.Table:
    import duckdb

    try:
        if (relation := query()) is None:
            raise UsageError(f"{text!r} returns no rows", hint="only SELECT queries do")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        if _READING_FAILED.search(str(error)):
            raise OSError(str(error).partition(" failed: ")[2]) from error
        raise explained(error, text, columns) from error
