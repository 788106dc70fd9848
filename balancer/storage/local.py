"""A run folder on a file system.

What is acknowledged survives a power loss: the data is synced before the name appears, and the name (with
every folder above it) before the call returns.
"""

from __future__ import annotations

import datetime as dt
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from balancer.errors import StorageError
from balancer.storage.contract import FileInfo, Paths, check_path, check_size, publish_by_creating
from balancer.storage.durability import Durability
from balancer.storage.system_calls import System, lstat_if_there, opened, translated

_READ_BYTES = 1 << 22


class LocalStorage:
    """A folder on a file system with hard links. It refuses all further writes after a failed `fsync`."""

    def __init__(self, root: str | os.PathLike[str], system: System = os) -> None:
        self.uri = os.path.abspath(root)
        self._root = os.path.realpath(self.uri)
        self._system = system
        self._durability = Durability(self._root, system)

    @classmethod
    def make(cls, root: str | os.PathLike[str], system: System = os) -> LocalStorage:
        """The storage of a folder that is made, with its parents, if it is not there."""
        storage = cls(root, system)
        with translated("make the folder", storage._root):
            storage._durability.make_root()
        return storage

    def publish(self, path: str, data: bytes) -> None:
        publish_by_creating(self, path, data)

    def replace(self, path: str, data: bytes) -> None:
        target = self._target(path)
        with self._temporary(target, data) as temporary, translated("write", target):
            self._system.rename(temporary, target)
        self._durability.sync_folder(os.path.dirname(target))

    def create(self, path: str, data: bytes) -> bool:
        target = self._target(path)
        with self._temporary(target, data) as temporary, translated("create", target):
            try:
                self._system.link(temporary, target)
                created = True
            except FileExistsError:
                created = False
        # Also after a lost race: the caller builds on the winner's file, so its name must be durable.
        self._durability.sync_folder(os.path.dirname(target))
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
        with translated("look at", target):
            found = self._system.lstat(target)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{target} is not a regular file")
        return FileInfo(found.st_size, dt.datetime.fromtimestamp(found.st_mtime, dt.UTC))

    def exists(self, path: str) -> bool:
        target = self._locate(path)
        with translated("look for", target):
            found = lstat_if_there(self._system, target)
        return found is not None and stat.S_ISREG(found.st_mode)

    def list(self, prefix: str) -> Paths:
        top = self._locate(prefix) if prefix else self._root
        with translated("list", top):
            return sorted(os.path.relpath(file, self._root) for file in self._walk(top))

    def delete(self, path: str) -> None:
        self._durability.refuse_if_broken()
        target = self._locate(path)
        with translated("delete", target):
            try:
                self._system.unlink(target)
            except (FileNotFoundError, NotADirectoryError):
                return
        self._durability.sync_folder(os.path.dirname(target))

    def _target(self, path: str) -> str:
        """Where to write `path`, in a folder that is durable."""
        self._durability.refuse_if_broken()
        target = self._locate(path)
        self._durability.ensure_folder(os.path.dirname(target))
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
            with translated("write", target):
                self._write_synced(temporary, data, target)
            yield temporary
        finally:
            with suppress(OSError):
                self._system.unlink(temporary)

    def _write_synced(self, temporary: str, data: bytes, target: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with opened(self._system, temporary, flags) as fd:
            rest = memoryview(data)
            while rest:
                rest = rest[self._system.write(fd, rest) :]
            self._durability.sync(fd, target)

    @contextmanager
    def _opened_to_read(self, path: str) -> Iterator[tuple[int, int]]:
        """A file descriptor, and how many bytes there are."""
        target = self._locate(path)
        # Without O_NONBLOCK, opening a pipe somebody left here would wait for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with translated("read", target), opened(self._system, target, flags) as fd:
            found = self._system.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise StorageError(f"cannot read {target}: it is not a regular file")
            yield fd, found.st_size

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
