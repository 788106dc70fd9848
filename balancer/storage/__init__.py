"""The one door to a run folder: publish a file once, replace one on purpose, create, read, list, delete.

A run folder is a local path (`local`) or a prefix in a bucket (`objects`); `contract` says what both do.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from balancer.errors import UsageError
from balancer.storage.address import bucket_address, local_path
from balancer.storage.contract import (
    DiskFullError,
    FileInfo,
    MissingFileError,
    NoCreateOnlyError,
    OtherContentError,
    Paths,
    Storage,
    is_temporary,
)
from balancer.storage.local import LocalStorage
from balancer.storage.probe import refuse_without_create_only
from balancer.storage.system_calls import System
from balancer.storage.user_paths import expanded

__all__ = [
    "DiskFullError",
    "FileInfo",
    "LocalStorage",
    "MissingFileError",
    "MissingFolderError",
    "NoCreateOnlyError",
    "OtherContentError",
    "Paths",
    "Storage",
    "System",
    "is_temporary",
    "open_storage",
    "refuse_inside_run",
    "refuse_without_create_only",
    "slug",
    "slug_of_before",
    "write_outside_runs",
]

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LONGEST = 64
_HASH_BYTES = 8
_HASH_BYTES_BEFORE = 3
"""Of 5000 names of a camera in one folder, two share 24 bits more often than not."""

_HASHED_NAME = re.compile(r".*-(?:[0-9a-f]{6}|[0-9a-f]{16})")
_HASHED_NAME_BEFORE = re.compile(r".*-[0-9a-f]{6}")


class MissingFolderError(UsageError):
    """There is nothing at the path of a run folder."""


def slug(name: str) -> str:
    """A file name for any name: `[a-z0-9_-]{1,64}`, the name itself if it already is one.

    A changed name ends in a 64-bit hash of the original, so different names have different slugs. "-" alone
    is never returned; it stands for a facet that does not apply.
    """
    return name if _is_plain(name, _HASHED_NAME) else _hashed(name, _HASH_BYTES)


def slug_of_before(name: str) -> str:
    """The slug that versions with 24-bit hashes gave: to find files of runs begun then, not to write any."""
    return name if _is_plain(name, _HASHED_NAME_BEFORE) else _hashed(name, _HASH_BYTES_BEFORE)


def _is_plain(name: str, hashed: re.Pattern[str]) -> bool:
    return _PLAIN_NAME.fullmatch(name) is not None and not hashed.fullmatch(name)


def _hashed(name: str, num_bytes: int) -> str:
    most = _LONGEST - 1 - 2 * num_bytes
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:most]
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=num_bytes).hexdigest()
    return f"{plain or 'name'}-{digest}"


def refuse_inside_run(path: str | os.PathLike[str], option: str) -> None:
    """UsageError for a file that a user wants written where only a run and its commands write."""
    for folder in Path(os.path.realpath(path)).parents:
        if (folder / "run.json").is_file() and (folder / "manifest").is_dir():
            raise UsageError(
                f"{option} {os.fspath(path)} is inside the run folder {folder}, where it could replace what"
                " the run needs",
                hint="choose a place outside it",
            )


def write_outside_runs(path: str | os.PathLike[str], data: bytes, option: str) -> None:
    """Write a file where a user wants it, whole or not at all, over one that is there; `option` is how the
    user named it. UsageError for a place that is no file, has no folder or is inside a run."""
    path = expanded(path, option)
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(
            f"{os.fspath(path)} is not a file that can be written", hint=f"choose another {option}"
        )
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {os.fspath(path)}: no folder {folder}", hint="make the folder first")
    refuse_inside_run(path, option)
    LocalStorage(folder).replace(name, data)


def open_storage(uri: str | os.PathLike[str], create: bool) -> Storage:
    """A run folder by local path, `file://`, `s3://`, `gs://` or `az://` address.

    A local folder is made if need be with `create`; a bucket has none to make, and is not asked for anything
    yet. Raises UsageError if there is no such folder, or no sense in the address, StorageError if it cannot
    be used.
    """
    text = os.fspath(uri)
    if (address := bucket_address(text)) is not None:
        from balancer.storage.buckets import open_bucket

        return open_bucket(address)
    root = local_path(text)
    if create:
        return LocalStorage.make(root)
    if os.path.isdir(root):
        return LocalStorage(root)
    hint = "give the folder that `balancer run` wrote"
    if os.path.lexists(root):
        what = "is a file, not a folder" if os.path.exists(root) else "is a link to nothing"
        raise UsageError(f"run folder {root} {what}", hint=hint)
    raise MissingFolderError(f"run folder {root} does not exist", hint=hint)
