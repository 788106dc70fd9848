"""A file system that forgets what was not synced: for tests of what survives a crash.

A Process makes the system calls that a LocalStorage needs. What processes see and what is on the disk
are kept apart until an fsync; crashes may happen at any call.

    kill         The process ends at a call, everybody else goes on. All that was written stays, synced or
                 not.
    power loss   All processes end. Of each file, data that was not synced is lost, kept, torn (a part of it
                 from the start) or zeroed (the rest of it zeros). Of each name in a folder, any change since
                 the folder was synced is lost or kept. Each of these is a choice of its own: a name can
                 outlive its content, and a later change an earlier one.
    full disk    No room for data (a write may still take a part of it), or for what another call needs.
    sync error   The fsync of a file fails once, later ones report success, and the data is never written:
                 what Linux does. The fsync of a folder fails: the file system is read-only from then on
                 until the machine restarts, what a journal that cannot be written leads to.

Assumed, as POSIX and the usual file systems have it: a rename puts one entry in the place of another, so a
name is never without both; an fsync that reported success, and none failed before, is true; nothing that
was synced changes later. Not modelled: writing over what is there, symbolic links, permissions, damage to
what is durable.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

_Call = TypeVar("_Call", bound=Callable[..., Any])

Choose: TypeAlias = Callable[[str, Sequence[Any]], Any]
"""Picks one of several outcomes; the first argument says of what."""

FATES = ("lost", "kept", "torn", "zeroed")


class Killed(BaseException):
    """This process ended: no handler of Exception runs."""


class PowerLost(BaseException):
    """Every process ended."""


@dataclass(eq=False, slots=True)
class File:
    data: bytes = b""
    durable: bytes = b""
    modified_s: float = 0.0
    given_up: bool = False
    """An fsync failed, so that later ones have nothing to do."""

    def sync(self) -> None:
        if not self.given_up:
            self.durable = self.data

    def settle(self, choose: Choose) -> None:
        if self.data != self.durable:
            fate = choose("unsynced data", FATES)
            if fate == "lost":
                self.data = self.durable
            elif fate != "kept":
                cut = choose("from byte", range(len(self.durable), len(self.data)))
                self.data = self.data[:cut] + (bytes(len(self.data) - cut) if fate == "zeroed" else b"")
        self.durable, self.given_up = self.data, False


@dataclass(eq=False, slots=True)
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)
    changed: dict[str, list[File | Folder | None]] = field(default_factory=dict)
    """What each name stood for since the last sync, that included; None for nothing."""

    def put(self, name: str, node: File | Folder | None) -> None:
        self.changed.setdefault(name, [self.entries.get(name)]).append(node)
        self._set(name, node)

    def sync(self) -> None:
        self.changed.clear()

    def settle(self, choose: Choose) -> None:
        for name, nodes in self.changed.items():
            # Names hold random numbers: what is asked must not depend on them.
            self._set(name, choose("unsynced entry", list(dict.fromkeys(nodes))))
        self.changed.clear()
        for node in self.entries.values():
            node.settle(choose)

    def _set(self, name: str, node: File | Folder | None) -> None:
        if node is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = node


class Disk:
    """The disk of one machine, with all that goes wrong on it."""

    def __init__(self) -> None:
        self.root = Folder()
        self.has_power = True
        self.read_only = False
        self.room: int | None = None
        """Bytes that still fit; None for any number."""
        self.full_for: frozenset[str] = frozenset()
        """Calls besides `write` that find no room."""
        self.next_sync_fails = False
        self.events: list[Event] = []
        self.refused = 0
        """Calls that ended in an error made here."""
        self.boots = 0
        self.now_s = 0.0
        """The time that files are given."""

    def lose_power(self, process: Process) -> None:
        self.has_power = False
        raise PowerLost

    def restart(self, choose: Choose) -> None:
        """The machine comes back with what was durable, and with what `choose` keeps of the rest."""
        self.root.settle(choose)
        self.has_power, self.read_only = True, False
        self.next_sync_fails = False
        self.make_room()
        self.events.clear()
        self.boots += 1

    def fail_next_sync(self) -> None:
        self.next_sync_fails = True

    @property
    def works(self) -> bool:
        return self.has_power and not self.read_only

    def make_room(self) -> None:
        self.room, self.full_for = None, frozenset()

    @property
    def is_full(self) -> bool:
        return self.room is not None or bool(self.full_for)

    def refuse(self, number: int) -> OSError:
        self.refused += 1
        return OSError(number, os.strerror(number))


@dataclass(eq=False, slots=True)
class Event:
    """Happens before the next call but `calls_left`, of whatever process; it may end that process. With
    `names`, only calls of these names count."""

    calls_left: int
    happen: Callable[[Process], None]
    names: tuple[str, ...] = ()


@dataclass(slots=True)
class _Handle:
    node: File | Folder
    position: int = 0


def _system_call(method: _Call) -> _Call:
    @functools.wraps(method)
    def called(self: Process, *args: Any) -> Any:
        self.begin_call(method.__name__)
        return method(self, *args)

    return called  # type: ignore[return-value]


class Process:
    """A process on the machine. An observer's calls do not count, and nothing happens to it."""

    def __init__(self, disk: Disk, observer: bool = False) -> None:
        self.disk = disk
        self._observer = observer
        self._boot = disk.boots
        self._killed = False
        self._handles: dict[int, _Handle] = {}
        self._next_fd = 3

    def kill(self) -> None:
        """End in the middle of the call that is being made."""
        self._killed = True
        raise Killed

    def begin_call(self, name: str = "") -> None:
        """What comes before any call: the end of this process, or whatever else happens meanwhile."""
        self._end_if_dead()
        if self._observer:
            return
        for event in self.disk.events:
            event.calls_left -= not event.names or name in event.names
        while due := [event for event in self.disk.events if event.calls_left < 0]:
            self.disk.events.remove(due[0])
            due[0].happen(self)
            self._end_if_dead()

    def _end_if_dead(self) -> None:
        if not self.disk.has_power or self._boot != self.disk.boots:
            raise PowerLost
        if self._killed:
            raise Killed

    # ---- the system calls --------------------------------------------------------------------

    @_system_call
    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        folder, name = self._place(path)
        node = folder.entries.get(name) if name else folder
        if flags & os.O_CREAT:
            self._check_writable("open")
            if node is not None and flags & os.O_EXCL:
                raise _error(errno.EEXIST, path)
            if node is None:
                node = File(modified_s=self.disk.now_s)
                folder.put(name, node)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, Folder) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise _error(errno.EISDIR, path)
        if isinstance(node, File) and flags & os.O_DIRECTORY:
            raise _error(errno.ENOTDIR, path)
        self._next_fd += 1
        self._handles[self._next_fd] = _Handle(node)
        return self._next_fd

    @_system_call
    def read(self, fd: int, length: int) -> bytes:
        handle, file = self._opened_file(fd)
        data = file.data[handle.position : handle.position + length]
        handle.position += len(data)
        return data

    @_system_call
    def pread(self, fd: int, length: int, offset: int) -> bytes:
        _, file = self._opened_file(fd)
        return file.data[offset : offset + length]

    @_system_call
    def write(self, fd: int, data: memoryview) -> int:
        handle, file = self._opened_file(fd)
        self._check_writable("write")
        if self.disk.room is not None:
            data = data[: self.disk.room]
            self.disk.room -= len(data)
            if not data:
                raise self.disk.refuse(errno.ENOSPC)
        if handle.position != len(file.data):
            raise NotImplementedError("files are only ever added to")
        file.data += data
        file.modified_s = self.disk.now_s
        handle.position += len(data)
        return len(data)

    @_system_call
    def fsync(self, fd: int) -> None:
        node = self._handles[fd].node
        self._check_writable("fsync")
        if self.disk.next_sync_fails:
            self.disk.next_sync_fails = False
            self._fail_to_sync(node)
        node.sync()

    def _fail_to_sync(self, node: File | Folder) -> None:
        if isinstance(node, File):
            node.given_up = True
        else:
            self.disk.read_only = True
        raise self.disk.refuse(errno.EIO)

    def close(self, fd: int) -> None:
        self._handles.pop(fd, None)  # also of a dead process: that is the kernel's doing

    @_system_call
    def link(self, source: str, target: str) -> None:
        node = self.existing(source)
        folder, name = self._place(target)
        if name in folder.entries:
            raise _error(errno.EEXIST, target)
        self._check_writable("link")
        folder.put(name, node)

    @_system_call
    def rename(self, source: str, target: str) -> None:
        node = self.existing(source)
        from_folder, from_name = self._place(source)
        to_folder, to_name = self._place(target)
        if isinstance(to_folder.entries.get(to_name), Folder):
            raise _error(errno.EISDIR, target)
        self._check_writable("rename")
        to_folder.put(to_name, node)
        from_folder.put(from_name, None)

    @_system_call
    def unlink(self, path: str) -> None:
        if isinstance(self.existing(path), Folder):
            raise _error(errno.EISDIR, path)
        self._check_writable("unlink")
        folder, name = self._place(path)
        folder.put(name, None)

    @_system_call
    def mkdir(self, path: str) -> None:
        folder, name = self._place(path)
        if not name or name in folder.entries:
            raise _error(errno.EEXIST, path)
        self._check_writable("mkdir")
        folder.put(name, Folder())

    @_system_call
    def listdir(self, path: str) -> list[str]:
        folder = self.existing(path)
        if isinstance(folder, File):
            raise _error(errno.ENOTDIR, path)
        return list(folder.entries)

    @_system_call
    def lstat(self, path: str) -> os.stat_result:
        return _stat(self.existing(path))

    @_system_call
    def fstat(self, fd: int) -> os.stat_result:
        return _stat(self._handles[fd].node)

    # ---- finding one's way -------------------------------------------------------------------

    def node_of(self, fd: int) -> File | Folder:
        return self._handles[fd].node

    def _opened_file(self, fd: int) -> tuple[_Handle, File]:
        handle = self._handles[fd]
        if isinstance(handle.node, Folder):
            raise _error(errno.EISDIR, str(fd))
        return handle, handle.node

    def _place(self, path: str) -> tuple[Folder, str]:
        """The folder that holds `path`, and its name there; "" for the root."""
        *above, name = [part for part in path.split("/") if part] or [""]
        folder = self.disk.root
        for part in above:
            node = folder.entries.get(part)
            if node is None:
                raise _error(errno.ENOENT, path)
            if isinstance(node, File):
                raise _error(errno.ENOTDIR, path)
            folder = node
        return folder, name

    def existing(self, path: str) -> File | Folder:
        folder, name = self._place(path)
        node = folder.entries.get(name) if name else folder
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _check_writable(self, call: str) -> None:
        if self.disk.read_only:
            raise self.disk.refuse(errno.EROFS)
        if call in self.disk.full_for:
            raise self.disk.refuse(errno.ENOSPC)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _stat(node: File | Folder) -> os.stat_result:
    is_file = isinstance(node, File)
    mode = stat.S_IFREG | 0o644 if is_file else stat.S_IFDIR | 0o755
    size, modified_s = (len(node.data), node.modified_s) if isinstance(node, File) else (0, 0.0)
    return os.stat_result((mode, id(node), 1, 1, 0, 0, size, 0, modified_s, 0))
