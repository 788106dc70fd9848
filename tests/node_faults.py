"""A run on a cluster of several nodes, one of which goes or comes while it works; prints what became of it.

python -m tests.node_faults SCENARIO DATASET OUT
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

import actors.run as job
from actors.pool import Pool
from actors.run import Reporter, run
from balancer.config import Config
from balancer.manifest.query import open_manifest

GENERATORS = 2
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


class Trial:
    """The cluster, the pools of the run, and what is done to them."""

    def __init__(self, scenario: str) -> None:
        self.act: Callable[[], None] = getattr(self, scenario)
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SYSTEM}
        )
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)
        self.cluster.wait_for_nodes()
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.pools: dict[str, Pool] = {}
        self.told: dict[str, Any] = {}
        self.acted = False

    # ---- scenarios -----------------------------------------------------------------------------

    def nothing(self) -> None:
        pass

    def lost_and_added(self) -> None:
        """The node of all generators is switched off, with results that nobody had fetched; another comes."""
        self.cluster.remove_node(self.worker, allow_graceful=False)
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)

    def drained(self) -> None:
        """Another node comes, and the one of the generators is preempted: told first, ended later."""
        old = self.worker
        self.worker = self.cluster.add_node(num_cpus=GENERATORS)
        self.cluster.wait_for_nodes()
        accepted, why = global_worker.gcs_client.drain_node(
            old.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "preempted",
            int((time.time() + 3600) * 1000),
        )
        assert accepted, why
        calls = self._calls_begun_while_draining(old.node_id)
        self.told["begun_while_draining"] = calls
        self.cluster.remove_node(old, allow_graceful=False)

    def _calls_begun_while_draining(self, node: str) -> int:
        pool, begun = self.pools["generator"], 0
        give_up = time.monotonic() + 30
        while not all(actor.leaving for actor in pool.actors):
            assert time.monotonic() < give_up, "nobody noticed that the node is drained"
            pool.give_up_overdue()
            time.sleep(0.1)
        self.told["node_of_generators"] = pool.actors[0].node == node
        return begun + (pool.least_busy(2) is not None)

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
        original = job.pools_of

        def remember(*told: Any) -> Any:
            made = original(*told)
            self.pools.update((pool.spec.kind, pool) for pool in made)
            return made

        job.pools_of = remember  # type: ignore[assignment]
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
        told = trial.run(dataset, out)
    finally:
        ray.shutdown()
        trial.cluster.shutdown()
    Path(out, "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
