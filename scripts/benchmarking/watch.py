"""When each actor of a run was ready, and when each of its calls began and ended."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import ray

from actors.cluster.pool import Pool

Span = tuple[float, float]
"""Seconds since 1970."""

Spans = dict[str, list[list[Span]]]
"""By kind of actor: of each actor, its calls."""


@dataclass(slots=True)
class Seen:
    """`ready` holds, by kind, when each actor was ready for its first call, in seconds since 1970."""

    spans: Spans = field(default_factory=dict)
    ready: dict[str, list[float]] = field(default_factory=dict)


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Of the run that is started inside, when its actors worked."""
    seen = Seen()

    class Watched(Pool):
        def close(self) -> None:
            ready = [actor for actor in self.actors if actor.ready]
            seen.spans[self.kind] = ray.get([actor.handle.spans.remote() for actor in ready])
            seen.ready[self.kind] = [(actor.description or {})["ready_s"] for actor in ready]
            super().close()

    with mock.patch("actors.cluster.fleet.Pool", Watched):
        yield seen


def earliest_end(ready: Sequence[float], batches: int, batch_s: float) -> float:
    """Of that many batches by generators without a gap: each batch goes to the one that is free first."""
    free = sorted(ready)
    for _ in range(batches):
        end = heapq.heapreplace(free, free[0] + batch_s) + batch_s
    return end
