"""The image files that rows name: in the run folder, or, of real images by reference, in the dataset.

Whoever wrote the rows may be a stranger. Only regular files are read, up to the size that an image of the run
can have; none is reached through a link, but for the folders above a referenced image, which are the user's.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.errors import StorageError
from balancer.manifest.rows import REAL
from balancer.storage import LocalStorage, MissingFileError, Storage, open_storage
from balancer.storage.contract import check_path
from balancer.storage.regular_files import check_regular, read_regular
from balancer.text.commands import suggested

if TYPE_CHECKING:
    from balancer.manifest.runfile import RunInfo

MAX_IMAGE_BYTES = 1_000_000_000
MAX_IMAGE_PIXELS = 1_000_000_000
"""Whatever a run's config says: as in the config's own limits."""

USUAL_MEGA = 64
"""Megabytes and megapixels of a run that does not say: the defaults of `dataset.max_image_*`."""

_IMPORTED_IN = os.getpid()
"""A spawned process imports anew, a forked one does not."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The images of one run. Plain values only, so that it goes to other processes."""

    uri: str
    by_reference: bool
    max_bytes: int

    @classmethod
    def of(cls, uri: str, info: RunInfo) -> ImageFiles:
        return cls(uri, info.real_images_by_reference, max_image_bytes(info))

    def read(self, file_name: str, source: str) -> bytes:
        """The bytes of the image that a row of this `source` names; MissingFileError, StorageError."""
        with self._missing_told():
            return self.read_from(_open_run(self.uri, os.getpid()), file_name, source)

    def read_from(self, storage: Storage, file_name: str, source: str) -> bytes:
        """As `read`, of a run folder that is open already."""
        if _is_reference(file_name, source, self.by_reference):
            return _read_referenced(file_name, self.max_bytes)
        return storage.read(file_name, self.max_bytes)

    def local_paths(self, named: Iterable[tuple[str, str]]) -> list[str] | None:
        """The full paths of images, by file name and source, that other programs may open; None if the run
        is not on a file system.

        StorageError if one is no regular file or can be reached only by a link, MissingFileError if it is
        not there.
        """
        storage = _open_run(self.uri, os.getpid())
        if not isinstance(storage, LocalStorage):
            return None
        folders: dict[str, str] = {}
        with self._missing_told():
            return [
                _regular_path(name)
                if _is_reference(name, source, self.by_reference)
                else _path_in_run(storage, name, folders)
                for name, source in named
            ]

    @contextmanager
    def _missing_told(self) -> Iterator[None]:
        """Adds the command that lists all missing images to an error about one."""
        try:
            yield
        except MissingFileError as error:
            hint = f"{suggested('fsck', self.uri)} lists every image that is missing"
            raise MissingFileError(error.message, hint=hint) from error


def max_image_bytes(info: RunInfo) -> int:
    """No image of the run is larger: real ones keep to the config, generated ones to their pixels."""
    allowed = 1e6 * _number(info, "dataset", "max_image_megabytes", USUAL_MEGA)
    generated = 1_000_000 + 4 * _generated_pixels(info)
    return round(min(max(allowed, generated), MAX_IMAGE_BYTES))


def max_image_pixels(info: RunInfo) -> int:
    allowed = 1e6 * _number(info, "dataset", "max_image_megapixels", USUAL_MEGA)
    return round(min(max(allowed, _generated_pixels(info)), MAX_IMAGE_PIXELS))


def _generated_pixels(info: RunInfo) -> float:
    return _number(info, "generation", "width", 0) * _number(info, "generation", "height", 0)


def _number(info: RunInfo, section: str, key: str, usual: float) -> float:
    """A setting of the run, whose config may be by an earlier version, or by somebody who means harm."""
    settings = info.config.get(section)
    value = settings.get(key, usual) if isinstance(settings, dict) else usual
    return value if isinstance(value, int | float) and math.isfinite(value) else usual


def _is_reference(file_name: str, source: str, by_reference: bool) -> bool:
    return by_reference and source == REAL and os.path.isabs(file_name)


@functools.lru_cache(maxsize=4)
def _open_run(uri: str, process: int) -> Storage:
    """One a process. An object store's client does not survive a fork: its threads are gone, and it waits for
    them."""
    if "://" in uri and process != _IMPORTED_IN:
        raise StorageError(
            f"{uri}: images in a bucket cannot be read in a process that was forked",
            hint="DataLoader(..., multiprocessing_context='spawn')",
        )
    return open_storage(uri, create=False)


def _read_referenced(name: str, max_bytes: int) -> bytes:
    try:
        return read_regular(name, max_bytes=max_bytes, follow_links=False)
    except OSError as error:
        raise _storage_error(name, error) from error


def _regular_path(name: str) -> str:
    try:
        check_regular(name)
    except OSError as error:
        raise _storage_error(name, error) from error
    return name


def _path_in_run(storage: LocalStorage, name: str, folders: dict[str, str]) -> str:
    """`folders` has the path of each folder that is known to be inside: to look takes longer than for a
    file."""
    folder, _, last = name.rpartition("/")
    if folder not in folders:
        path = storage.path_on_disk(name)
        assert path is not None
        folders[folder] = os.path.dirname(path)
        return path
    check_path(name, storage.uri)
    return _regular_path(os.path.join(folders[folder], last))


def _storage_error(name: str, error: OSError) -> StorageError:
    if error.errno == errno.ENOENT:
        return MissingFileError(f"{name} is missing")
    return StorageError(f"cannot read {name}: {error.strerror}")
