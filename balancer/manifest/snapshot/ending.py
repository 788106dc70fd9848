"""Scans that were begun and not finished when the interpreter ends, or when nobody wants their rows any more.

Arrow's threads must have nothing left to do when the process ends: the libraries that they use go first, and
one that still works crashes. And a daemon thread must not be inside Arrow: Python ends it wherever it next
asks for the interpreter's lock, and C++ destructors on its way out ask for that lock again, which aborts the
process. So a scan that is left finishes what Arrow has begun, and each of its steps passes a gate for daemon
threads, which is closed at exit.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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
_begun: weakref.WeakSet[Generator[object, None, None]] = weakref.WeakSet()


def well_ended(steps: Generator[T, None, None]) -> Iterator[T]:
    """The same steps, which end well wherever they are left. To close them must finish what they began."""
    _begun.add(steps)
    try:
        while True:
            with _step():
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
    finally:
        with _step():
            steps.close()


def _step() -> AbstractContextManager[None]:
    return _gate.passed() if threading.current_thread().daemon else nullcontext()


def _end() -> None:
    _gate.close()
    for steps in list(_begun):
        with suppress(Exception):  # of a daemon thread that was not waited for, or of a damaged file
            steps.close()


atexit.register(_end)
os.register_at_fork(after_in_child=_gate.open)  # the threads behind it are not there
