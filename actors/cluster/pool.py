"""Actors of one kind: started, kept busy, given a deadline, and replaced when they die.

Workers are plain classes that know nothing of Ray; `Host` loads one from its spec in an actor's process.
A pool retries no call: a failed one is handed back with its job, and the driver decides, because only it
knows which candidates the job was about. Ray's own retries stay off for the same reason. Calls that are about
nothing but their arguments go through `call_all`, which does make them again.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.nodes import Nodes
from actors.specs import WorkerSpec
from balancer.errors import BalancerError, StalledError, first_line
from balancer.storage import DiskFullError

CALLS_PER_ACTOR = 2
"""One being worked on and one waiting, or having its result fetched."""

SPANS_KEPT = 10_000

TURN_S = 0.25
"""`call_all` looks at deadlines, and lets its caller look at signals, this often."""

NODE_LOSS_S = 30.0
"""Ray takes a node for lost that missed five health checks, 3 s apart."""

_NODE = re.compile(r"its node has died\. Node Id: ([0-9a-f]+)")
"""In Ray's words; there is no other sign."""


_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR_LINE = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b: .+$", re.MULTILINE
)
"""How a traceback ends."""

_RAYS_OWN = "failed to import on the worker"


class Host:
    """The actor's side: holds the worker, which is loaded here so that the driver never imports torch.

    Construction happens in `start`, not in `__init__`: an actor whose `__init__` raises is dead, and its
    error reaches the driver as text only.

    Calls are made one at a time. A call that returns a function has its result yet to be fetched: that is
    done while the next call begins.
    """

    def __init__(self, spec: WorkerSpec, on_gpu: bool) -> None:
        if not on_gpu:  # Ray leaves all GPUs visible to an actor that reserved none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._spec = spec
        self._worker: Any = None
        self._one_at_a_time = threading.Lock()
        self._spans: deque[tuple[float, float]] = deque(maxlen=SPANS_KEPT)

    def start(self) -> dict[str, Any]:
        self._worker = self._spec.load()
        context = ray.get_runtime_context()
        described = dict(getattr(self._worker, "describe", dict)())  # a writer has nothing to describe
        return described | {
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpu_ids": context.get_accelerator_ids().get("GPU", []),
            "ready_s": time.time(),
        }

    def call(self, method: str, *arguments: Any) -> Any:
        with self._one_at_a_time:
            began = time.time()
            result = getattr(self._worker, method)(*arguments)
            self._spans.append((began, time.time()))
        return result() if callable(result) else result

    def spans(self) -> list[tuple[float, float]]:
        """When the last calls began and ended, in seconds since 1970; idle gaps are computed from it."""
        return list(self._spans)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What each actor of a pool takes of the cluster. `node` pins it to one node, by Ray's node id."""

    num_cpus: float = 0
    num_gpus: float = 0
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    start_timeout_s: float
    call_timeout_s: float
    max_restarts: int


@dataclass(slots=True, eq=False)
class Actor:
    handle: Any
    description: dict[str, Any] | None = None
    calls: int = 0
    dead: bool = False
    leaving: bool = False
    """Its node is being drained: what it does it may finish, and gets nothing more."""

    @property
    def ready(self) -> bool:
        return self.description is not None and not self.dead and not self.leaving

    @property
    def node(self) -> str:
        """Empty while it starts."""
        return str((self.description or {}).get("node", ""))


@dataclass(slots=True, eq=False)
class Call:
    """One call under way. `refs` are all its results, `job` whatever the driver wants back with them."""

    actor: Actor
    job: Any
    refs: list[Any]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A call's end: its result refs and the value of the last one, or the error in their place."""

    job: Any
    refs: list[Any]
    actor: Actor
    value: Any = None
    error: BaseException | None = None


class ActorPool(Protocol):
    """What the loop needs of a pool."""

    kind: str
    size: int
    actors: list[Actor]

    @property
    def busy(self) -> int: ...
    def least_busy(self, max_calls: int) -> Actor | None: ...
    def submit(self, actor: Actor, method: str, *arguments: Any, job: Any, num_returns: int = 1) -> None: ...
    def finish(self, ref: Any) -> Finished | None: ...
    def give_up_overdue(self) -> list[Finished]: ...
    def progressed(self) -> None: ...


