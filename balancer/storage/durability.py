"""Making what was written survive a power loss: files and the folders above them are synced."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from balancer.errors import StorageError
from balancer.storage.system_calls import System, cause, is_full, lstat_if_there, opened, translated


class Durability:
    """Syncs files and folders below `root`. After a failed `fsync` it refuses all further writes, because
    nobody knows then what the disk holds."""

    def __init__(self, root: str, system: System) -> None:
        self._root = root
        self._system = system
        self._folders: set[str] = set()
        self.broken: StorageError | None = None
        """The failure after which nothing more is written."""

    def ensure_folder(self, folder: str) -> None:
        """Make `folder` if need be. A folder that was found, and what was found in it, only says that someone
        made it, not that it would survive a power loss; so every process syncs both before it adds to them.
        """
        if folder in self._folders or folder == self._root:
            return
        parent = os.path.dirname(folder)
        self.ensure_folder(parent)
        with translated("make the folder", folder):
            try:
                self._system.mkdir(folder)
            except FileExistsError:
                self.sync_folder(folder)
        self.sync_folder(parent)
        self._folders.add(folder)

    def make_root(self) -> None:
        """Make the folder and those above it, each of them durable before another is made in it."""
        missing: list[str] = []
        found = self._root
        while (there := lstat_if_there(self._system, found)) is None:
            missing.append(found)
            found = os.path.dirname(found)
        above = lstat_if_there(self._system, os.path.dirname(found))
        # Whoever made what was found may have died before syncing it; only a mount point was made by nobody.
        if above is not None and above.st_dev == there.st_dev:
            self._sync_parent(found)
        for folder in reversed(missing):
            with suppress(FileExistsError):
                self._system.mkdir(folder)
            self._sync_parent(folder)
        if not stat.S_ISDIR(self._system.lstat(self._root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")

    def _sync_parent(self, folder: str) -> None:
        """Make the name of `folder` durable, unless the one above may be passed through only, not read."""
        try:
            self.sync_folder(os.path.dirname(folder))
        except StorageError as error:
            if self.broken is not None or not isinstance(error.__cause__, PermissionError):
                raise

    def sync_folder(self, folder: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with translated("sync the folder", folder), opened(self._system, folder, flags) as fd:
            self.sync(fd, folder, full_is_safe=False)

    def sync(self, fd: int, path: str, full_is_safe: bool = True) -> None:
        try:
            self._system.fsync(fd)
        except OSError as error:
            # A file that did not fit is thrown away and written anew; anything else leaves the disk in doubt.
            if not (full_is_safe and is_full(error)):
                self.broken = StorageError(
                    f"cannot sync {path}: {cause(error)}; nothing more is written to this run",
                    hint="check the disk, then run the same command again",
                )
                raise self.broken from error
            raise

    def refuse_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken
