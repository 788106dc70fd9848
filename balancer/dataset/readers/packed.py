"""Datasets in which files hold the images: Parquet, saved `datasets` folders, WebDataset shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import METADATA_FILES, NO_CLASS, Table, is_missing, read_packed
from balancer.dataset.joining import Joined
from balancer.dataset.readers.annotated import split_in_name
from balancer.dataset.readers.labelled import column_names
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.packed_files import ARROW, NO_IMAGES, PARQUET, TAR
from balancer.dataset.readers.walking import Entry, is_folder, is_picture
from balancer.dataset.table_reader import FILE_NAME, OWN_NAMES
from balancer.errors import DatasetError
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

PARQUET_LAYOUT, SAVED, SHARDS = "parquet", "saved", "webdataset"
SUFFIX_OF = {PARQUET_LAYOUT: PARQUET, SAVED: ARROW, SHARDS: TAR}

DATA_FOLDER = "data"
"""Where the hub keeps the Parquet files of a dataset."""

SAVED_STATE, SAVED_SPLITS = "state.json", "dataset_dict.json"
MAX_STATE_BYTES = 10_000_000


def recognise_packed(root: Path, entries: Sequence[Entry]) -> str:
    """The layout of a folder whose files hold the images; empty if it is none."""
    names = {entry.name for entry in entries}
    if names & {SAVED_SPLITS, SAVED_STATE} and find_packed(root, SAVED):
        return SAVED
    folders = {entry.name for entry in entries if is_folder(entry)}
    if folders - {DATA_FOLDER} or any(is_picture(name) for name in names):
        return ""
    for layout in (PARQUET_LAYOUT, SHARDS):
        if files := find_packed(root, layout):
            return layout_of_file(root, files[0])
    return ""


def layout_of_file(root: Path, name: str) -> str:
    """The layout of a file that holds images; empty if it holds none, such as a table of file names."""
    suffix = Path(name).suffix.lower()
    if suffix == PARQUET:
        try:
            read_packed(root, [name], OWN_NAMES)
        except DatasetError as error:
            if NO_IMAGES in error.message:
                return ""
    return next((layout for layout, of_layout in SUFFIX_OF.items() if of_layout == suffix), "")


def find_packed(root: Path, layout: str) -> list[str]:
    """The files that hold images, relative to the dataset."""
    if layout == SAVED:
        return sorted(_saved_files(root))
    suffix = SUFFIX_OF[layout]
    folders = [folder for folder in (root, root / DATA_FOLDER) if folder == root or not folder.is_symlink()]
    found = [path for folder in folders for path in folder.glob(f"*{suffix}")]
    return sorted(
        path.relative_to(root).as_posix()
        for path in found
        if path.is_file() and path.name not in METADATA_FILES
    )


def read_packed_layout(layout: str) -> Callable[[Path, Sequence[Entry], DatasetListing, DatasetConfig], None]:
    def read(root: Path, _: Sequence[Entry], listing: DatasetListing, settings: DatasetConfig) -> None:
        names = [settings.table] if settings.table is not None else find_packed(root, layout)
        if not names:
            raise DatasetError(
                f"{root}: dataset.layout is {layout}, and there is no *{SUFFIX_OF[layout]} file",
                hint="correct dataset.path or dataset.layout",
            )
        columns = {**column_names(settings), FILE_NAME: (FILE_NAME,)}
        tables = read_packed(root, names, columns)
        _list(tables, listing)

    return read


def _list(tables: Sequence[Table], listing: DatasetListing) -> None:
    listing.joined, listing.read_tables = Joined(), [*tables]
    listing.split_source = "names of files"
    for table in tables:
        if table.rows and "class" not in table.columns:
            raise DatasetError(
                f"{listing.root / table.path}: nothing names the class; the columns are"
                f" {', '.join(table.columns)}",
                hint="name the column in dataset.columns.class",
            )
        listing.joined.remarks += table.remarks
        listing.joined.warnings += table.warnings
        if table.contradicted:
            listing.joined.warnings.append(
                f"{table.path}: {counted(len(table.contradicted), 'name')} more than once with other values,"
                f" such as {next(iter(table.contradicted))}; the first counts"
            )
        split = split_in_name(table.path)
        for key, row in table.rows.items():
            name, class_name = f"{table.path}/{key}", row.get("class", "")
            listing.joined.rows[name] = {"split": split, **row} if split else row
            if not class_name or is_missing(class_name):
                listing.faults.append((name, row.get(NO_CLASS, "its row names no class")))
            else:
                listing.add_class(class_name)
                listing.files[name] = class_name
    listing.packed = True


def _saved_files(root: Path) -> Iterator[str]:
    """The Arrow files of a folder that `save_to_disk` wrote. Its own lists are read, never its code."""
    if (root / SAVED_SPLITS).is_file():
        for split in _listed_splits(root / SAVED_SPLITS):
            yield from (f"{split}/{path.name}" for path in (root / split).glob(f"*{ARROW}"))
        return
    yield from (path.name for path in root.glob(f"*{ARROW}"))


def _listed_splits(path: Path) -> list[str]:
    from balancer.storage.regular_files import read_regular
    from balancer.text.json_reading import read_json

    try:
        value = read_json(read_regular(path, max_bytes=MAX_STATE_BYTES, follow_links=False))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    listed = value.get("splits") if isinstance(value, dict) else None
    return [name for name in listed or () if isinstance(name, str) and "/" not in name and name != ".."]
