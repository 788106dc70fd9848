"""Signals that end a command: caught from its first moment on, and never lost.

A handler can raise, which ends work at once but is swallowed where Python ignores exceptions (in a weakref
callback, in `__del__`), or leave a note, which is read later. This one does both, until the work has a loop
that reads the note.
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
"""A signal that comes so soon after one that has raised finds the work ending, and would interrupt that."""

STUCK_S = 20.0
"""A command that was interrupted and is still there: a library waits for a lock that the interruption left
locked. What it does can be cut off anywhere, so it is."""


class Stopped(KeyboardInterrupt):
    """Another type than KeyboardInterrupt itself, for which Python ends the process as SIGINT does, whatever
    the signal was and the exit code is to be, if code inside `exec` or `eval` raised it, as in imports."""


@dataclass(slots=True)
class StopSignal:
    """The first signal that came, and how many did. `raises` says whether the handler raises
    KeyboardInterrupt besides, once for several in a burst. `handles` are the signals that come here."""

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
        """Raise for a signal whose exception was swallowed."""
        if self.number is not None:
            raise Stopped

    def only_note(self) -> None:
        """From here on somebody looks at `number`."""
        self.raises = False
        self.check()

    def raise_again(self) -> None:
        self.raises = True

    def take_again(self) -> None:
        """From a library that has put handlers of its own in the place of this one."""
        for number in self.handles:
            signal.signal(number, self)


_outermost: StopSignal | None = None


@contextlib.contextmanager
def caught() -> Iterator[StopSignal]:
    """Have signals go to a StopSignal that raises; within another such block, to that one's.

    SIGHUP stays ignored under `nohup`. Only the main thread gets signals: elsewhere none will come.
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
