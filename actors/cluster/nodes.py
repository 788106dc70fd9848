"""Nodes of the cluster that are being drained, and those that are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import ray
from ray._private.state import state  # the only place that knows which nodes are being drained
from ray._private.worker import global_worker
from ray.exceptions import RayError

from balancer.errors import ClusterError

LOOK_S = 1.0

VITAL = ("gcs_server", "raylet")


@dataclass(slots=True)
class Nodes:
    """Nodes by Ray's ids. The cluster is asked at most once a second which nodes are being drained."""

    clock: Callable[[], float] = time.monotonic
    _draining: Collection[str] = ()
    _look_again_s: float = field(default=0.0)

    def draining(self, ask: bool = True) -> Collection[str]:
        """Nodes that will end soon, as they are preempted or scaled down.

        Without `ask` the cluster's head is not asked, which may be gone and then does not answer.
        ClusterError if Ray on this machine has ended.
        """
        refuse_dead_ray()
        if ask and self.clock() >= self._look_again_s:
            self._look_again_s = self.clock() + LOOK_S
            with contextlib.suppress(RayError, RuntimeError):  # what was known stays until the head answers
                self._draining = frozenset(state.get_draining_nodes())
        return self._draining

    def is_gone(self, node: str) -> bool:
        return not any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())


def refuse_dead_ray() -> None:
    """ClusterError if a process that Ray cannot do without has ended on this machine.

    Ray itself would wait a minute for it, and then end the driver without a word to it. Usually a signal to
    all processes of a job has stopped it, as batch systems and service managers send.
    """
    started = getattr(global_worker, "node", None)  # None if Ray was started by someone else
    ended = {kind for kind, _ in started.dead_processes()} if started is not None else set()
    if gone := ended.intersection(VITAL):
        raise ClusterError(
            f"Ray on this machine has ended ({', '.join(sorted(gone))})",
            hint="run the same command again: it resumes where it stopped",
        )
