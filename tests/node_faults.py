"""A run on a cluster of several nodes, one of which goes or comes while it works; prints what became of it.

python -m tests.node_faults SCENARIO DATASET OUT
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2  # its names are made at import

import actors.run as job
from actors.cluster.pool import Finished, Limits, Pool, Reservation, is_lost_object, wait
from actors.run import Reporter, run
from balancer.config.schema import Config
from balancer.errors import StalledError
from balancer.run_manifest import open_manifest

GENERATORS = 2
LIMITS = Limits(start_timeout_s=60, call_timeout_s=60, max_restarts=1)
AFTER_CANDIDATES = 8
SYSTEM = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


def config(dataset: str) -> Config:
    return Config.model_validate(
        {
            "seed": 5,
            "dataset": {"path": dataset},
            "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
            "target": {"per_class": 40},
            "generation": {"width": 64, "height": 64, "batch_size": 4},
            # One failure is allowed, so that what must not count as one shows if it does.
            "actors": {"kind": "simulated", "generators": GENERATORS, "max_restarts": 1},
            "planning": {"acceptance": 0.6, "seconds_per_candidate": 0.1},
            "output": {"commit_seconds": 0.2},
        }
    )


class Maker:
    """A worker of the scenarios without a run."""

    def make(self) -> tuple[np.ndarray, int]:
        return np.ones((8, 512, 512), np.uint8), 8

    def look(self, pixels: np.ndarray) -> int:
        return int(pixels.sum())

    def pid(self) -> int:
        return os.getpid()

    def take_memory(self) -> int:
        taken = []
        while True:
            taken.append(np.ones(50_000_000, np.uint8))
            time.sleep(0.05)


@dataclass(frozen=True)
class MakerSpec:
    def load(self) -> Maker:
        return Maker()


class Trial:
    """The cluster, the pools of the run, and what is done to them."""

    def __init__(self, scenario: str) -> None:
        self.act: Callable[[], None] = getattr(self, scenario)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SYSTEM})
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)
        self.cluster.wait_for_nodes()
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.pools: dict[str, Pool] = {}
        self.told: dict[str, Any] = {}
        self.acted = False

    # ---- scenarios -----------------------------------------------------------------------------

    def lost_and_added(self) -> None:
        """The node of all generators is switched off, with results that nobody had fetched; another comes."""
        self.cluster.remove_node(self.worker, allow_graceful=False)
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)

    def drained(self) -> None:
        """Another node comes, and the one of the generators is preempted: told first, ended later."""
        old = self.worker
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)
        self.cluster.wait_for_nodes()
        accepted, why = global_worker.gcs_client.drain_node(  # type: ignore[attr-defined]
            old.node_id,
            vars(autoscaler_pb2)["DrainNodeReason"].Value("DRAIN_NODE_REASON_PREEMPTION"),
            "preempted",
            int((time.time() + 3600) * 1000),
        )
        assert accepted, why
        self.told["takes_work_while_draining"] = self._free_while_draining(old.node_id)
        self.cluster.remove_node(old, allow_graceful=False)

    def object_lost(self) -> None:
        """Without a run: what an actor made is gone with its node when another one is to look at it."""
        makers = Pool("maker", MakerSpec(), 1, LIMITS, Reservation(num_cpus=1))
        here = ray.get_runtime_context().get_node_id()
        lookers = Pool("looker", MakerSpec(), 1, LIMITS, Reservation(node=here))
        made = self._call(makers, "make")
        looker = self._call(lookers, "pid").value
        self.cluster.remove_node(self.worker, allow_graceful=False)
        looked = self._call(lookers, "look", made.refs[0])
        self.told["is_lost_object"] = is_lost_object(looked.error)
        self.told["looker_is_well"] = self._call(lookers, "pid").value == looker
        self.told["restarts"] = lookers.restarts

    def memory_used_up(self) -> None:
        """Without a run: an actor takes memory until Ray's memory monitor ends it."""
        pool = Pool("maker", MakerSpec(), 1, Limits(120, 120, 0))
        try:
            self._call(pool, "take_memory")
        except StalledError as error:
            self.told["message"] = error.message

    def _call(self, pool: Pool, method: str, *arguments: Any) -> Finished:
        pool.start()
        give_up = time.monotonic() + 120
        ended: list[Finished] = []
        begun = False
        while not ended:
            assert time.monotonic() < give_up, method
            if not begun and (actor := pool.least_busy(1)):
                returns = 2 if method == "make" else 1
                pool.submit(actor, method, *arguments, job=method, num_returns=returns)
                begun = True
            ended = [done for ref in wait([pool], 0.1) if (done := pool.finish(ref))]
        return ended[0]

    def _free_while_draining(self, node: str) -> bool:
        pool = self.pools["generator"]
        give_up = time.monotonic() + 30
        while not all(actor.leaving for actor in pool.actors):
            assert time.monotonic() < give_up, "nobody noticed that the node is drained"
            pool.give_up_overdue()
            time.sleep(0.1)
        self.told["node_of_generators"] = all(actor.node == node for actor in pool.actors)
        return pool.least_busy(2) is not None

    # ---- running -------------------------------------------------------------------------------

    def look(self, snapshot: Any) -> None:
        if snapshot.candidates >= AFTER_CANDIDATES and not self.acted:
            self.acted = True
            self.act()
        restarts = {kind: pool.restarts for kind, pool in self.pools.items()}
        self.told["restarts"] = {
            kind: max(count, self.told.get("restarts", {}).get(kind, 0)) for kind, count in restarts.items()
        }

    def run(self, dataset: str, out: str) -> dict[str, Any]:
        original = vars(job)["make_pools"]

        def remember(*told: Any) -> Any:
            made = original(*told)
            self.pools.update((pool.kind, pool) for pool in made)
            generators = self.pools["generator"]  # a core each, and so not on the head, which has none
            generators.reserved = Reservation(num_cpus=1)
            return made

        vars(job)["make_pools"] = remember
        result = run(config(dataset), out, reporter=Reporter(progress=self.look))
        table = open_manifest(out).to_table(columns=["id"], filter="source = 'synthetic'")
        return self.told | {
            "state": result.state,
            "acted": self.acted,
            "accepted": sorted(table["id"].to_pylist()),
        }


def main(scenario: str, dataset: str, out: str) -> None:
    trial = Trial(scenario)
    try:
        if scenario in ("object_lost", "memory_used_up"):
            trial.act()
            told = trial.told
        else:
            told = trial.run(dataset, out)
    finally:
        ray.shutdown()
        trial.cluster.shutdown()
    Path(f"{out}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
