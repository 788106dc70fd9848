"""Read tables of facet values: parquet, CSV or JSON lines with a column `file_name`.

All values become text, and no path is built from a table's content. A process with limits on memory and
time reads the table (`table_reader`), and its answer is not trusted either.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balancer.dataset.readers.annotation_files import BOXES, NO_CLASS
from balancer.dataset.table_reader import (
    EXPORT_COLUMNS,
    MAX_COLUMNS,
    OWN_COLUMNS,
    OWN_NAMES,
    READERS,
    ColumnNames,
)
from balancer.errors import DatasetError
from balancer.manifest.columns import exported_names
from balancer.text.json_reading import read_json

__all__ = [
    "NO_CLASS",
    "Table",
    "TableRow",
    "find_facet_columns",
    "find_ignored_columns",
    "is_missing",
    "name_tables",
    "read_table",
    "read_tables",
]

METADATA_FILES = ("metadata.parquet", "metadata.csv", "metadata.jsonl")

MAX_TABLES_NAMED = 3
MAX_FACET_VALUES = 20
"""A column with more distinct values is not a facet but a description."""

MAX_REASON_CHARS = 1_000
MAX_LINES = 20
"""Remarks and warnings per table."""

_MISSING = frozenset(("nan", "null", "<na>", "#n/a"))
"""Texts that other tools write for a missing value. `none` and `na` can be real values."""

TableRow = Mapping[str, str]
"""Values of one file by column; missing values have no entry."""


@dataclass(slots=True)
class Table:
    """`path` and `folder` are relative to the dataset, "" for its top. `rows` are keyed by the `table_key` of
    the file name in the table. Of several rows for one name the first is kept; `contradicted` counts rows
    that differ from it."""

    path: str
    folder: str
    rows: dict[str, TableRow] = field(default_factory=dict)
    contradicted: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, key: str, row: TableRow) -> None:
        if self.rows.setdefault(key, row) != row:
            self.contradicted[key] = self.contradicted.get(key, 1) + 1


def read_tables(
    root: Path, metadata: str | os.PathLike[str] | None, listed: Sequence[str] = ()
) -> list[Table]:
    """Read the table at `metadata`, relative to `root`; by default one of METADATA_FILES at the top and one
    in each folder of `listed`. Raises DatasetError."""
    if metadata is not None:
        if not os.path.lexists(root / metadata):
            hint = "correct dataset.metadata, which is relative to the dataset, or remove it"
            raise DatasetError(f"dataset.metadata: no such table: {root / metadata}", hint=hint)
        return [_read(root, os.fspath(metadata))]
    at_top = [name for name in METADATA_FILES if os.path.lexists(root / name) and not (root / name).is_dir()]
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for name in (*at_top, *sorted(listed, key=lambda name: METADATA_FILES.index(name.rpartition("/")[2]))):
        by_folder[name.rpartition("/")[0]].append(name)
    tables = _read_all(root, [names[0] for names in by_folder.values()])
    for table in tables:
        for other in by_folder[table.folder][1:]:
            table.warnings.append(f"{other} is not read, because {table.path} exists")
    return tables


def read_table(root: Path, metadata: str | os.PathLike[str] | None = None) -> Table | None:
    """Read the table at the top of a dataset; None if there is none."""
    return next(iter(read_tables(root, metadata)), None)


def _read(root: Path, name: str) -> Table:
    [table] = _read_all(root, [name])
    return table


def read_labels(root: Path, name: str, columns: ColumnNames) -> Table:
    """Read the table of a dataset whose classes are in it. Raises DatasetError."""
    [table] = _read_all(root, [name], columns)
    return table


def read_annotations(root: Path, names: Sequence[str], with_boxes: bool = False) -> list[Table]:
    """Read COCO files, or the folder of annotations of a Pascal VOC dataset. Raises DatasetError."""
    return _read_lines(root, names, {**OWN_NAMES, BOXES: (BOXES,)} if with_boxes else OWN_NAMES)


def _read_all(root: Path, names: Sequence[str], columns: ColumnNames = OWN_NAMES) -> list[Table]:
    """Read the tables one after the other in one process."""
    for name in names:
        if Path(name).suffix.lower() not in READERS:
            raise DatasetError(f"{root / name}: a metadata table must be one of {', '.join(READERS)}")
    return _read_lines(root, names, columns)


def name_tables(tables: Sequence[Table]) -> str:
    """The paths of the first tables."""
    return ", ".join(table.path for table in tables[:MAX_TABLES_NAMED])


def read_packed(root: Path, names: Sequence[str], columns: ColumnNames) -> list[Table]:
    """Read the rows of files that hold images. Raises DatasetError."""
    return _read_lines(root, names, columns, packed=True)


def _read_lines(
    root: Path, names: Sequence[str], columns: ColumnNames = OWN_NAMES, packed: bool = False
) -> list[Table]:
    if not names:
        return []
    from balancer.dataset.decoding.decoders import read_table_lines

    for name in names:
        _refuse_links(root, name)
    paths = [root / name for name in names]
    is_plain = columns is OWN_NAMES and not packed
    lines = read_table_lines(paths) if is_plain else read_table_lines(paths, columns, packed)
    known: dict[str, str] = {}
    return [_read_one(root, name, lines, known) for name in names]


def _refuse_links(root: Path, name: str) -> None:
    """A file below the dataset lies there, and not behind a link; a path elsewhere is the user's own."""
    if not os.path.isabs(name):
        for folder in Path(name).parents:
            if (root / folder).is_symlink() and folder != Path("."):
                raise DatasetError(
                    f"{root / name}: {root / folder} is a symbolic link, which is not followed",
                    hint="set dataset.path to the folder that it leads to, or move the files",
                )