@dataclass(slots=True)
class Pool:
    """A fixed number of actors of one kind; one that dies is replaced at once.

    `restarts` counts replacements since `progressed` was last called; the pool gives up with a
    StalledError that carries the last cause when there were more than `limits.max_restarts`. Actors that were
    preempted, or whose node was being drained, do not count, and those that went with one node count as one.
    """

    kind: str
    spec: WorkerSpec
    size: int
    limits: Limits
    reserved: Reservation = Reservation()
    clock: Callable[[], float] = time.monotonic
    nodes: Nodes = field(default_factory=Nodes)
    stopping: Callable[[], bool] = lambda: False
    """Whether the run is about to end. Actors that die are then not replaced, and Ray is asked nothing that
    it might never answer: whatever stops the driver may have stopped Ray, too."""
    actors: list[Actor] = field(default_factory=list)
    _failed_on: list[str] = field(default_factory=list)
    """The node of each actor that was replaced since there was progress."""
    _calls: dict[Any, Call] = field(default_factory=dict)

    def start(self) -> None:
        while len(self.actors) < self.size:
            self._add_actor()

    def wait_until_placed(self) -> None:
        """Until Ray has found a place for every actor; loading their models goes on."""
        placed = [actor.handle.__ray_ready__.remote() for actor in self.actors]
        ray.wait(placed, num_returns=len(placed), timeout=self.limits.start_timeout_s)

    def _add_actor(self) -> None:
        reserved = self.reserved
        options: dict[str, Any] = {"num_cpus": reserved.num_cpus, "num_gpus": reserved.num_gpus}
        if reserved.node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(reserved.node, soft=False)
        # Processes are listed under the name of their class.
        named = type(self.kind.title(), (Host,), {})
        actor_class: Any = ray.remote(named).options(
            max_restarts=0, max_task_retries=0, max_concurrency=CALLS_PER_ACTOR, **options
        )
        actor = Actor(actor_class.remote(self.spec, reserved.num_gpus > 0))
        self.actors.append(actor)
        self._track(Call(actor, None, [actor.handle.start.remote()], self.limits.start_timeout_s))

    def _track(self, call: Call) -> None:
        call.deadline_s += self.clock()
        call.actor.calls += 1
        self._calls[call.refs[0]] = call

    # ---- work --------------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        return sum(actor.ready for actor in self.actors)

    @property
    def busy(self) -> int:
        return sum(actor.ready and actor.calls > 0 for actor in self.actors)

    def least_busy(self, max_calls: int) -> Actor | None:
        """A ready actor with fewer than `max_calls` calls under way, or None."""
        free = [actor for actor in self.actors if actor.ready and actor.calls < max_calls]
        return min(free, key=lambda actor: actor.calls, default=None)

    def submit(self, actor: Actor, method: str, *arguments: Any, job: Any, num_returns: int = 1) -> None:
        """Call a method of an actor's worker; refs among `arguments` are resolved where they are used."""
        call = actor.handle.call.options(num_returns=num_returns)
        refs = call.remote(method, *arguments)
        refs = [refs] if num_returns == 1 else list(refs)
        self._track(Call(actor, job, refs, self.limits.call_timeout_s))

    def pending(self) -> list[Any]:
        """One ref for each call under way, for `ray.wait`."""
        return list(self._calls)

    # ---- endings -----------------------------------------------------------------------------

    def finish(self, ref: Any) -> Finished | None:
        """The end of the call behind a ready ref; None for calls of another pool and for start-ups."""
        call = self._calls.pop(ref, None)
        if call is None:
            return None
        call.actor.calls -= 1
        try:
            # Earlier results, the pixels, stay where they are until someone needs them.
            value = ray.get(call.refs[-1])
        except RayTaskError as error:
            return self._failed(call, self._worker_raised(call.actor, error.cause or error))
        except ObjectLostError as error:  # the result went with its node, the actor may be well
            return self._failed(call, error)
        except RayError as error:
            preempted = getattr(error, "preempted", False)
            self._replace(call.actor, None if preempted else error)
            return self._failed(call, error)
        if call.job is None:
            call.actor.description = value
            return None
        return Finished(call.job, call.refs, call.actor, value)

    def _failed(self, call: Call, error: BaseException) -> Finished | None:
        if call.job is None:
            self._replace(call.actor, error)
            return None
        return Finished(call.job, call.refs, call.actor, error=error)

    def _worker_raised(self, actor: Actor, cause: BaseException) -> BaseException:
        if isinstance(cause, DiskFullError):
            return cause  # trying again helps, once there is space
        if isinstance(cause, BalancerError):
            raise cause  # the worker's own clear word: trying again would not help
        if not isinstance(cause, RayError):  # a RayError: an argument was lost, the worker is well
            self._replace(actor, cause)
        return cause

    def give_up_overdue(self) -> list[Finished]:
        """Replace actors whose calls overran their deadline; hand their jobs back. Actors on nodes that are
        being drained are ready no more."""
        self._notice_draining()
        now = self.clock()
        ended: list[Finished] = []
        for call in [call for call in self._calls.values() if call.deadline_s < now]:
            what = "starting" if call.job is None else "a call"
            error = TimeoutError(f"{self.kind}: {what} took longer than its limit")
            self._replace(call.actor, error)
            ended += self._abandon(call.actor, error)
        return ended

    def _notice_draining(self) -> None:
        draining = self.nodes.draining(ask=not self.stopping())
        for actor in [*self.actors]:
            if actor.node in draining:
                actor.leaving = True
            elif actor.leaving and self.nodes.is_gone(actor.node):
                self._replace(actor, None)  # it may have been idle, and then no call of it fails

    def _abandon(self, actor: Actor, error: BaseException) -> list[Finished]:
        calls = {ref: call for ref, call in self._calls.items() if call.actor is actor}
        for ref in calls:
            del self._calls[ref]
        return [
            Finished(call.job, call.refs, actor, error=error)
            for call in calls.values()
            if call.job is not None
        ]

    def _replace(self, actor: Actor, cause: BaseException | None) -> None:
        if actor.dead:
            return
        actor.dead = True
        ray.kill(actor.handle)
        self.actors.remove(actor)
        if self.stopping():
            return
        if cause is not None and not actor.leaving:
            self._failed_on.append(actor.node or _node_in(cause))
        if self._has_failed_too_often():
            raise StalledError(
                f"{self.restarts} {self.kind} actors failed in a row without an image committed; "
                f"the last one: {_named(cause)}",
                hint="run `balancer doctor CONFIG`; actors.max_restarts sets the limit",
            )
        self._add_actor()

    @property
    def restarts(self) -> int:
        """Replacements since there was progress."""
        lost = {node for node in set(self._failed_on) if node and self.nodes.is_gone(node)}
        return sum(node not in lost for node in self._failed_on) + len(lost)

    def _has_failed_too_often(self) -> bool:
        """Where several actors failed on one node, wait: it may be lost, and the cluster may not know yet."""
        here = ray.get_runtime_context().get_node_id()
        several = {node for node, count in Counter(self._failed_on).items() if count > 1}
        give_up_s = time.monotonic() + (NODE_LOSS_S if several - {"", here} else 0.0)
        while self.restarts > self.limits.max_restarts:
            if time.monotonic() >= give_up_s:
                return True
            time.sleep(TURN_S)
        return False

    def progressed(self) -> None:
        self._failed_on.clear()

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor.handle)
        self.actors.clear()
        self._calls.clear()


