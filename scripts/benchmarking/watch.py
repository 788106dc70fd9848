"""When each actor of a run was ready, and when each of its calls began and ended."""

from __future__ import annotations

import contextlib
import dataclasses
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
def watched(replaced: dict[str, str] | None = None) -> Iterator[Seen]:
    """Of the run that is started inside, what its actors did. `replaced` puts another worker (`module:Class`)
    in the place of that of a kind."""
    seen = Seen()

    class Watched(Pool):
        def start(self) -> None:
            if worker := (replaced or {}).get(self.spec.kind):
                self.spec = dataclasses.replace(self.spec, worker=worker)
            super().start()

        def close(self) -> None:
            ready = [actor for actor in self.actors if actor.ready]
            seen.spans[self.spec.kind] = ray.get([actor.handle.spans.remote() for actor in ready])
            seen.ready[self.spec.kind] = [(actor.description or {})["ready_s"] for actor in ready]
            super().close()

    with mock.patch("actors.cluster.fleet.Pool", Watched):
        yield seen


def earliest_end(ready: Sequence[float], batches: int, batch_s: float) -> float:
    """Of that many batches by generators without a gap: each batch goes to the one that is free first."""
    free = sorted(ready)
    for _ in range(batches):
        end = heapq.heapreplace(free, free[0] + batch_s) + batch_s
    return end
