"""Actors in the process of the tests: real workers behind a real pool, with no process to start for each run.

A worker is loaded once for all runs with the same spec. What Ray adds, processes, their deaths and their
memory, is for tests with actors of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

import actors.cluster.fleet
from actors.cluster.pool import Actor, Call, Pool
from actors.specs import WorkerSpec, WriterSpec

_loaded: dict[str, Any] = {}


def load_once(spec: WorkerSpec) -> Any:
    if isinstance(spec, WriterSpec):
        return spec.load()
    if repr(spec) not in _loaded:
        with warnings.catch_warnings(action="ignore"):
            _loaded[repr(spec)] = spec.load()
    return _loaded[repr(spec)]


class Remote:
    """Looks like a method of an actor; what it returns is a reference, as from one."""

    def __init__(self, work: Callable[..., Any], num_returns: int = 1) -> None:
        self._work, self._num_returns = work, num_returns

    def options(self, num_returns: int) -> Remote:
        return Remote(self._work, num_returns)

    def remote(self, *arguments: Any) -> Any:
        given = [ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in arguments]
        value = self._work(*given)
        return ray.put(value) if self._num_returns == 1 else [ray.put(each) for each in value]


class Resident:
    """The handle of an actor that is here."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = load_once(spec)
        self.start, self.call = Remote(self._describe), Remote(self._call)

    def _describe(self) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        return dict(getattr(self._worker, "describe", dict)()) | {"node": node, "gpu_ids": []}

    def _call(self, method: str, *arguments: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):  # as in the process of an actor
            result = getattr(self._worker, method)(*arguments)
            return result() if callable(result) else result


class ResidentPool(Pool):
    __slots__ = ()

    def _add_actor(self) -> None:
        actor = Actor(Resident(self.spec))
        self.actors.append(actor)
        self._track(Call(actor, None, [actor.handle.start.remote()], self.limits.start_timeout_s))

    def wait_until_placed(self) -> None:
        """They are here."""

    def close(self) -> None:
        self.actors.clear()
        self._calls.clear()


@contextmanager
def actors_here() -> Iterator[None]:
    """Runs have their actors in this process. For processes in which Ray runs already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors.cluster.fleet, "Pool", ResidentPool)
        yield
