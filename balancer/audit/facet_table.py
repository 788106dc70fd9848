"""The table of facet values beside a dataset: parquet, CSV or JSON lines with a column `file_name`.

Values are text whatever the table's types are, and no path is ever built from what the table says.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_FILES = ("metadata.parquet", "metadata.csv", "metadata.jsonl")

MAX_FACET_VALUES = 20
"""A column with more values than this is a description, not a facet."""

NO_FACETS = ("file_name", "class", "split")
"""Columns that say something else of an image."""

Table = Mapping[str, Mapping[str, str]]
"""Rows by `table_key` of their file name; a row has no entry where a value is missing."""


def read_table(root: Path, metadata: str | os.PathLike[str] | None) -> Table:
    """The table at `metadata`, relative to `root`, or the first of METADATA_FILES there is, or an empty one.

    Of several rows of one file the first counts. Raises DatasetError.
    """
    path = _table_path(root, metadata)
    if path is None:
        return {}
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: a metadata table is one of {', '.join(_READERS)}")
    try:
        rows = reader(path)
    except OSError as error:
        raise DatasetError(f"{path}: the metadata table cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise DatasetError(f"{path}: the metadata table is damaged: {error}") from error
    if rows and not any("file_name" in row for row in rows):
        raise DatasetError(f"{path}: no column `file_name`; the columns are {', '.join(rows[0])}")
    return {table_key(row["file_name"]): row for row in reversed(rows) if "file_name" in row}


def table_key(file_name: str) -> str:
    """Some systems store accented names decomposed, and tables come from other systems."""
    return unicodedata.normalize("NFC", posixpath.normpath(file_name))


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
    return next((root / name for name in METADATA_FILES if (root / name).is_file()), None)


def _parquet_rows(path: Path) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        try:
            table = pq.ParquetFile(file)
            plain = [column.name for column in table.schema_arrow if _is_plain(column.type)]
            rows = table.read(columns=plain).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    return [_text_values(row) for row in rows]


def _is_plain(column_type: pa.DataType) -> bool:
    """Whether values are text or numbers: a picture inside the table need not be read."""
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer, types.is_floating)
    return any(test(column_type) for test in tests)


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return [_text_values(row) for row in csv.DictReader(file)]


def _json_rows(path: Path) -> list[dict[str, str]]:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line) if line.strip() else {}
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            rows.append(_text_values(row))
    return rows


def _text_values(row: Mapping[str, object]) -> dict[str, str]:
    plain = {key: str(value).strip() for key, value in row.items() if isinstance(value, str | int | float)}
    return {key: text for key, text in plain.items() if key and text}


_READERS = {".parquet": _parquet_rows, ".csv": _csv_rows, ".jsonl": _json_rows}
