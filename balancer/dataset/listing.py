"""List the classes, image files and unusable files of a dataset folder."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from balancer.dataset.facet_table import METADATA_FILES
from balancer.dataset.location import SAMPLE_HINT
from balancer.errors import DatasetError
from balancer.text.quantities import counted

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"))
# Images that are reported as unreadable, not ignored like a text file.
OTHER_PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .cr2 .dng .gif .heic .heif .jp2 .jxl .nef .ppm .psd .svg .tga .tif .tiff".split()
)
SPLITS = frozenset("train training val valid validation dev test testing holdout".split())

_NOT_UTF8 = "its name is not valid UTF-8"


@dataclass(slots=True)
class DatasetListing:
    """Names are relative to the dataset, with slashes. `outside` are images beside the class folders,
    `tables` metadata tables in the folders, `faults` (name, reason) pairs. `ignored_files` counts the other
    files in class folders."""

    classes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    ignored_files: int = 0


def list_dataset(root: Path) -> DatasetListing:
    """List everything below `root`, in no particular order. Raises DatasetError if it is not a dataset."""
    pending = [(entry, "") for entry in _top_entries(root)]
    listing = DatasetListing()
    while pending:
        entry, parent = pending.pop()
        name = parent + entry.name
        if not _is_folder(entry):
            _list_file(entry, name, listing)
        elif not _is_utf8(entry.name):
            listing.faults.append((_shown(name), _NOT_UTF8))
        else:
            if not parent:
                listing.classes.append(name)
            pending.extend((child, f"{name}/") for child in _list_folder(entry.path, name, listing))
    _check_classes(root, listing)
    return listing


def _top_entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        entries = _visible(root)
    except FileNotFoundError:
        raise DatasetError(f"{root}: no such dataset folder", hint=SAMPLE_HINT) from None
    except NotADirectoryError:
        raise DatasetError(f"{root}: a dataset is a folder, not a file", hint=SAMPLE_HINT) from None
    except OSError as error:
        raise DatasetError(f"{root}: the dataset cannot be read: {error.strerror}") from error
    if not entries:
        raise DatasetError(f"{root}: the dataset folder is empty", hint=SAMPLE_HINT)
    return entries


def _list_folder(path: str, name: str, listing: DatasetListing) -> list[os.DirEntry[str]]:
    try:
        return _visible(path)
    except OSError as error:
        listing.faults.append((name, f"a folder that cannot be read: {error.strerror}"))
        return []


def _list_file(entry: os.DirEntry[str], name: str, listing: DatasetListing) -> None:
    suffix = posixpath.splitext(entry.name)[1].lower()
    is_picture = suffix in IMAGE_SUFFIXES or suffix in OTHER_PICTURE_SUFFIXES
    if entry.is_symlink() and (is_picture or _leads_to_folder(entry)):
        listing.faults.append((_shown(name), "a symbolic link, which is not followed"))
    elif is_picture and not _is_utf8(name):
        listing.faults.append((_shown(name), _NOT_UTF8))
    elif suffix in OTHER_PICTURE_SUFFIXES:
        listing.faults.append((name, f"{suffix[1:].upper()} is not supported; PNG, JPEG and WebP are"))
    elif is_picture:
        (listing.files if "/" in name else listing.outside).append(name)
    elif "/" in name and entry.name in METADATA_FILES and not entry.is_symlink():
        listing.tables.append(name)
    elif "/" in name:
        listing.ignored_files += 1


def _check_classes(root: Path, listing: DatasetListing) -> None:
    if not listing.classes:
        direct = f"; {counted(len(listing.outside), 'image')} directly in it" if listing.outside else ""
        hint = "put the images of each class into a folder named after the class"
        raise DatasetError(f"{root}: no class folder{direct}", hint=hint)
    if all(name.lower() in SPLITS and _has_folders(root / name) for name in listing.classes):
        splits = sorted(listing.classes, key=lambda name: (not name.lower().startswith("train"), name))
        problem = f"{root}: contains splits of a dataset ({', '.join(splits)}), not classes"
        raise DatasetError(problem, hint=f"name one of them, such as {root / splits[0]}")


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _has_folders(folder: Path) -> bool:
    try:
        return any(_is_folder(entry) for entry in _visible(folder))
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a link cycle
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """The name with invalid bytes replaced, for JSON and the manifest."""
    return os.fsencode(name).decode(errors="replace")
