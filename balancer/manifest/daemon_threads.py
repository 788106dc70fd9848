"""Daemon threads stop scanning when the interpreter ends.

Python ends a daemon thread wherever it next asks for the interpreter's lock. If that is inside Arrow, C++
destructors run that ask for the lock again, and the process aborts. So each step of a scan passes a gate,
which is closed at exit, once no daemon thread is behind it.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 10.0
"""A step reads a few files. One that takes longer, perhaps because a bucket does not answer, is left."""


class Gate:
    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        self._changed = threading.Condition()
        self._behind = 0
        self._closed = False

    def close(self, wait_s: float = WAIT_S) -> None:
        """Daemon threads that come now wait for ever; those behind the gate have so long to leave."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._behind, wait_s)

    @contextmanager
    def passed(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._behind += 1
        try:
            yield
        finally:
            with self._changed:
                self._behind -= 1
                self._changed.notify_all()


_gate = Gate()
atexit.register(_gate.close)
os.register_at_fork(after_in_child=_gate.open)  # the threads behind it are not there


def stop_at_exit(steps: Iterator[T]) -> Iterator[T]:
    """The same steps, each of which a daemon thread begins only if the interpreter does not end."""
    while True:
        with _gate.passed() if threading.current_thread().daemon else nullcontext():
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step