def _read_one(root: Path, name: str, lines: Iterator[bytes], columns: dict[str, str]) -> Table:
    table = Table(name, _find_table_folder(root, name))
    end: object = None
    try:
        for line in lines:
            end = read_json(line)
            if isinstance(end, list):
                table.add(*_parse_row(end, columns))
            elif not _take_note(table, end, columns):
                break
            if len(columns) > MAX_COLUMNS:
                raise ValueError(f"together, the tables have more than {MAX_COLUMNS:,} columns, the limit")
    except ValueError as error:
        raise DatasetError(f"{root / name}: the file cannot be read: {error}") from error
    if isinstance(end, dict) and isinstance(end.get("reason"), str):
        raise DatasetError(f"{root / name}: {end['reason'][:MAX_REASON_CHARS]}")
    if type(end) is not int:
        raise DatasetError(f"{root / name}: the file cannot be read: its reader ended unexpectedly")
    return table


def _find_table_folder(root: Path, name: str) -> str:
    """The folder of a table inside the dataset; its file names may be relative to that."""
    folder = os.path.relpath(os.path.dirname(root / name) or ".", root)
    return "" if folder == os.curdir or folder.startswith(os.pardir) else folder.replace(os.sep, "/")


def _take_note(table: Table, entry: object, columns: dict[str, str]) -> bool:
    """Keep columns, a remark or a warning; False for anything else."""
    match entry:
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
        kept.append(f"{table.path}: {text[:MAX_REASON_CHARS]}")
    return True


def _parse_row(entry: list[object], columns: dict[str, str]) -> tuple[str, TableRow]:
    """The key and the row of an entry; rows share the strings in `columns`. ValueError for anything else."""
    match entry:
        case [str(key), dict(row)] if all(isinstance(value, str) for value in row.values()):
            return key, {columns.setdefault(name, name): value for name, value in row.items()}
    raise ValueError("its reader gave an invalid answer")


def is_missing(text: str) -> bool:
    return text.casefold() in _MISSING


def find_facet_columns(rows: Iterable[TableRow]) -> tuple[str, ...]:
    """Columns that look like facets: few values, each used many times."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    count = 0
    for row in rows:
        count += 1
        for column, value in row.items():
            if not is_missing(value):
                values[column].add(value)
    most = min(MAX_FACET_VALUES, count // 2)
    names = (column for column, seen in values.items() if len(seen) <= most)
    known = {
        *OWN_COLUMNS,
        NO_CLASS,
        *_columns_of_exports(values),
    }
    return tuple(name for name in names if name not in known)


def _columns_of_exports(columns: Collection[str]) -> Iterator[str]:
    """What an export of a run says of its images, besides their facets; nothing for other tables."""
    if EXPORT_COLUMNS.issubset(columns):
        yield from ("id", "label", "unjudged", *exported_names())
        yield from (name for name in columns if name.startswith("score_"))


def find_ignored_columns(columns: Iterable[str], facets: Iterable[str]) -> tuple[str, ...]:
    """Columns that are neither facets nor known to the audit."""
    names = [*dict.fromkeys(columns)]
    known = {*facets, *OWN_COLUMNS, *_columns_of_exports(names)}
    return tuple(name for name in names if name not in known)
