"""How far a run is: counts, rates and the time left, from an injected clock, and in one line."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from balancer.scheduling.schedule import Schedule
from balancer.text.quantities import duration, percent

RATE_WINDOW_S = 60.0
"""Rates are measured over the last minute: long enough to smooth batches, short enough to show a stall."""


@dataclass(frozen=True, slots=True)
class ClassProgress:
    wanted: int
    accepted: int
    short: int = 0


class ClassCounts(Mapping[str, ClassProgress]):
    """Counts by class, put together when they are looked at: there may be thousands of classes."""

    def __init__(self, wanted: Mapping[str, int], accepted: Counter[str], short: Counter[str]) -> None:
        self._wanted, self._accepted, self._short = wanted, accepted, short

    def __getitem__(self, name: str) -> ClassProgress:
        return ClassProgress(self._wanted[name], self._accepted[name], self._short[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a run. Counts are of the whole run; rates, images a second, of its last minute."""

    wanted: int
    accepted: int
    short: int
    candidates: int
    rejected_by_reason: Mapping[str, int]
    by_class: Mapping[str, ClassProgress]
    elapsed_s: float
    accepted_per_s: float
    candidates_per_s: float
    eta_s: float | None
    generators_busy: int = 0
    generators: int = 0
    in_flight: int = 0

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.candidates if self.candidates else None


@dataclass(slots=True)
class RateMeter:
    """Events a second over the last `RATE_WINDOW_S`."""

    clock: Callable[[], float] = time.monotonic
    _events: deque[tuple[float, int]] = field(default_factory=deque)
    _in_window: int = 0

    def add(self, count: int) -> None:
        self._events.append((self.clock(), count))
        self._in_window += count

    def per_second(self, since_s: float) -> float:
        """`since_s` is when counting began, on the same clock: a young run has a short window."""
        now = self.clock()
        while self._events and self._events[0][0] < now - RATE_WINDOW_S:
            self._in_window -= self._events.popleft()[1]
        window = min(RATE_WINDOW_S, now - since_s)
        return self._in_window / window if window > 0 else 0.0


@dataclass(slots=True)
class RunMeter:
    """How fast a run is, from when it was started."""

    clock: Callable[[], float]
    accepted: RateMeter = field(init=False)
    candidates: RateMeter = field(init=False)
    _started_s: float = 0.0

    def __post_init__(self) -> None:
        self.accepted, self.candidates = RateMeter(self.clock), RateMeter(self.clock)

    def start(self) -> None:
        self._started_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self._started_s

    def snapshot(self, schedule: Schedule, *, generators_busy: int, generators: int) -> Snapshot:
        accepted_per_s = self.accepted.per_second(self._started_s)
        return Snapshot(
            wanted=schedule.wanted,
            accepted=len(schedule.accepted),
            short=len(schedule.short),
            candidates=schedule.candidates,
            rejected_by_reason=dict(schedule.rejected_by_reason.most_common()),
            by_class=ClassCounts(
                schedule.wanted_by_class, schedule.accepted_by_class, schedule.short_by_class
            ),
            elapsed_s=self.elapsed_s,
            accepted_per_s=accepted_per_s,
            candidates_per_s=self.candidates.per_second(self._started_s),
            eta_s=eta_s(schedule.open, accepted_per_s),
            generators_busy=generators_busy,
            generators=generators,
            in_flight=len(schedule.in_flight),
        )


def eta_s(slots_open: int, settled_per_s: float) -> float | None:
    """Seconds until the open slots are settled at the present rate; None while that is unknown."""
    if slots_open == 0:
        return 0.0
    return slots_open / settled_per_s if settled_per_s > 0 else None


def progress_line(snapshot: Snapshot) -> str:
    """`accepted 131/244 (54%) candidates 160 rejected 22% [lighting 21 burn_level 14] 4.1/s eta 0:27 ...`"""
    done = percent(snapshot.accepted, snapshot.wanted, nothing="-")
    parts = [
        f"accepted {snapshot.accepted}/{snapshot.wanted} ({done})",
        f"short {snapshot.short}" if snapshot.short else "",
        f"candidates {snapshot.candidates}",
        _rejected(snapshot),
        _pace(snapshot),
        f"generators {snapshot.generators_busy}/{snapshot.generators} busy" if snapshot.generators else "",
        f"in flight {snapshot.in_flight}" if snapshot.generators or snapshot.in_flight else "",
    ]
    return " ".join(part for part in parts if part)


def _rejected(snapshot: Snapshot) -> str:
    reasons: Mapping[str, int] = snapshot.rejected_by_reason
    if not reasons:
        return ""
    listed = " ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"rejected {percent(sum(reasons.values()), snapshot.candidates, nothing='-')} [{listed}]"


def _pace(snapshot: Snapshot) -> str:
    rate = snapshot.accepted_per_s
    left = "-" if snapshot.eta_s is None else duration(snapshot.eta_s)
    return f"{rate:.{1 if rate >= 1 else 2}f}/s eta {left}"
