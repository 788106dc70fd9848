"""Choose the reader of a dataset: the layout that the config names, or the one that the folder shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.readers.folders import read_folders
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.selection import is_left_out, select
from balancer.dataset.readers.split_folders import read_split_folders, why_splits
from balancer.dataset.readers.suspicions import suspect
from balancer.dataset.readers.walking import Entry, is_folder, top_entries

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

FOLDERS, SPLIT_FOLDERS = "folders", "splits"

Reader = Callable[[Path, Sequence[Entry], DatasetListing], None]

READERS: Mapping[str, Reader] = {FOLDERS: read_folders, SPLIT_FOLDERS: read_split_folders}


def list_dataset(root: Path, settings: DatasetConfig, classes: Collection[str] = ()) -> DatasetListing:
    """List the images of a dataset. Raises DatasetError if it is not one. `classes` are those of a config."""
    listing = DatasetListing(settings.layout, "as the config says")
    every = top_entries(root, listing)
    left_out = [entry.name for entry in every if is_folder(entry) and is_left_out(entry.name, settings)]
    entries = [entry for entry in every if entry.name not in left_out]
    if settings.layout == "auto":
        listing.layout, listing.reason = _recognise(root, entries)
    READERS[listing.layout](root, entries, listing)
    select(listing, settings, left_out)
    suspect(root, listing, classes)
    return listing


def _recognise(root: Path, entries: Sequence[Entry]) -> tuple[str, str]:
    if why := why_splits(root, entries):
        return SPLIT_FOLDERS, why
    return FOLDERS, "each folder is a class"
