"""Choose the reader of a dataset: the layout that the config names, or the one that the folder shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import METADATA_FILES
from balancer.dataset.location import SAMPLE_HINT
from balancer.dataset.readers.annotated import (
    VOC_ANNOTATIONS,
    find_coco,
    is_voc,
    read_coco,
    read_voc,
)
from balancer.dataset.readers.annotation_files import VOC_IMAGES
from balancer.dataset.readers.folders import read_folders
from balancer.dataset.readers.labelled import TABLE_SUFFIXES, find_tables, read_table_layout
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.packed import (
    SUFFIX_OF,
    find_packed,
    layout_of_file,
    read_packed_layout,
    recognise_packed,
)
from balancer.dataset.readers.selection import is_left_out, select
from balancer.dataset.readers.split_folders import read_split_folders, why_splits
from balancer.dataset.readers.suspicions import suspect
from balancer.dataset.readers.walking import Entry, is_folder, top_entries
from balancer.errors import DatasetError
from balancer.manifest.layout import LOG_DIR, RUN_FILE

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

AUTO, FOLDERS, SPLIT_FOLDERS, TABLE = "auto", "folders", "splits", "table"
COCO, VOC = "coco", "voc"

FILES = (*TABLE_SUFFIXES, ".json", ".arrow", ".tar")
"""Suffixes of files that can be a dataset's path."""

Reader = Callable[[Path, Sequence[Entry], DatasetListing, "DatasetConfig"], None]

READERS: Mapping[str, Reader] = {
    FOLDERS: read_folders,
    SPLIT_FOLDERS: read_split_folders,
    TABLE: read_table_layout,
    COCO: read_coco,
    VOC: read_voc,
    **{layout: read_packed_layout(layout) for layout in SUFFIX_OF},
}


def list_dataset(path: Path, settings: DatasetConfig, classes: Collection[str] = ()) -> DatasetListing:
    """List the images of a dataset. Raises DatasetError if it is not one. `classes` are those of a config."""
    root, settings = _enter(path, settings)
    if (root / RUN_FILE).is_file() and (root / LOG_DIR).is_dir():
        raise DatasetError(
            f"{path}: this is the folder of a run, not a dataset",
            hint="`balancer audit RUN` counts its images; `balancer export RUN csv DIR` writes a dataset",
        )
    listing = DatasetListing(root, settings.layout, "as the config says")
    every = top_entries(root, listing)
    left_out = [entry.name for entry in every if is_folder(entry) and is_left_out(entry.name, settings)]
    entries = [entry for entry in every if entry.name not in left_out]
    if settings.layout == AUTO:
        listing.layout, listing.reason = _recognise(root, entries, settings)
    if settings.crop_boxes and listing.layout not in (COCO, VOC):
        raise DatasetError(
            f"{root}: dataset.crop_boxes is set, and the layout {listing.layout} has no boxes",
            hint=f"set dataset.layout to {COCO} or {VOC}, or remove dataset.crop_boxes",
        )
    by_folder = listing.layout in (FOLDERS, SPLIT_FOLDERS)
    READERS[listing.layout](root, entries if by_folder else every, listing, settings)
    listing.labels = dict(listing.files)
    listing.left_out_folders = left_out if by_folder else []
    select(listing, settings, left_out)
    suspect(root, listing, classes)
    return listing


def _enter(path: Path, settings: DatasetConfig) -> tuple[Path, DatasetConfig]:
    """The folder of a dataset, and its settings with the table, if the path is that of a table."""
    if not path.is_file():
        return path, settings
    if path.suffix.lower() not in FILES:
        raise DatasetError(
            f"{path}: a dataset is a folder, not a file, unless that is a table or holds images"
            f" ({', '.join(FILES)})",
            hint=SAMPLE_HINT,
        )
    if settings.table is not None:
        raise DatasetError(
            f"dataset.table: {path} is a table itself",
            hint="remove dataset.table, or set dataset.path to the folder",
        )
    return path.parent, settings.model_copy(update={"table": path.name})


def _recognise(root: Path, entries: Sequence[Entry], settings: DatasetConfig) -> tuple[str, str]:
    if settings.table is not None and settings.table.lower().endswith(".json"):
        return COCO, f"{settings.table} is a JSON file"
    if settings.table is not None:
        if packed := layout_of_file(root, settings.table):
            return packed, f"{settings.table} holds images"
        return TABLE, f"{settings.table} names files and classes"
    if packed := recognise_packed(root, entries):
        return packed, f"{find_packed(root, packed)[0]} holds images"
    if coco := find_coco(root, entries):
        return COCO, f"{coco[0]} is there"
    if is_voc(entries):
        return VOC, f"{VOC_ANNOTATIONS} and {VOC_IMAGES} are there"
    if why := why_splits(root, entries):
        return SPLIT_FOLDERS, why
    tables = [name for name in METADATA_FILES if name in find_tables(entries)]
    if tables and not any(map(is_folder, entries)):
        return TABLE, f"{tables[0]} lies beside the images"
    return FOLDERS, "each folder is a class"
