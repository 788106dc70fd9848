"""Candidates over time, by what became of them: on the live page and in the report."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from balancer.manifest.rows import ACCEPTED

if TYPE_CHECKING:
    import pyarrow as pa

BINS = 48

COLUMNS = ("status", "reason", "generated_at")

HEIGHT = 78.0
"""Of the highest bar in the report's drawing."""

COLOURS = 8


class Block(NamedTuple):
    """A part of a bar. `colour` numbers what it shows; 0 is accepted."""

    bin: int
    colour: int
    top: float
    height: float
    name: str
    candidates: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Candidates by when they were judged, in bins of `bin_s` seconds from `begin` on: how many were accepted
    in each, and rejected for each reason."""

    begin: dt.datetime
    bin_s: float
    accepted: Sequence[int]
    rejected: Mapping[str, Sequence[int]]

    @property
    def end(self) -> dt.datetime:
        return self.begin + dt.timedelta(seconds=self.bin_s * BINS)

    @property
    def parts(self) -> list[tuple[str, Sequence[int]]]:
        return [
            ("accepted", self.accepted),
            *((f"rejected: {name}", of) for name, of in self.rejected.items()),
        ]

    @property
    def most(self) -> int:
        totals: list[int] = [sum(counts) for counts in zip(*(of for _, of in self.parts), strict=True)]
        return max(totals)

    def blocks(self) -> Iterator[Block]:
        """Bars from the bottom up."""
        for place in range(BINS):
            top = HEIGHT
            for number, (name, counts) in enumerate(self.parts):
                height = HEIGHT * counts[place] / self.most
                top -= height
                if height:
                    yield Block(place, min(number, COLOURS - 1), top, height, name, counts[place])


def over_time(made: pa.Table) -> Timeline | None:
    """`made` are candidates with a verdict, with the COLUMNS; None if there are none with a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    made = made.select(COLUMNS).filter(pc.is_valid(made["generated_at"])).sort_by("generated_at")
    if not made.num_rows:
        return None
    seconds = made["generated_at"].cast(pa.int64()).to_numpy() / 1e6
    begin, width = float(seconds[0]), max(float(seconds[-1] - seconds[0]), 1.0) / BINS
    places = np.minimum(((seconds - begin) / width).astype(int), BINS - 1)
    reasons = np.array(made["reason"].fill_null("").to_pylist(), dtype=object)
    accepted = np.array(made["status"].to_pylist(), dtype=object) == ACCEPTED

    def binned(chosen: Any) -> list[int]:
        return [int(count) for count in np.bincount(places[chosen], minlength=BINS)]

    most_first = Counter(reasons[~accepted].tolist()).most_common()
    return Timeline(
        begin=dt.datetime.fromtimestamp(begin, dt.UTC),
        bin_s=width,
        accepted=binned(accepted),
        rejected={reason: binned(~accepted & (reasons == reason)) for reason, _ in most_first},
    )
