"""One at a time on a node: loading a model takes twice its size in host memory, and compiling all cores."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Waits until no other process of this user on this machine does `what` (a plain word)."""
    path = os.path.join(tempfile.gettempdir(), f"balancer-{os.getuid()}-{what}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # which releases it, also when the process dies
