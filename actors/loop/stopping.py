"""When a run stops: after a signal, past `budget.max_hours` or once a class has collapsed, it drains.

It then starts no batch, and finishes those under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.loop.collapse import CollapseWatch
from balancer.process.signals import StopSignal

DRAIN_S = 120.0
"""Work under way has this long to end; the rest is made again on resume."""


@dataclass(slots=True)
class Stopping:
    signal: StopSignal
    max_hours: float | None
    clock: Callable[[], float]
    collapse: CollapseWatch | None = None
    _draining_since_s: float | None = None

    def begins(self, elapsed_s: float) -> bool:
        """Whether the run, which has taken so long, starts to drain now."""
        out_of_time = self.max_hours is not None and elapsed_s >= self.max_hours * 3600
        if self.is_draining:
            return False
        if not (self.signal.number is not None or out_of_time or self._has_collapsed()):
            return False
        self._draining_since_s = self.clock()
        return True

    @property
    def collapsed(self) -> str:
        """Which class has collapsed, and how; empty if none has."""
        return "" if self.collapse is None else self.collapse.reason

    def _has_collapsed(self) -> bool:
        return self.collapse is not None and self.collapse.has_collapsed()

    @property
    def is_draining(self) -> bool:
        return self._draining_since_s is not None

    @property
    def is_over(self) -> bool:
        """Not even work under way is waited for."""
        since_s = self._draining_since_s
        return self.signal.count > 1 or (since_s is not None and self.clock() - since_s > DRAIN_S)
