"""`run.log`: the messages of a run, with times, as plain lines in its folder.

It is for people. The next start appends to it, nothing else reads it, and a run never fails because it cannot
be written. Like every file of a run it is replaced whole, which leaves no half line and follows no link; its
size is bounded, so this takes milliseconds.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from balancer.errors import BalancerError, FencedError, StorageError
from balancer.manifest.layout import RUN_LOG
from balancer.manifest.log.head import read_head
from balancer.manifest.rows import utc_now
from balancer.scheduling.progress import Snapshot
from balancer.storage import LocalStorage, Storage
from balancer.text.safetext import printable, redacted

MAX_BYTES = 1_000_000
"""Beyond this the oldest lines are dropped. A run of 12 hours has 700 lines of progress, 150 kB."""

MAX_LINE_CHARS = 2_000

PROGRESS_EVERY_S = 60.0

WRITTEN_EVERY_S = 10.0
"""In a local folder. In a bucket the log is written once, at the end."""


@dataclass(slots=True)
class RunLog:
    """Lines are kept in memory until `begin` names their run; without a run no file is written."""

    format_progress: Callable[[Snapshot], str]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], dt.datetime] = utc_now
    _lines: deque[str] = field(default_factory=deque)
    _bytes: int = 0
    _storage: Storage | None = None
    _run_id: str = ""
    _written_s: float = 0.0
    _progress_s: float | None = None
    _pending: Snapshot | None = None

    def begin(self, storage: Storage, run_id: str) -> None:
        """Write lines from now on. `storage` is this log's own, so its failure cannot break the run's."""
        mine = [*self._lines]
        self._lines.clear()
        self._bytes = 0
        for line in [*read_lines(storage), *mine]:
            self._add(line)
        self._storage, self._run_id = storage, run_id
        self._written_s = self.clock() - WRITTEN_EVERY_S
        self._write_if_due()

    def note(self, text: str) -> None:
        moment = f"{self.now().astimezone(dt.UTC):%Y-%m-%d %H:%M:%SZ}"
        for line in text.split("\n"):
            self._add(f"{moment} {printable(redacted(line))[:MAX_LINE_CHARS]}")
        self._write_if_due()

    def progress(self, snapshot: Snapshot) -> None:
        """Called in every iteration of the loop; writes one line a minute."""
        self._pending = snapshot
        if self._progress_s is None or self.clock() - self._progress_s >= PROGRESS_EVERY_S:
            self.flush_progress()

    def end(self, error: BaseException | None) -> None:
        """Write the remaining lines, and how the run ended.

        Not if another driver now has the run and writes here, nor if a bucket has just failed for minutes.
        """
        if isinstance(error, FencedError):
            return
        self.flush_progress()
        if isinstance(error, BalancerError):
            self.note(f"error: {error.message}")
            if error.hint:
                self.note(f"hint: {error.hint}")
        elif error is not None:
            self.note(f"error: {type(error).__name__}: {error}")
        if isinstance(self._storage, LocalStorage) or not isinstance(error, StorageError):
            self._write()

    def flush_progress(self) -> None:
        """Log the last snapshot, unless it was logged."""
        snapshot, self._pending = self._pending, None
        if snapshot is not None:
            self._progress_s = self.clock()
            self.note(self.format_progress(snapshot))

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += _size(line)
        while self._bytes > MAX_BYTES:
            self._bytes -= _size(self._lines.popleft())

    def _write_if_due(self) -> None:
        if isinstance(self._storage, LocalStorage) and self.clock() - self._written_s >= WRITTEN_EVERY_S:
            self._write()

    def _write(self) -> None:
        if self._storage is None:
            return
        self._written_s = self.clock()
        try:
            # Without this check a folder that was moved away would be created again, or another run's log
            # overwritten.
            if read_head(self._storage, self._run_id) is not None:
                self._storage.replace(RUN_LOG, "".join(f"{line}\n" for line in self._lines).encode())
        except BalancerError:
            return  # never fail a run for its log


def read_lines(storage: Storage) -> list[str]:
    """Lines of all starts so far; empty if they cannot be read, or are more than a run ever writes."""
    try:
        text = storage.read(RUN_LOG, MAX_BYTES).decode(errors="replace")
    except StorageError:
        return []
    return [printable(line) for line in text.split("\n") if line]


def _size(line: str) -> int:
    return len(line.encode(errors="replace")) + 1
