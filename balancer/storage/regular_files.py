"""The one door to files that somebody else wrote: regular, opened without waiting, read up to a limit.

A pipe would wait for ever, a device may never end, and a link may lead to either.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, FileIO

OpenPath = str | os.PathLike[str]

_LEAST_READ = 1 << 13
_LINK = "a symbolic link, which is not followed"
_LOOP = "at the end of symbolic links that lead in a circle"
_NO_NAME = "no name that a file can have"


class NotRegularError(OSError):
    """A pipe, a device, a socket, a folder, or a link where links are not followed; `strerror` says which."""

    def __init__(self, path: OpenPath, reason: str = "not a regular file") -> None:
        super().__init__(errno.EINVAL, reason, os.fspath(path))


class TooLargeError(OSError):
    """`num_bytes` is the size that the file claims, or more than `max_bytes` if it claims less."""

    def __init__(self, path: OpenPath, num_bytes: int, max_bytes: int) -> None:
        reason = f"{num_bytes / 1e6:,.1f} megabytes, over the limit of {max_bytes / 1e6:,g}"
        super().__init__(errno.EFBIG, reason, os.fspath(path))
        self.num_bytes = num_bytes
        self.max_bytes = max_bytes


def open_regular(path: OpenPath, *, follow_links: bool) -> BufferedReader:
    """Open for reading; NotRegularError, or whatever OSError the system has.

    `follow_links` is about the last part of the path only; what a link leads to must be regular, too.
    """
    return os.fdopen(_opened(path, os.O_RDONLY | (0 if follow_links else os.O_NOFOLLOW)), "rb")


def append_regular(path: OpenPath) -> FileIO:
    """Open to write behind what is there, or a new file; links are not followed. As `open_regular`.

    Unbuffered: a full disk is met by a write, never by the close.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(_opened(path, flags), "ab", buffering=0)


def read_regular(path: OpenPath, *, max_bytes: int, follow_links: bool) -> bytes:
    """The whole content; TooLargeError before more than `max_bytes` are read, and as `open_regular`."""
    descriptor = _opened(path, os.O_RDONLY | (0 if follow_links else os.O_NOFOLLOW))
    try:
        claimed = os.fstat(descriptor).st_size
        data = b"" if claimed > max_bytes else _read(descriptor, claimed, max_bytes + 1)
    finally:
        os.close(descriptor)
    size = max(claimed, len(data))
    if size > max_bytes:
        raise TooLargeError(path, size, max_bytes)
    return data


def _read(descriptor: int, claimed: int, most: int) -> bytes:
    """At most `most` bytes. A buffered reader would make room for all of them first."""
    parts = []
    while most > 0 and (part := os.read(descriptor, min(most, max(claimed + 1, _LEAST_READ)))):
        parts.append(part)
        most -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_regular(path: OpenPath) -> None:
    """NotRegularError for what `open_regular` would not open, links included. For programs that open files
    themselves."""
    try:
        _check_mode(path, os.lstat(path).st_mode)
    except ValueError as error:
        raise NotRegularError(path, _NO_NAME) from error


def _opened(path: OpenPath, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            is_link = flags & os.O_NOFOLLOW and os.path.islink(path)
            raise NotRegularError(path, _LINK if is_link else _LOOP) from error
        if error.errno == errno.ENXIO:  # a socket, a device without a driver, a pipe without a reader
            raise NotRegularError(path) from error
        raise
    except ValueError as error:
        raise NotRegularError(path, _NO_NAME) from error
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
    except NotRegularError:
        os.close(descriptor)
        raise
    return descriptor


def _check_mode(path: OpenPath, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise NotRegularError(path, _LINK)
    if not stat.S_ISREG(mode):
        raise NotRegularError(path, *(["a folder, not a file"] if stat.S_ISDIR(mode) else []))
