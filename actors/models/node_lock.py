"""One at a time on a node: loading a model takes twice its size in host memory, and compiling all cores."""

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
def one_at_a_time(what: str) -> Iterator[None]:
    """Waits until no other process of this user on this machine does `what` (a plain word), and says that it
    waits. Where there can be no lock, several do it at once, which takes more memory."""
    fd = _open(what)
    try:
        if fd is not None:
            _lock(fd, what)
        yield
    finally:
        if fd is not None:
            os.close(fd)  # which releases it, also when the process dies


def _open(what: str) -> int | None:
    try:
        # By name of the node: a cache may be in a home that several share.
        path = private_folder("locks") / f"{socket.gethostname()}-{what}.lock"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (OSError, UnavailableError) as error:
        log.warning("no lock, so that several processes may %s models at once: %s", what, error)
        return None


def _lock(fd: int, what: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("waiting for another process of this user to %s its model", what)
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning("no lock, so that several processes may %s models at once: %s", what, error.strerror)
