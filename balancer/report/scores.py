"""Histograms of the candidates' scores on each property, from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.report.facts import Facts

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import ManifestRows

BINS = 25
FULL_HEIGHT = 78.0
"""Of the highest bar in the drawing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin: the accepted below, the rejected on top."""

    start: float
    end: float
    accepted: int
    rejected: int
    height: float

    @property
    def accepted_height(self) -> float:
        return self.height * self.accepted / (self.accepted + self.rejected)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`accepted[i]` and `rejected[i]` count the candidates with a score in [i, i + 1) / BINS."""

    property_name: str
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def bars(self) -> tuple[Bar, ...]:
        return tuple(
            Bar(i / BINS, (i + 1) / BINS, accepted, rejected, FULL_HEIGHT * self._share(accepted + rejected))
            for i, (accepted, rejected) in enumerate(zip(self.accepted, self.rejected, strict=True))
            if accepted or rejected
        )

    def _share(self, count: int) -> float:
        """A square root: most scores are near 1, and the few others matter most."""
        return math.sqrt(count / self.highest)

    @property
    def highest(self) -> int:
        return max(map(sum, zip(self.accepted, self.rejected, strict=True)))

    @property
    def total(self) -> int:
        return sum(self.accepted) + sum(self.rejected)


def score_histograms(facts: Facts, manifest: ManifestRows) -> tuple[Histogram, ...]:
    """One for each property that any candidate was scored on."""
    import pyarrow.compute as pc

    rows = manifest.to_table(["source", "status", "scores"], status="all")
    rows = rows.filter(pc.equal(rows["source"], "synthetic"))
    accepted = rows.filter(pc.equal(rows["status"], "accepted"))
    rejected = rows.filter(pc.equal(rows["status"], "rejected"))
    histograms = (
        Histogram(name, _bin_counts(accepted, name), _bin_counts(rejected, name))
        for name in facts.run.properties
    )
    return tuple(histogram for histogram in histograms if histogram.total)


def _bin_counts(rows: pa.Table, property_name: str) -> tuple[int, ...]:
    import numpy as np
    import pyarrow.compute as pc

    scores = pc.struct_field(rows["scores"], [property_name]).drop_null().to_numpy()
    finite = np.clip(scores[np.isfinite(scores)], 0, 1)
    counts, _ = np.histogram(finite, bins=BINS, range=(0, 1))
    return tuple(int(count) for count in counts)
