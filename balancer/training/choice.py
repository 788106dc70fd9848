"""Which of a run's images a caller asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.manifest.query.rows import Filter


@dataclass(frozen=True, slots=True)
class Choice:
    """The accepted images of a split, or of all, that meet a filter. With `allow_synthetic_eval` validation
    and test may have generated ones; `recommended` leaves out the generated images that the run's evaluation
    advises against."""

    split: str | None = None
    filter: Filter | None = None
    allow_synthetic_eval: bool = False
    recommended: bool = False
