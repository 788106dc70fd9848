"""When a run stops: after a signal, or past `budget.max_hours`, it starts no batch and drains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from balancer.process.signals import StopSignal

DRAIN_S = 120.0
"""Work under way has this long to end; the rest is made again on resume."""


@dataclass(slots=True)
class Stopping:
    signal: StopSignal
    max_hours: float | None
    clock: Callable[[], float]
    _draining_since_s: float | None = None

    def begins(self, elapsed_s: float) -> bool:
        """Whether the run, which has taken so long, starts to drain now."""
        out_of_time = self.max_hours is not None and elapsed_s >= self.max_hours * 3600
        if self.is_draining or (self.signal.number is None and not out_of_time):
            return False
        self._draining_since_s = self.clock()
        return True

    @property
    def is_draining(self) -> bool:
        return self._draining_since_s is not None

    @property
    def is_over(self) -> bool:
        """Not even work under way is waited for."""
        since_s = self._draining_since_s
        return self.signal.count > 1 or (since_s is not None and self.clock() - since_s > DRAIN_S)
