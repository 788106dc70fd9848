"""How long an idle generator waits for verdicts, which say what is needed, before it takes less certain work:
a short batch, or attempts ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PATIENCE = 0.1
"""As a fraction of the time of a batch."""


@dataclass(slots=True)
class Patience:
    clock: Callable[[], float]
    batch_s: float = 0.0
    """How long the last batch took."""
    _since_s: float | None = None

    def lasts(self) -> bool:
        if self._since_s is None:
            self._since_s = self.clock()
        return self.clock() - self._since_s < PATIENCE * self.batch_s

    def renew(self) -> None:
        """A generator got work."""
        self._since_s = None
