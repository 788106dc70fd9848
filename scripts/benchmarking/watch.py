"""When each call of each actor of a run began and ended."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import ray

from actors.pool import Pool

Span = tuple[float, float]
"""Seconds since 1970."""

Spans = dict[str, list[list[Span]]]
"""By kind of actor: of each actor, its calls."""


@dataclass(slots=True)
class Seen:
    """`described` holds, by kind, what each actor told of itself when it was ready."""

    spans: Spans = field(default_factory=dict)
    described: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


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
            seen.described[self.spec.kind] = [actor.description or {} for actor in ready]
            super().close()

    with mock.patch("actors.fleet.Pool", Watched):
        yield seen
