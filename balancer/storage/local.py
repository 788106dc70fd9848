"""A run folder on a file system.

What is acknowledged survives a power loss: the data is synced before the name appears, and the name (with
every folder above it) before the call returns.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from balancer.errors import StorageError
from balancer.storage.contract import (
    DiskFullError,
    FileInfo,
    MissingFileError,
    NoCreateOnlyError,
    Paths,
    check_path,
    check_size,
    publish_by_creating,
)

_READ_BYTES = 1 << 22


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


class LocalStorage:
    """A folder on a file system with hard links; `fsync` that fails makes it refuse all further writes,
    because what the disk then holds is unknown."""

    def __init__(self, root: str | os.PathLike[str], system: System = os) -> None:
        self.uri = os.path.abspath(root)
        self._root = os.path.realpath(self.uri)
        self._system = system
        self._durable_folders: set[str] = set()
        self._broken: StorageError | None = None

    @classmethod
    def make(cls, root: str | os.PathLike[str], system: System = os) -> LocalStorage:
        """The storage of a folder that is made, with its parents, if it is not there."""
        storage = cls(root, system)
        with _translated("make the folder", storage._root):
            storage._make_root()
        return storage

    def publish(self, path: str, data: bytes) -> None:
        publish_by_creating(self, path, data)

    def replace(self, path: str, data: bytes) -> None:
        target = self._target(path)
        with self._temporary(target, data) as temporary, _translated("write", target):
            self._system.rename(temporary, target)
        self._sync_folder(os.path.dirname(target))

    def create(self, path: str, data: bytes) -> bool:
        target = self._target(path)
        with self._temporary(target, data) as temporary, _translated("create", target):
            try:
                self._system.link(temporary, target)
                created = True
            except FileExistsError:
                created = False
        # Also after a lost race: the caller builds on the winner's file, so its name must be durable.
        self._sync_folder(os.path.dirname(target))
        return created

    def path_on_disk(self, path: str) -> str | None:
        """Where libraries that open files themselves find a regular file; None on a simulated disk."""
        self.info(path)
        return self._locate(path) if self._system is os else None

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        with self._opened_to_read(path) as (fd, num_bytes):
            check_size(path, num_bytes, max_bytes)
            length = min(num_bytes + 1, _READ_BYTES)  # room that is not needed would take its time, too
            return b"".join(iter(lambda: self._system.read(fd, length), b""))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        parts: list[bytes] = []
        with self._opened_to_read(path) as (fd, _):
            while length and (part := self._system.pread(fd, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def info(self, path: str) -> FileInfo:
        target = self._locate(path)
        with _translated("look at", target):
            found = self._system.lstat(target)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{target} is not a regular file")
        return FileInfo(found.st_size, dt.datetime.fromtimestamp(found.st_mtime, dt.UTC))

    def exists(self, path: str) -> bool:
        target = self._locate(path)
        with _translated("look for", target):
            found = self._lstat(target)
        return found is not None and stat.S_ISREG(found.st_mode)

    def list(self, prefix: str) -> Paths:
        top = self._locate(prefix) if prefix else self._root
        with _translated("list", top):
            return sorted(os.path.relpath(file, self._root) for file in self._walk(top))

    def delete(self, path: str) -> None:
        self._refuse_if_broken()
        target = self._locate(path)
        with _translated("delete", target):
            try:
                self._system.unlink(target)
            except (FileNotFoundError, NotADirectoryError):
                return
        self._sync_folder(os.path.dirname(target))

    def _target(self, path: str) -> str:
        """Where to write `path`, in a folder that is durable."""
        self._refuse_if_broken()
        target = self._locate(path)
        self._ensure_folder(os.path.dirname(target))
        return target

    def _locate(self, path: str) -> str:
        parts = check_path(path, self.uri)
        folder = os.path.join(self._root, *parts[:-1])
        if os.path.commonpath([self._root, os.path.realpath(folder)]) != self._root:
            raise StorageError(f"{path!r} leads out of the run folder {self.uri} by a symbolic link")
        return os.path.join(folder, parts[-1])

    @contextmanager
    def _temporary(self, target: str, data: bytes) -> Iterator[str]:
        """A synced file with `data` beside `target`; its own name is gone afterwards, come what may."""
        folder, name = os.path.split(target)
        temporary = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")
        try:
            with _translated("write", target):
                self._write_synced(temporary, data, target)
            yield temporary
        finally:
            with suppress(OSError):
                self._system.unlink(temporary)

    def _write_synced(self, temporary: str, data: bytes, target: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._opened(temporary, flags) as fd:
            rest = memoryview(data)
            while rest:
                rest = rest[self._system.write(fd, rest) :]
            self._sync(fd, target)

    def _ensure_folder(self, folder: str) -> None:
        """Make `folder` if need be. A folder that was found, and what was found in it, only says that someone
        made it, not that it would survive a power loss; so every process syncs both before it adds to them.
        """
        if folder in self._durable_folders or folder == self._root:
            return
        parent = os.path.dirname(folder)
        self._ensure_folder(parent)
        with _translated("make the folder", folder):
            try:
                self._system.mkdir(folder)
            except FileExistsError:
                self._sync_folder(folder)
        self._sync_folder(parent)
        self._durable_folders.add(folder)

    def _make_root(self) -> None:
        """Make the folder and those above it, each of them durable before another is made in it."""
        missing: list[str] = []
        found = self._root
        while (there := self._lstat(found)) is None:
            missing.append(found)
            found = os.path.dirname(found)
        above = self._lstat(os.path.dirname(found))
        # Whoever made what was found may have died before syncing it; only a mount point was made by nobody.
        if above is not None and above.st_dev == there.st_dev:
            self._sync_parent(found)
        for folder in reversed(missing):
            with suppress(FileExistsError):
                self._system.mkdir(folder)
            self._sync_parent(folder)
        if not stat.S_ISDIR(self._system.lstat(self._root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")

    def _lstat(self, path: str) -> os.stat_result | None:
        try:
            return self._system.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _sync_parent(self, folder: str) -> None:
        """Make the name of `folder` durable, unless the one above may be passed through only, not read."""
        try:
            self._sync_folder(os.path.dirname(folder))
        except StorageError as error:
            if self._broken is not None or not isinstance(error.__cause__, PermissionError):
                raise

    def _sync_folder(self, folder: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with _translated("sync the folder", folder), self._opened(folder, flags) as fd:
            self._sync(fd, folder, full_is_safe=False)

    def _sync(self, fd: int, path: str, full_is_safe: bool = True) -> None:
        try:
            self._system.fsync(fd)
        except OSError as error:
            # A file that did not fit is thrown away and written anew; anything else leaves the disk in doubt.
            if not (full_is_safe and _is_full(error)):
                self._broken = StorageError(
                    f"cannot sync {path}: {_cause(error)}; nothing more is written to this run",
                    hint="check the disk, then run the same command again",
                )
                raise self._broken from error
            raise

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    @contextmanager
    def _opened_to_read(self, path: str) -> Iterator[tuple[int, int]]:
        """A file descriptor, and how many bytes there are."""
        target = self._locate(path)
        # Without O_NONBLOCK, opening a pipe somebody left here would wait for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with _translated("read", target), self._opened(target, flags) as fd:
            found = self._system.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(f"cannot read {target}: it is not a regular file")
            yield fd, found.st_size

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        fd = self._system.open(path, flags, 0o666)
        try:
            yield fd
        finally:
            self._system.close(fd)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            names = self._system.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            path = os.path.join(folder, name)
            with suppress(FileNotFoundError):  # a temporary file may go while we look
                if stat.S_ISDIR(self._system.lstat(path).st_mode):
                    yield from self._walk(path)
                else:
                    yield path


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
def _translated(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _storage_error(action, path, error) from error


def _storage_error(action: str, path: str, error: OSError) -> StorageError:
    message = f"cannot {action} {path}: {_cause(error)}"
    if _is_full(error):
        return DiskFullError(
            message, hint="make room, then run the same command again: it goes on where it was"
        )
    if error.errno == errno.ENOENT:
        return MissingFileError(message)
    hint = _HINTS.get(error.errno or 0, "")
    if action == "create" and error.errno in _NO_LINKS:
        return NoCreateOnlyError(message, hint=hint)
    return StorageError(message, hint=hint)


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
