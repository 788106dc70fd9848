"""A lock per node: loading a model takes twice its size in host memory, and compiling takes all cores."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

from balancer.errors import UnavailableError
from balancer.storage.cache import private_folder

log = logging.getLogger(__name__)


@contextlib.contextmanager
def one_at_a_time(verb: str) -> Iterator[None]:
    """Hold the lock for `verb` (load, compile) against other processes of this user on this machine. Logs a
    warning if it has to wait. Without a lock, processes may load at once, which takes more memory."""
    fd = _open(verb)
    try:
        if fd is not None:
            _lock(fd, verb)
        yield
    finally:
        if fd is not None:
            os.close(fd)  # releases the lock, as the end of the process does


def _open(verb: str) -> int | None:
    try:
        # Named by node, because nodes may share the home that has the cache.
        path = private_folder("locks") / f"{socket.gethostname()}-{verb}.lock"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (OSError, UnavailableError) as error:
        log.warning("without a lock several processes may %s models at once: %s", verb, error)
        return None


def _lock(fd: int, verb: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("waiting for another process of this user to %s its model", verb)
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning("without a lock several processes may %s models at once: %s", verb, error.strerror)
