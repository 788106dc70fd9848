"""The image files that rows name: in the run folder, or, of real images by reference, in the dataset."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.errors import StorageError
from balancer.manifest.rows import REAL
from balancer.storage import MissingFileError, Storage, open_storage

if TYPE_CHECKING:
    from balancer.manifest.runfile import RunInfo


_IMPORTED_IN = os.getpid()
"""A spawned process imports anew, a forked one does not."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The images of one run. Plain values only, so that it goes to other processes."""

    uri: str
    by_reference: bool

    @classmethod
    def of(cls, uri: str, info: RunInfo) -> ImageFiles:
        return cls(uri, info.real_images_by_reference)

    def read(self, file_name: str, source: str) -> bytes:
        """The bytes of the image that a row of this `source` names; MissingFileError, StorageError."""
        return read_image_file(_storage_of(self.uri, os.getpid()), file_name, source, self.by_reference)

    def local_path(self, file_name: str, source: str) -> str | None:
        """Its full path, whether or not it is there; None if the run is not on a file system."""
        if _is_reference(file_name, source, self.by_reference):
            return file_name
        parts, folder = file_name.split("/"), os.path.abspath(self.uri)
        if any(part in ("", ".", "..") for part in parts):
            raise StorageError(f"{file_name!r} is not a path inside the run folder {self.uri}")
        return os.path.join(folder, *parts) if os.path.isdir(folder) else None


def read_image_file(storage: Storage, file_name: str, source: str, by_reference: bool) -> bytes:
    """As `ImageFiles.read`, of an open run folder."""
    if _is_reference(file_name, source, by_reference):
        return _read_referenced(file_name)
    return storage.read(file_name)


def _is_reference(file_name: str, source: str, by_reference: bool) -> bool:
    return by_reference and source == REAL and os.path.isabs(file_name)


@functools.lru_cache(maxsize=4)
def _storage_of(uri: str, process: int) -> Storage:
    """One a process. An object store's client does not survive a fork: its threads are gone, and it waits for
    them."""
    if "://" in uri and process != _IMPORTED_IN:
        raise StorageError(
            f"{uri}: images in a bucket cannot be read in a process that was forked",
            hint="DataLoader(..., multiprocessing_context='spawn')",
        )
    return open_storage(uri, create=False)


def _read_referenced(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise MissingFileError(f"{name} is missing") from error
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror}") from error
