"""Split folders: `train`, `validation` and `test`, each with class folders in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.walking import Entry, is_folder, subfolders, walk
from balancer.dataset.splits import SPLIT_NAMES
from balancer.errors import DatasetError
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

HOLDOUT_NAMES = ("holdout", "hold-out", "hold_out")
"""Folders that belong into `dataset.holdout`."""


def is_split_name(name: str) -> bool:
    return name.lower() in SPLIT_NAMES


def holding_folders(root: Path, names: Iterable[str]) -> list[str]:
    """The folders among `names` that are named like a split or a hold-out and hold folders."""
    return [
        name
        for name in sorted(names)
        if (is_split_name(name) or name.lower() in HOLDOUT_NAMES) and subfolders(root / name)
    ]


def why_splits(root: Path, entries: Sequence[Entry]) -> str:
    """Why these are split folders; empty if they are not.

    All folders must be named like splits, and one at least must hold folders: a class may be called `test`.
    """
    names = sorted(entry.name for entry in entries if is_folder(entry))
    holding = holding_folders(root, names)
    if not holding or not all(is_split_name(name) or name.lower() in HOLDOUT_NAMES for name in names):
        return ""
    return f"{', '.join(holding)} {'holds' if len(holding) == 1 else 'hold'} class folders"


def read_split_folders(
    root: Path, entries: Sequence[Entry], listing: DatasetListing, _: DatasetConfig | None = None
) -> None:
    names = sorted(entry.name for entry in entries if is_folder(entry))
    _refuse_holdout(root, names)
    if others := [name for name in names if not is_split_name(name)]:
        raise DatasetError(
            f"{root}: dataset.layout is splits, but {others[0]} is no name of a split",
            hint="name the folders train, validation or test, or leave others out with dataset.exclude",
        )
    walk(entries, 2, listing)
    if not listing.classes:
        raise DatasetError(
            f"{root}: no class folder in {', '.join(names) or 'it'}",
            hint="put the images of each class into a folder named after the class, in each split",
        )
    listing.splits = {name: name.partition("/")[0] for name in listing.files}
    listing.split_source = "split folders"
    _warn_about_unlabelled(listing)
    if not any(SPLIT_NAMES.get(name.lower()) == "train" for name in names):
        listing.warnings.append(f"no split folder is called train: {', '.join(names)} count for no target")


def _refuse_holdout(root: Path, names: Sequence[str]) -> None:
    for name in names:
        if name.lower() in HOLDOUT_NAMES:
            others = [other for other in names if other != name]
            train = next((other for other in others if other.lower().startswith("train")), "train")
            raise DatasetError(
                f"{root}: contains splits of a dataset ({', '.join(sorted(others, reverse=True))}) and a"
                f" hold-out ({name})",
                hint=f"set dataset.path: {root / train} and dataset.holdout: {root / name}",
            )


def _warn_about_unlabelled(listing: DatasetListing) -> None:
    """Test sets of competitions have no labels."""
    per_split = Counter(name.partition("/")[0] for name in listing.outside if "/" in name)
    for split, count in sorted(per_split.items()):
        listing.warnings.append(
            f"{split}: {counted(count, 'image')} {are(count)} in the split folder but in no class folder, and"
            " not counted"
        )
