"""Pools without Ray, in this process and in simulated time. They show what the loop alone costs, and what it
does when calls end in any order or not at all.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from actors.cluster.pool import Actor, ActorPool, Finished
from actors.loop.assembly import build_driver
from actors.loop.collapse import CollapseWatch
from actors.loop.driver import Driver
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.runfile import RunInfo
from balancer.process.signals import StopSignal
from balancer.runs.resume import run_facts
from balancer.scheduling.schedule import Schedule
from balancer.storage import DiskFullError, Storage


@dataclass(order=True, slots=True)
class _Call:
    ends_s: float
    number: int
    pool: LocalPool = field(compare=False)
    actor: Actor = field(compare=False)
    method: str = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    job: Any = field(compare=False)
    num_returns: int = field(compare=False)


@dataclass(slots=True)
class LocalEngine:
    """Where the calls of several pools wait for their end. `clock` is their time, which passes in `wait`
    alone. `spread` makes calls take up to that much longer, as it draws; `worked_s` is the real time that
    workers took."""

    spread: Callable[[], float] = lambda: 0.0
    now_s: float = 0.0
    worked_s: float = 0.0
    _calls: list[_Call] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def clock(self) -> float:
        return self.now_s

    def wait(self, pools: Sequence[ActorPool], timeout_s: float) -> list[Any]:
        """The calls that end next, all of one time."""
        if not self._calls:
            self.now_s += timeout_s
            return []
        self.now_s = max(self.now_s, self._calls[0].ends_s)
        ended = []
        while self._calls and self._calls[0].ends_s <= self.now_s:
            ended.append(heapq.heappop(self._calls))
        return ended

    def add(self, call: _Call) -> None:
        heapq.heappush(self._calls, call)

    def next_number(self) -> int:
        return next(self._numbers)


class AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **named))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            done.set_exception(error)
        return done


@dataclass(eq=False)
class LocalPool:
    """`size` actors that share one worker, a call of which takes `service_s`. `fails` is asked at the end of
    each call for an error in the place of its result; its actor is then taken for replaced."""

    kind: str
    worker: Any
    size: int
    engine: LocalEngine
    service_s: float = 0.0
    fails: Callable[[], BaseException | None] = lambda: None
    actors: list[Actor] = field(init=False)
    _free_at_s: dict[Actor, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        description: dict[str, Any] = getattr(self.worker, "describe", dict)()
        self.actors = [Actor(None, description=dict(description)) for _ in range(self.size)]

    @property
    def busy(self) -> int:
        return sum(actor.calls > 0 for actor in self.actors)

    def least_busy(self, max_calls: int) -> Actor | None:
        free = [actor for actor in self.actors if actor.calls < max_calls]
        return min(free, key=lambda actor: actor.calls, default=None)

    def submit(self, actor: Actor, method: str, *arguments: Any, job: Any, num_returns: int = 1) -> None:
        begins_s = max(self.engine.now_s, self._free_at_s.get(actor, 0.0))
        ends_s = begins_s + self.service_s + self.engine.spread()
        self._free_at_s[actor] = ends_s
        actor.calls += 1
        number = self.engine.next_number()
        self.engine.add(_Call(ends_s, number, self, actor, method, arguments, job, num_returns))

    def finish(self, call: _Call) -> Finished | None:
        if call.pool is not self:
            return None
        call.actor.calls -= 1
        if (error := self.fails()) is not None:
            return Finished(call.job, [], call.actor, error=error)
        began = time.perf_counter()
        try:
            value = getattr(self.worker, call.method)(*call.arguments)
            value = value() if callable(value) else value
        except DiskFullError as error:
            return Finished(call.job, [], call.actor, error=error)
        finally:
            self.engine.worked_s += time.perf_counter() - began
        refs = list(value) if call.num_returns > 1 else [value]
        return Finished(call.job, refs, call.actor, value=refs[-1])

    def give_up_overdue(self) -> list[Finished]:
        return []

    def progressed(self) -> None:
        pass


def simulated_driver(
    config: Config,
    info: RunInfo,
    schedule: Schedule,
    log: ManifestLog,
    pools: Sequence[LocalPool],
    *,
    stop: StopSignal | None = None,
    note: Callable[[str], None] = lambda text: None,
    collapse: CollapseWatch | None = None,
    storage: Storage | None = None,
) -> Driver:
    """A driver of generators, verifiers and writers without Ray, in the time of their engine. What people
    decide meanwhile is looked for in `storage`."""
    generators, verifiers, writers = pools
    engine = generators.engine
    return build_driver(
        config,
        run_facts(info, config),
        schedule,
        log,
        generators,
        verifiers,
        writers,
        references=NearDuplicateIndex([], config.verification.copies),
        stop=stop or StopSignal(),
        note=note,
        collapse=collapse,
        clock=engine.clock,
        wait=engine.wait,
        commit_thread=AtOnce(),
        reviewed=None if storage is None else (storage, info),
    )
