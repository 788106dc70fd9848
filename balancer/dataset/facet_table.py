"""The tables of facet values in a dataset: parquet, CSV or JSON lines with a column `file_name`.

Values are text whatever a table's types are, and no path is ever built from what a table says. It is read
in a process with limits on memory and time (`table_reader`), whose answer is not trusted either.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balancer.dataset.table_reader import MAX_COLUMNS, OWN_COLUMNS, READERS, table_key
from balancer.errors import DatasetError

__all__ = [
    "Row",
    "Table",
    "columns_passed_over",
    "facet_columns",
    "is_missing",
    "read_table",
    "read_tables",
    "table_key",
]

METADATA_FILES = ("metadata.parquet", "metadata.csv", "metadata.jsonl")

MAX_FACET_VALUES = 20
"""A column with more values than this is a description, not a facet."""

LONGEST_REASON = 1_000
MAX_LINES = 20
"""Remarks and warnings on one table."""

_MISSING = frozenset(("nan", "null", "<na>", "#n/a"))
"""How other tools write, as text, that there is no value. `none` and `na` can be values."""

Row = Mapping[str, str]
"""What a table says of one file; it has no entry where a value is missing."""


@dataclass(slots=True)
class Table:
    """`path` and `folder` are relative to the dataset, "" for its top. `rows` by `table_key` of the file
    name, as the table has it; of several rows of one name the first is kept, and the others, if they say
    something else, are counted in `contradicted`."""

    path: str
    folder: str
    rows: dict[str, Row] = field(default_factory=dict)
    contradicted: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, key: str, row: Row) -> None:
        if self.rows.setdefault(key, row) != row:
            self.contradicted[key] = self.contradicted.get(key, 1) + 1


def read_tables(
    root: Path, metadata: str | os.PathLike[str] | None, listed: Sequence[str] = ()
) -> list[Table]:
    """The table at `metadata`, relative to `root`; by default those of METADATA_FILES that there are at the
    top, one of them, and in the folders below, which are `listed`. Raises DatasetError."""
    if metadata is not None:
        return [_read(root, os.fspath(metadata))]
    found = [name for name in METADATA_FILES if os.path.lexists(root / name) and not (root / name).is_dir()]
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*found, *sorted(listed, key=lambda name: METADATA_FILES.index(name.rpartition("/")[2]))):
        by_folder[name.rpartition("/")[0]].append(name)
    tables = _read_all(root, [names[0] for names in by_folder.values()])
    for table in tables:
        for other in by_folder[table.folder][1:]:
            table.warnings.append(f"{other} is not read, because {table.path} is there")
    return tables


def read_table(root: Path, metadata: str | os.PathLike[str] | None = None) -> Table | None:
    """The table at the top of a dataset, None if there is none."""
    return next(iter(read_tables(root, metadata)), None)


def _read(root: Path, name: str) -> Table:
    [table] = _read_all(root, [name])
    return table


def _read_all(root: Path, names: Sequence[str]) -> list[Table]:
    """Read by one process, one after the other."""
    for name in names:
        if Path(name).suffix.lower() not in READERS:
            raise DatasetError(f"{root / name}: a metadata table is one of {', '.join(READERS)}")
    if not names:
        return []
    from balancer.dataset.decoding.lanes import table_lines

    lines = table_lines([root / name for name in names])
    columns: dict[str, str] = {}
    return [_read_one(root, name, lines, columns) for name in names]


def _read_one(root: Path, name: str, lines: Iterator[bytes], columns: dict[str, str]) -> Table:
    table = Table(name, _folder_of(root, name))
    end: object = None
    try:
        for line in lines:
            end = json.loads(line)
            if isinstance(end, list):
                table.add(*_parse_row(end, columns))
            elif not _take_note(table, end, columns):
                break
            if len(columns) > MAX_COLUMNS:
                raise ValueError(f"with it the tables have over {MAX_COLUMNS:,} columns, the limit")
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{root / name}: the metadata table cannot be read: {error}") from error
    if isinstance(end, dict) and isinstance(end.get("reason"), str):
        raise DatasetError(f"{root / name}: {end['reason'][:LONGEST_REASON]}")
    if type(end) is not int:
        raise DatasetError(f"{root / name}: the metadata table cannot be read: its reader ended unexpectedly")
    return table


def _folder_of(root: Path, name: str) -> str:
    """Of a table inside the dataset, its folder; file names may be relative to that."""
    folder = os.path.relpath(os.path.dirname(root / name) or ".", root)
    return "" if folder == os.curdir or folder.startswith(os.pardir) else folder.replace(os.sep, "/")


def _take_note(table: Table, told: object, columns: dict[str, str]) -> bool:
    """Keep what is no row and not the end; False for anything else."""
    match told:
        case {"columns": list(names)} if all(isinstance(name, str) for name in names):
            table.columns = [columns.setdefault(name, name) for name in names]
            return True
        case {"remark": str(text)}:
            kept = table.remarks
        case {"warning": str(text)}:
            kept = table.warnings
        case _:
            return False
    if len(kept) < MAX_LINES:
        kept.append(f"{table.path}: {text[:LONGEST_REASON]}")
    return True


def _parse_row(told: list[object], columns: dict[str, str]) -> tuple[str, Row]:
    """A key and its row, whose `columns` all rows share; ValueError if that is not what was told."""
    match told:
        case [str(key), dict(row)] if all(isinstance(value, str) for value in row.values()):
            return key, {columns.setdefault(name, name): value for name, value in row.items()}
    raise ValueError("its reader gave no answer that makes sense")


def is_missing(text: str) -> bool:
    return text.casefold() in _MISSING


def facet_columns(rows: Iterable[Row]) -> tuple[str, ...]:
    """The columns that look like facets: few values, each used again and again."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    count = 0
    for row in rows:
        count += 1
        for column, value in row.items():
            if not is_missing(value):
                values[column].add(value)
    most = min(MAX_FACET_VALUES, count // 2)
    names = (column for column, seen in values.items() if len(seen) <= most)
    return tuple(name for name in names if name not in OWN_COLUMNS)


def columns_passed_over(columns: Iterable[str], facets: Iterable[str]) -> tuple[str, ...]:
    """Those that `facet_columns` does not take for facets."""
    return tuple(name for name in dict.fromkeys(columns) if name not in {*facets, *OWN_COLUMNS})
