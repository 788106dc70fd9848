"""While the disk is full, a run pauses, until something can be written or it has waited too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from balancer.storage import DiskFullError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class DiskFullBackoff:
    """Pauses double from one try to the next; after `limit_s` the error is raised."""

    limit_s: float
    clock: Callable[[], float]
    note: Callable[[str], None]
    _full_since_s: float | None = None
    _try_again_s: float = 0.0
    _pause_s: float = FIRST_PAUSE_S

    @property
    def is_full(self) -> bool:
        """It is not yet time to try again."""
        return self._full_since_s is not None and self.clock() < self._try_again_s

    def disk_is_full(self, error: DiskFullError) -> None:
        now = self.clock()
        if self._full_since_s is None:
            self._full_since_s = now
            self.note(
                f"{error.message}; waiting up to {self.limit_s:g} s for space (output.disk_full_wait_s)"
            )
        if now - self._full_since_s >= self.limit_s:
            raise error
        self._try_again_s = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def succeeded(self) -> None:
        """Something was written."""
        if self._full_since_s is not None:
            self.note("there is space again")
        self._full_since_s, self._pause_s = None, FIRST_PAUSE_S
