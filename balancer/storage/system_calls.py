"""The system calls that a folder on disk takes, and their errors in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from balancer.errors import StorageError
from balancer.storage.contract import DiskFullError, MissingFileError, NoCreateOnlyError


class System(Protocol):
    """The system calls a LocalStorage makes, as `os` has them; tests put a simulated disk here."""

    def open(self, path: str, flags: int, mode: int = ..., /) -> int: ...
    def read(self, fd: int, length: int, /) -> bytes: ...
    def pread(self, fd: int, length: int, offset: int, /) -> bytes: ...
    def write(self, fd: int, data: memoryview, /) -> int: ...
    def fsync(self, fd: int, /) -> None: ...
    def close(self, fd: int, /) -> None: ...
    def link(self, source: str, target: str, /) -> None: ...
    def rename(self, source: str, target: str, /) -> None: ...
    def unlink(self, path: str, /) -> None: ...
    def mkdir(self, path: str, /) -> None: ...
    def listdir(self, path: str, /) -> list[str]: ...
    def lstat(self, path: str, /) -> os.stat_result: ...
    def fstat(self, fd: int, /) -> os.stat_result: ...


@contextmanager
def opened(system: System, path: str, flags: int) -> Iterator[int]:
    """A file descriptor, closed afterwards."""
    fd = system.open(path, flags, 0o666)
    try:
        yield fd
    finally:
        system.close(fd)


def lstat_if_there(system: System, path: str) -> os.stat_result | None:
    try:
        return system.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


_HINTS = {
    errno.EACCES: "check who owns the folder and may write to it",
    errno.EPERM: "check permissions, and that the file system supports hard links",
    errno.ELOOP: "symbolic links inside a run folder are not followed",
    errno.EOPNOTSUPP: "put the run on a file system that supports hard links",
    errno.ENOSYS: "put the run on a file system that supports hard links",
    errno.EROFS: "the file system is mounted read-only; choose another folder",
}

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What link(2) says where a file system has no hard links."""


@contextmanager
def translated(action: str, path: str) -> Iterator[None]:
    """StorageError for an OSError: what could not be done, to which file, and why."""
    try:
        yield
    except OSError as error:
        raise _storage_error(action, path, error) from error


def _storage_error(action: str, path: str, error: OSError) -> StorageError:
    message = f"cannot {action} {path}: {cause(error)}"
    if is_full(error):
        return DiskFullError(
            message, hint="free space, then run the same command again: it resumes where it stopped"
        )
    if error.errno == errno.ENOENT:
        return MissingFileError(message)
    hint = _HINTS.get(error.errno or 0, "")
    if action == "create" and error.errno in _NO_LINKS:
        return NoCreateOnlyError(message, hint=hint)
    return StorageError(message, hint=hint)


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
