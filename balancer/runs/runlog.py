"""What a run said, with times, as plain lines in its folder: `run.log`.

For people only. The next start goes on at its end, nothing else reads it, and a run never fails because it
cannot be written. It is replaced whole, as every file of a run is, so it never holds half a line and no link
is followed; it is bounded, so that takes milliseconds.
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
"""Beyond it the oldest lines go. A night of 12 hours has 700 lines of progress, 150 kB."""

MAX_LINE_CHARS = 2_000

PROGRESS_EVERY_S = 60.0

WRITTEN_EVERY_S = 10.0
"""On a file system. In a bucket it is written once, at the end."""


@dataclass(slots=True)
class RunLog:
    """Lines are kept until `begin` says which run they belong to: what never became a run leaves no file."""

    line_of: Callable[[Snapshot], str]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], dt.datetime] = utc_now
    _lines: deque[str] = field(default_factory=deque)
    _bytes: int = 0
    _storage: Storage | None = None
    _run_id: str = ""
    _written_s: float = 0.0
    _progress_s: float | None = None
    _unsaid: Snapshot | None = None

    def begin(self, storage: Storage, run_id: str) -> None:
        """From here on lines are written. `storage` is this log's own: if it breaks, the run's does not."""
        mine = [*self._lines]
        self._lines.clear()
        self._bytes = 0
        for line in [*_lines_before(storage), *mine]:
            self._add(line)
        self._storage, self._run_id = storage, run_id
        self._written_s = self.clock() - WRITTEN_EVERY_S
        self._write_now_and_then()

    def note(self, text: str) -> None:
        moment = f"{self.now().astimezone(dt.UTC):%Y-%m-%d %H:%M:%SZ}"
        for line in text.split("\n"):
            self._add(f"{moment} {printable(redacted(line))[:MAX_LINE_CHARS]}")
        self._write_now_and_then()

    def progress(self, snapshot: Snapshot) -> None:
        """Called at every turn of the loop; one line a minute."""
        self._unsaid = snapshot
        if self._progress_s is None or self.clock() - self._progress_s >= PROGRESS_EVERY_S:
            self.say_progress()

    def end(self, error: BaseException | None) -> None:
        """Write what is left, and how the run ended.

        Not if another driver has the run, which writes here now, nor if a bucket has just failed for minutes.
        """
        if isinstance(error, FencedError):
            return
        self.say_progress()
        if isinstance(error, BalancerError):
            self.note(f"error: {error.message}")
            if error.hint:
                self.note(f"hint: {error.hint}")
        elif error is not None:
            self.note(f"error: {type(error).__name__}: {error}")
        if isinstance(self._storage, LocalStorage) or not isinstance(error, StorageError):
            self._write()

    def say_progress(self) -> None:
        """The last snapshot, unless it was said."""
        snapshot, self._unsaid = self._unsaid, None
        if snapshot is not None:
            self._progress_s = self.clock()
            self.note(self.line_of(snapshot))

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += _size(line)
        while self._bytes > MAX_BYTES:
            self._bytes -= _size(self._lines.popleft())

    def _write_now_and_then(self) -> None:
        if isinstance(self._storage, LocalStorage) and self.clock() - self._written_s >= WRITTEN_EVERY_S:
            self._write()

    def _write(self) -> None:
        if self._storage is None:
            return
        self._written_s = self.clock()
        try:
            # A folder that was moved away meanwhile is not made anew, nor is another run's log written over.
            if read_head(self._storage, self._run_id) is not None:
                self._storage.replace(RUN_LOG, "".join(f"{line}\n" for line in self._lines).encode())
        except BalancerError:
            return  # what is committed matters, not what was said


def _lines_before(storage: Storage) -> list[str]:
    """What earlier starts said; nothing if that cannot be read, or is more than was ever written."""
    try:
        text = storage.read(RUN_LOG, MAX_BYTES).decode(errors="replace")
    except StorageError:
        return []
    return [printable(line) for line in text.split("\n") if line]


def _size(line: str) -> int:
    return len(line.encode(errors="replace")) + 1
