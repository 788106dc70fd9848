"""Catch the signals that end a command, from its start, and never lose one.

A handler that raises ends work at once, but Python swallows exceptions in weakref callbacks and `__del__`.
A handler that sets a flag is safe, but somebody must read the flag. This one does both until the work has a
loop that reads the flag.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from balancer.process.early import end_within

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

BURST_S = 1.0
"""A signal this soon after one that raised does not raise again: it would interrupt the cleanup."""

STUCK_S = 20.0
"""An interrupted command that still runs after this long is killed: a library waits for a lock that the
interruption left locked. Killing it is safe at any point."""


class Stopped(KeyboardInterrupt):
    """A subclass, because Python ends the process as SIGINT does for a plain KeyboardInterrupt from `exec` or
    `eval`, as in imports, whatever the signal and the exit code."""


@dataclass(slots=True)
class StopSignal:
    """A signal handler that keeps the first signal and their count. If `raises`, it also raises
    KeyboardInterrupt, once per burst. `handles` lists the signals it is installed for."""

    number: int | None = None
    count: int = 0
    raises: bool = False
    handles: tuple[int, ...] = ()
    _quiet_until_s: float = field(default=0.0, repr=False, compare=False)

    def __call__(self, number: int, frame: object = None) -> None:
        self.number = self.number or number
        self.count += 1
        if self.raises and time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + BURST_S
            end_within(STUCK_S, self.number)
            raise Stopped

    def check(self) -> None:
        """Raise if a signal came whose exception was swallowed."""
        if self.number is not None:
            raise Stopped

    def only_note(self) -> None:
        """Stop raising: from here on a loop reads `number`."""
        self.raises = False
        self.check()

    def raise_again(self) -> None:
        self.raises = True

    def take_again(self) -> None:
        """Reinstall this handler after a library has replaced it."""
        for number in self.handles:
            signal.signal(number, self)


_outermost: StopSignal | None = None


@contextlib.contextmanager
def caught() -> Iterator[StopSignal]:
    """Install a StopSignal that raises. A nested block shares the outer one's.

    SIGHUP stays ignored under `nohup`. Python delivers signals to the main thread only, so on other threads
    the StopSignal stays silent.
    """
    global _outermost
    if threading.current_thread() is not threading.main_thread():
        yield StopSignal()
        return
    if _outermost is not None:
        yield _outermost
        return
    stop = _outermost = StopSignal(raises=True)
    before = {number: signal.getsignal(number) for number in ENDING}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    stop.handles = tuple(before)
    try:
        stop.take_again()
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _outermost = None
