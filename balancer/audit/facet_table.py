"""The table of facet values beside a dataset: parquet, CSV or JSON lines with a column `file_name`.

Values are text whatever the table's types are, and no path is ever built from what the table says. It is read
in a process with limits on memory and time (`table_reader`), whose answer is not trusted either.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from balancer.audit.table_reader import READERS, table_key
from balancer.errors import DatasetError

__all__ = ["Table", "facet_columns", "read_table", "row_of", "table_key"]

METADATA_FILES = ("metadata.parquet", "metadata.csv", "metadata.jsonl")

MAX_FACET_VALUES = 20
"""A column with more values than this is a description, not a facet."""

NO_FACETS = ("file_name", "class", "split")
"""Columns that say something else of an image."""

LONGEST_REASON = 1_000

Table = Mapping[str, Mapping[str, str]]
"""Rows by `table_key` of their file name; a row has no entry where a value is missing."""


def read_table(root: Path, metadata: str | os.PathLike[str] | None) -> Table:
    """The table at `metadata`, relative to `root`, or the first of METADATA_FILES there is, or an empty one.

    Of several rows of one file the first counts. Raises DatasetError.
    """
    path = _table_path(root, metadata)
    if path is None:
        return {}
    if path.suffix.lower() not in READERS:
        raise DatasetError(f"{path}: a metadata table is one of {', '.join(READERS)}")
    from balancer.audit.lanes import table_lines

    table: dict[str, Mapping[str, str]] = {}
    columns: dict[str, str] = {}
    end: object = None
    try:
        for line in table_lines(path):
            end = json.loads(line)
            if isinstance(end, list):
                key, row = _parse_row(end, columns)
                table.setdefault(key, row)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: the metadata table cannot be read: {error}") from error
    if isinstance(end, dict) and isinstance(end.get("reason"), str):
        raise DatasetError(f"{path}: {end['reason'][:LONGEST_REASON]}")
    if type(end) is not int:
        raise DatasetError(f"{path}: the metadata table cannot be read: its reader ended unexpectedly")
    return table


def _parse_row(told: list[object], columns: dict[str, str]) -> tuple[str, Mapping[str, str]]:
    """A key and its row, whose `columns` all rows share; ValueError if that is not what was told."""
    match told:
        case [str(key), dict(row)] if all(isinstance(value, str) for value in row.values()):
            return key, {columns.setdefault(name, name): value for name, value in row.items()}
    raise ValueError("its reader gave no answer that makes sense")


def row_of(table: Table, file_name: str) -> Mapping[str, str]:
    """What the table says of an image; nothing if it has no row."""
    return table.get(table_key(file_name), {})


def facet_columns(table: Table) -> tuple[str, ...]:
    """The columns that look like facets: few values, each used again and again."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for row in table.values():
        for column, value in row.items():
            values[column].add(value)
    most = min(MAX_FACET_VALUES, len(table) // 2)
    names = (column for column, seen in values.items() if len(seen) <= most)
    return tuple(name for name in names if name not in NO_FACETS)


def _table_path(root: Path, metadata: str | os.PathLike[str] | None) -> Path | None:
    if metadata is not None:
        return root / metadata
    named = (root / name for name in METADATA_FILES)
    return next((path for path in named if os.path.lexists(path) and not path.is_dir()), None)