def wait(pools: Sequence[Pool], timeout_s: float) -> list[Any]:
    """Refs of ended calls, as soon as there is one; results stay on the nodes that made them."""
    refs = [ref for pool in pools for ref in pool.pending()]
    if not refs:
        return []
    ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
    if ready and len(refs) > 1:
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
    return list(ready)


def shared(value: Any) -> Any:
    """A reference to a value that many calls take: it reaches every node once."""
    return ray.put(value)


def call_all(
    pool: Pool, method: str, calls: Iterable[tuple[Any, ...]], turn: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, Any]]:
    """The number and the result of each call, as they end, over all actors of a started pool.

    `calls` are the arguments of each, taken as actors are free; one that an actor's failure took away is made
    again, until the pool gives up. `turn` is called all the while, and may end it by raising.
    """
    coming, under_way = enumerate(calls), 0
    again: deque[tuple[int, tuple[Any, ...]]] = deque()
    following = next(coming, None)
    while following or under_way:
        turn()
        while following and (actor := pool.least_busy(CALLS_PER_ACTOR)):
            pool.submit(actor, method, *following[1], job=following)
            under_way += 1
            following = again.popleft() if again else next(coming, None)
        ended = [pool.finish(ref) for ref in wait([pool], TURN_S)]
        for finished in [*filter(None, ended), *pool.give_up_overdue()]:
            under_way -= 1
            if finished.error is None:
                yield finished.job[0], finished.value
            else:
                again.append(finished.job)
        if following is None and again:
            following = again.popleft()


def is_lost_object(error: BaseException | None) -> bool:
    """Whether a result went with the node that held it."""
    return isinstance(error, ObjectLostError)


def _node_in(error: BaseException) -> str:
    """The node of an actor that died with it before it could describe itself; else empty."""
    match = _NODE.search(str(error))
    return match[1] if match else ""


def _named(error: BaseException | None) -> str:
    """An error with its type, which is often half of the message; of one that Ray passes on as
    text, its first cause."""
    if isinstance(error, RayError) and (cause := _first_cause(str(error))):
        return cause
    name, text = type(error).__name__, str(error or "").strip()
    return f"{name}: {first_line(error)}" if error is not None and text else name


def _first_cause(text: str) -> str:
    """The error that the first of the tracebacks in a text ends with, in one line; empty if there is none.

    Python prints the cause of an error before the error. Ray wraps what a process died of, and colours it.
    """
    plain = _ESCAPE_CODE.sub("", text)
    causes = [match[0].strip() for match in _ERROR_LINE.finditer(plain)]
    return next((line for line in causes if _RAYS_OWN not in line), "")
