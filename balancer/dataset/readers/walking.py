"""Walk the folders of a dataset. Links are not followed, and hidden names are skipped."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from balancer.dataset.facet_table import METADATA_FILES
from balancer.dataset.location import SAMPLE_HINT
from balancer.dataset.readers.listing import DatasetListing
from balancer.errors import DatasetError
from balancer.images import IMAGE_SUFFIXES, NAMES_OF_FORMATS

# Images that are reported as unreadable, not ignored like a text file.
OTHER_PICTURE_SUFFIXES = (
    frozenset(".avif .cr2 .dng .heic .heif .jp2 .jxl .nef .ppm .psd .svg .tga".split()) - IMAGE_SUFFIXES
)
PICTURE_SUFFIXES = IMAGE_SUFFIXES | OTHER_PICTURE_SUFFIXES
SYSTEM_FOLDERS = frozenset(
    "__macosx/@eadir/#recycle/$recycle.bin/lost+found/.ipynb_checkpoints/system volume information".split("/")
)
"""Folders that operating systems, NAS boxes and notebooks leave behind, without case."""

_NOT_UTF8 = "its name is not valid UTF-8"

Entry = os.DirEntry[str]


def top_entries(root: Path, listing: DatasetListing) -> list[Entry]:
    """The entries of the dataset folder. Raises DatasetError if there are none."""
    try:
        entries = _visible(root, "", listing)
    except FileNotFoundError:
        raise DatasetError(f"{root}: no such dataset folder", hint=SAMPLE_HINT) from None
    except NotADirectoryError:
        raise DatasetError(f"{root}: a dataset is a folder, not a file", hint=SAMPLE_HINT) from None
    except OSError as error:
        raise DatasetError(f"{root}: the dataset cannot be read: {error.strerror}") from error
    if not entries:
        raise DatasetError(f"{root}: the dataset folder is empty", hint=SAMPLE_HINT)
    return entries


def walk(entries: Iterable[Entry], level: int, listing: DatasetListing) -> None:
    """List everything below the `entries`, in no particular order.

    Folders at `level` are classes: 1 is the top. Images above them are outside; with level 0 all are.
    """
    pending = [(entry, "") for entry in entries]
    while pending:
        entry, parent = pending.pop()
        name = parent + entry.name
        if not is_folder(entry):
            _list_file(entry, name, level, listing)
        elif not _is_utf8(entry.name):
            listing.faults.append((_shown(name), _NOT_UTF8))
        else:
            if name.count("/") == level - 1:
                listing.add_class(entry.name)
            pending.extend((child, f"{name}/") for child in _list_folder(entry.path, name, listing))


def is_folder(entry: Entry) -> bool:
    return entry.is_dir(follow_symlinks=False)


def is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in PICTURE_SUFFIXES


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly in a folder; none if it cannot be read."""
    try:
        return sorted(entry.name for entry in _visible(folder) if is_folder(entry))
    except OSError:
        return []


def _list_folder(path: str, name: str, listing: DatasetListing) -> list[Entry]:
    try:
        return _visible(path, f"{name}/", listing)
    except OSError as error:
        listing.faults.append((name, f"a folder that cannot be read: {error.strerror}"))
        return []


def _list_file(entry: Entry, name: str, level: int, listing: DatasetListing) -> None:
    suffix = posixpath.splitext(entry.name)[1].lower()
    folders = name.split("/")[:-1]
    if entry.is_symlink() and (is_picture(name) or _leads_to_folder(entry)):
        listing.faults.append((_shown(name), "a symbolic link, which is not followed"))
    elif is_picture(name) and not _is_utf8(name):
        listing.faults.append((_shown(name), _NOT_UTF8))
    elif suffix in OTHER_PICTURE_SUFFIXES:
        listing.faults.append((name, _why_not(suffix)))
    elif is_picture(name) and 0 < level <= len(folders):
        listing.files[name] = folders[level - 1]
    elif is_picture(name):
        listing.outside.append(name)
    elif folders and entry.name in METADATA_FILES and not entry.is_symlink():
        listing.tables.append(name)
    elif folders:
        listing.ignored_files += 1


def _visible(folder: str | Path, prefix: str = "", listing: DatasetListing | None = None) -> list[Entry]:
    """The entries that are neither hidden nor system folders; the latter are listed, and what is hidden if it
    is a picture or has some."""
    shown = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.casefold() in SYSTEM_FOLDERS and is_folder(entry):
                if listing is not None:
                    listing.system.append(prefix + entry.name)
            elif not entry.name.startswith("."):
                shown.append(entry)
            elif listing is not None and _hides_pictures(entry):
                listing.hidden.append(_shown(prefix + entry.name))
    return shown


def _hides_pictures(entry: Entry) -> bool:
    if not is_folder(entry):  # "._" begins what macOS writes beside each file on a foreign disk
        return is_picture(entry.name) and not entry.name.startswith("._")
    try:
        with os.scandir(entry.path) as inside:
            return any(is_picture(each.name) and not each.name.startswith("._") for each in inside)
    except OSError:
        return False


def _leads_to_folder(link: Entry) -> bool:
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


def _why_not(suffix: str) -> str:
    if suffix in (".heic", ".heif"):
        return "HEIC needs the package pillow-heif: pip install 'balancer[heic]'"
    return f"{suffix[1:].upper()} is not supported: save it as {NAMES_OF_FORMATS}"
