"""Datasets whose classes are in a table of files and labels.

No path is built from the table: its file names are compared with the files below its folder. So a name with
`..`, an absolute name elsewhere or a link leads nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.decoding.addresses import object_uri
from balancer.dataset.facet_table import (
    METADATA_FILES,
    NO_CLASS,
    Table,
    is_missing,
    name_tables,
    read_labels,
)
from balancer.dataset.joining import join
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.walking import Entry, walk
from balancer.dataset.table_reader import FILE_NAME, ColumnNames
from balancer.errors import DatasetError
from balancer.storage.address import KEPT_OUT, has_secret
from balancer.text.names import composed
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")

USUAL_COLUMNS: ColumnNames = {
    FILE_NAME: (
        "file_name",
        "filename",
        "file",
        "filepath",
        "file_path",
        "path",
        "image",
        "image_path",
        "name",
    ),
    "class": ("class", "label", "class_name", "category", "labels", "target"),
    "split": ("split", "subset", "set"),
}
"""Columns of tables of labels, as their makers call them."""

SETTINGS = {FILE_NAME: "file", "class": "class", "split": "split"}


def read_table_layout(
    root: Path, entries: Sequence[Entry], listing: DatasetListing, settings: DatasetConfig
) -> None:
    name = settings.table or _find_table(root, entries)
    if settings.metadata is not None:
        raise DatasetError(
            f"dataset.metadata: the classes are in {root / name}, and so are facets",
            hint="add the facets as columns to that table, and remove dataset.metadata",
        )
    if not os.path.lexists(root / name):
        hint = "correct dataset.table, which is relative to dataset.path"
        raise DatasetError(f"dataset.table: no such table: {root / name}", hint=hint)
    names = column_names(settings)
    table = read_labels(root, name, names)
    if "class" not in table.columns:
        raise DatasetError(
            f"{root / name}: no column names the class; the columns are {', '.join(table.columns)}",
            hint="name it in dataset.columns.class",
        )
    walk(entries, 0, listing)
    listing.outside += _list_objects(table, root)
    label(listing, [table], root)


def _list_objects(table: Table, root: Path) -> list[str]:
    """The addresses among the file names. One with a password would be shown, and kept in rows."""
    uris = [uri for uri in map(object_uri, table.rows) if uri is not None]
    for uri in uris:
        if has_secret(uri):
            problem = f"{root / table.path}: an address in it holds a user or a password"
            raise DatasetError(problem, hint=KEPT_OUT)
    return uris


def label(listing: DatasetListing, tables: Sequence[Table], root: Path) -> None:
    """Give each listed file the class that its row names."""
    of = name_tables(tables)
    listing.split_source = f"column `split` of {of}"
    joined = join(tables, root, listing.every_name())
    listing.tables, listing.read_tables, listing.joined = [], [*tables], joined
    beside, listing.outside = set(listing.outside), []
    for name, row in joined.rows.items():
        class_name = row.get("class", "")
        if not class_name or is_missing(class_name):
            listing.faults.append((name, row.get(NO_CLASS, "its row in the table names no class")))
            continue
        listing.add_class(class_name)
        if name in beside:
            listing.files[name] = class_name
    listing.faults = [(name, reason) for name, reason in listing.faults if name in joined.rows]
    listing.outside = sorted(beside - joined.rows.keys())
    if listing.outside:
        count = len(listing.outside)
        listing.warnings.append(
            f"{counted(count, 'image')} {are(count)} in no row of {of}, and not counted, such as"
            f" {listing.outside[0]}"
        )


def find_tables(entries: Sequence[Entry]) -> list[str]:
    """The names of tables directly in the dataset."""
    return sorted(
        entry.name
        for entry in entries
        if entry.name.lower().endswith(TABLE_SUFFIXES) and entry.is_file(follow_symlinks=False)
    )


def _find_table(root: Path, entries: Sequence[Entry]) -> str:
    tables = find_tables(entries)
    usual = [name for name in METADATA_FILES if name in tables]
    if len(tables) == 1 or usual:
        return (usual or tables)[0]
    problem = f"which of {', '.join(tables)}" if tables else "there is no table"
    raise DatasetError(
        f"{root}: dataset.layout is table, and {problem}" + (" is it?" if tables else " in the folder"),
        hint="name the table of files and classes in dataset.table",
    )


def column_names(settings: DatasetConfig) -> ColumnNames:
    """The columns that `dataset.columns` names, and the usual names of the others."""
    chosen = {str(name): composed(column) for name, column in settings.columns.items()}
    return {
        own: (chosen[SETTINGS[own]],) if SETTINGS[own] in chosen else usual
        for own, usual in USUAL_COLUMNS.items()
    }
