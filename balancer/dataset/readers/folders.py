"""Class folders: one folder of images for each class, directly in the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.split_folders import holding_folders
from balancer.dataset.readers.walking import Entry, is_folder, walk
from balancer.errors import DatasetError
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig


def read_folders(
    root: Path, entries: Sequence[Entry], listing: DatasetListing, _: DatasetConfig | None = None
) -> None:
    walk(entries, 1, listing)
    if not listing.classes:
        direct = f"; {counted(len(listing.outside), 'image')} directly in it" if listing.outside else ""
        hint = "put the images of each class into a folder named after the class"
        raise DatasetError(f"{root}: no class folder{direct}", hint=hint)
    if splits := holding_folders(root, map(_name, filter(is_folder, entries))):
        others = [name for name in listing.classes if name not in splits]
        if others:
            listing.warnings.append(
                f"{', '.join(splits)}: named like a split and holding folders, but taken for a class, because"
                f" {others[0]} is no split; dataset.exclude can leave out {others[0]}"
            )


def _name(entry: Entry) -> str:
    return entry.name
