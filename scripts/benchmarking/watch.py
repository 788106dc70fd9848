"""When each call of each actor of a run began and ended."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import ray

from actors.pool import Pool

Span = tuple[float, float]
"""Seconds since 1970."""

Spans = dict[str, list[list[Span]]]
"""By kind of actor: of each actor, its calls."""


@contextlib.contextmanager
def watched(spans: Spans, replaced: dict[str, str] | None = None) -> Iterator[None]:
    """Runs that are started inside leave in `spans` what their actors did. `replaced` puts another worker
    (`module:Class`) in the place of that of a kind."""

    class Watched(Pool):
        def start(self) -> None:
            if worker := (replaced or {}).get(self.spec.kind):
                self.spec = dataclasses.replace(self.spec, worker=worker)
            super().start()

        def close(self) -> None:
            ready = [actor for actor in self.actors if actor.ready]
            spans[self.spec.kind] = ray.get([actor.handle.spans.remote() for actor in ready])
            super().close()

    with mock.patch("actors.fleet.Pool", Watched):
        yield
