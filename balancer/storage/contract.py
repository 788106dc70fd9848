"""What a run folder can do, wherever it is, and what can go wrong with it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

from balancer.errors import StorageError

Paths = list[str]  # by its own name, because storages have a method called `list`


class MissingFileError(StorageError):
    """There is no file of that name."""


class DiskFullError(StorageError):
    """No space or quota left. Nothing was written: the same call can be made again once there is space."""


class OtherContentError(StorageError):
    """A file of that name holds other bytes, and files of its kind never change."""


class NoCreateOnlyError(StorageError):
    """The place has no way to write a file only if there is none of that name."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`modified_at` is UTC: when the file got the content it has. `etag` is another one for other content;
    only buckets have it."""

    num_bytes: int
    modified_at: dt.datetime
    etag: str = ""


class Storage(Protocol):
    """A run folder. Paths are relative to it, with `/` between their parts.

    Three ways to write, by what may be under the name already:

        publish   nothing, or the same bytes. For content that never changes: images, compacted files.
        replace   anything. For a file that is renewed on purpose: an index, a report.
        create    nothing. For what one of several writers may do once: a fragment of the log, run.json.

    What they acknowledge is durable; what they do not is never visible in part.

    Every method raises StorageError with the file and the cause.
    """

    uri: str

    def publish(self, path: str, data: bytes) -> None:
        """Write a file, or find it there with the same bytes; OtherContentError if it holds others."""

    def replace(self, path: str, data: bytes) -> None:
        """Write a file in the place of one of that name; readers see all of the one or of the other."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless there is one of that name; of several who try, exactly one gets True.

        After an error it may or may not be there; False can mean that an earlier try of one's own won.
        """

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """The whole file; MissingFileError if there is none, StorageError before more than `max_bytes` are
        read."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """A part of a file, shorter where the file ends; MissingFileError if there is none."""

    def info(self, path: str) -> FileInfo:
        """How large a file is, and how old; MissingFileError if there is none."""

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str) -> Paths:
        """Paths of all files in the folder `prefix` ("" for all) and below it, sorted, temporary ones
        (their names begin with a dot) included. Links are listed, not followed."""

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""


def publish_by_creating(storage: Storage, path: str, data: bytes) -> None:
    """`Storage.publish`, made of `create`, `info` and `read`."""
    while not storage.create(path, data):
        try:
            num_bytes = storage.info(path).num_bytes
            if num_bytes == len(data) and storage.read(path, len(data)) == data:
                return
        except MissingFileError:
            continue  # deleted since
        raise OtherContentError(
            f"cannot write {storage.uri}/{path}: a file of that name holds other bytes, {num_bytes} of them "
            f"where {len(data)} were to be written; such a file never changes",
            hint="`balancer fsck RUN` says whether a row names it; if none does, remove it and run again",
        )


def check_path(path: str, uri: str) -> list[str]:
    """The parts of a relative path; StorageError if it is none, or leads out of the run folder `uri`."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"{path!r} is not a path inside the run folder {uri}")
    return parts


def check_size(path: str, num_bytes: int, max_bytes: int | None) -> None:
    """StorageError for a file that is larger than its reader allows."""
    if max_bytes is not None and num_bytes > max_bytes:
        raise StorageError(
            f"{path}: {num_bytes / 1e6:,.1f} megabytes, over the limit of {max_bytes / 1e6:,g}"
            " for such a file"
        )


def is_temporary(path: str) -> bool:
    """Whether a writer that was stopped, or is at work, left this file."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")
