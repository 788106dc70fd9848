"""What a run reports as one JSON object a line, on stderr, for whatever collects the logs of a cluster."""

from __future__ import annotations

import datetime
import json
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from balancer.cli.console import LineDisplay
from balancer.scheduling.progress import Snapshot
from balancer.text.safetext import redacted

WARNING = "warning: "


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Every line has `time`, `level`, `event`, the folder of the `run` and the `node` of its driver."""

    run: str
    node: str
    clock: Callable[[], datetime.datetime] = now

    @classmethod
    def of_this_node(cls, run: str) -> JsonLines:
        return cls(run, socket.gethostname())

    def note(self, text: str) -> None:
        for line in text.split("\n"):
            level = "warning" if line.startswith(WARNING) else "info"
            self.write(level, "note", message=redacted(line.removeprefix(WARNING)))

    def progress(self, snapshot: Snapshot) -> None:
        counts = ("wanted", "accepted", "short", "candidates", "generators", "generators_busy", "in_flight")
        self.write(
            "info",
            "progress",
            **{name: getattr(snapshot, name) for name in counts},
            rejected=dict(snapshot.rejected_by_reason),
            seconds=round(snapshot.elapsed_s, 3),
        )

    def write(self, level: str, event: str, **fields: Any) -> None:
        """ASCII, so no line can control a terminal or break in two."""
        common = {"time": self.clock().isoformat(timespec="milliseconds"), "level": level, "event": event}
        print(json.dumps(common | {"run": self.run, "node": self.node} | fields), file=sys.stderr, flush=True)

    def take_warnings(self) -> None:
        """Those of libraries, which no other handler takes."""
        logging.lastResort = _Handler(self)


class JsonDisplay(LineDisplay):
    """Progress as lines, as often as plain ones."""

    def __init__(self, lines: JsonLines, **options: Any) -> None:
        super().__init__(**options)
        self._lines = lines

    def _show(self, snapshot: Snapshot) -> None:
        self._lines.progress(snapshot)


class _Handler(logging.Handler):
    def __init__(self, lines: JsonLines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.write(record.levelname.lower(), "log", message=redacted(record.getMessage()))
