"""The pools of a run: how many actors of each kind, and what each reserves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from actors.cluster.pool import Limits, Pool, Reservation
from actors.cluster.sizing import Fleet, Resources
from actors.specs import Workers, WorkerSpec, workers_for
from balancer.config.schema import Config
from balancer.storage import LocalStorage, Storage


class Pools(NamedTuple):
    generators: Pool
    verifiers: Pool
    writers: Pool


def make_pools(
    config: Config,
    fleet: Fleet,
    resources: Resources,
    storage: Storage,
    change_workers: Callable[[Workers], Workers] = lambda usual: usual,
) -> Pools:
    """Pools that are not started yet."""
    usual = workers_for(
        config,
        storage.uri,
        generators_on_gpu=fleet.gpus_per_generator > 0,
        verifiers_on_gpu=fleet.gpus_per_verifier > 0,
    )
    workers = change_workers(usual)
    wanted = config.actors
    limits = Limits(wanted.start_timeout_s, wanted.call_timeout_s, wanted.max_restarts)
    generators = Reservation(num_cpus=fleet.cpus_per_generator, num_gpus=fleet.gpus_per_generator)
    verifiers = Reservation(num_gpus=fleet.gpus_per_verifier)
    # A folder may be on the driver's disk, and be seen from there only; a bucket is seen from everywhere.
    writers = Reservation(node=resources.driver_node if isinstance(storage, LocalStorage) else None)
    return Pools(
        Pool("generator", workers.generator, fleet.generators, limits, generators),
        Pool("verifier", workers.verifier, fleet.verifiers, limits, verifiers),
        Pool("writer", workers.writer, fleet.writers, limits, writers),
    )


def make_trainers(config: Config, spec: WorkerSpec, size: int, fleet: Fleet) -> Pool:
    """A pool of trainers that is not started yet; each takes what a generator takes."""
    wanted = config.actors
    limits = Limits(wanted.start_timeout_s, wanted.call_timeout_s, wanted.max_restarts)
    reserved = Reservation(num_cpus=fleet.cpus_per_generator, num_gpus=fleet.gpus_per_generator)
    return Pool("trainer", spec, size, limits, reserved)


def start_pools(pools: Pools) -> None:
    """Start all actors; each is ready when its model is loaded. Those that many generators share come first,
    or images would pile up before anyone is there to judge and write them."""
    pools.writers.start()
    if pools.verifiers.reserved.num_gpus:
        # Two verifiers on one GPU would take the memory that a generator needs: it goes first.
        pools.generators.start()
        pools.generators.wait_until_placed()
        pools.verifiers.start()
    else:
        pools.verifiers.start()
        pools.generators.start()
