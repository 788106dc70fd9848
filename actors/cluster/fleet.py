"""The pools of a run: which workers they hold, with which arguments, and what each reserves."""

from __future__ import annotations

import os
from typing import Any

from actors.cluster.connect import Fleet, Resources
from actors.cluster.pool import Limits, Pool, WorkerSpec
from balancer.config.schema import Config
from balancer.storage import LocalStorage, Storage
from balancer.verification.calibration import load_temperatures

CPU_THREADS = 1
"""Threads of an actor on CPU. Several single-threaded generators make more images than one with several
threads, and an image does not depend on how many cores a machine has."""


def pools_of(config: Config, fleet: Fleet, resources: Resources, storage: Storage) -> tuple[Pool, Pool, Pool]:
    """Pools of generators, verifiers and writers, not started yet."""
    actors = config.actors
    limits = Limits(actors.start_timeout_s, actors.call_timeout_s, actors.max_restarts)
    generator = WorkerSpec(
        "generator",
        *generator_worker(config, on_gpu=fleet.gpus_per_generator > 0),
        num_cpus=fleet.cpus_per_generator,
        num_gpus=fleet.gpus_per_generator,
    )
    verifier = WorkerSpec(
        "verifier",
        *verifier_worker(config, on_gpu=fleet.gpus_per_verifier > 0),
        num_gpus=fleet.gpus_per_verifier,
    )
    # A folder may be on the driver's disk, and be seen from there only; a bucket is seen from everywhere.
    writer = WorkerSpec(
        "writer",
        "actors.models.writer:Writer",
        {"storage_uri": storage.uri, "image_format": config.output.image_format},
        node=resources.driver_node if isinstance(storage, LocalStorage) else None,
    )
    return (
        Pool(generator, fleet.generators, limits),
        Pool(verifier, fleet.verifiers, limits),
        Pool(writer, fleet.writers, limits),
    )


def start_pools(generators: Pool, verifiers: Pool, writers: Pool) -> None:
    """Start all actors; each is ready when its model is loaded. Those that many generators share come first,
    or images would pile up before anyone is there to judge and write them."""
    writers.start()
    if verifiers.spec.num_gpus:
        # Two verifiers on one GPU would take the room that a generator needs: it goes first.
        generators.start()
        generators.wait_until_placed()
        verifiers.start()
    else:
        verifiers.start()
        generators.start()


def generator_worker(config: Config, on_gpu: bool) -> tuple[str, dict[str, Any]]:
    made = config.generation
    sizes: dict[str, Any] = {"width": made.width, "height": made.height}
    if config.actors.kind == "simulated":
        service_s = (config.planning.seconds_per_candidate or 0.0) * made.usual_batch
        sizes["batch_size"] = made.usual_batch
        return "actors.models.simulated:SimulatedGenerator", sizes | {"service_s": service_s}
    return "actors.models.generator:Generator", sizes | {
        "batch_size": made.batch_size,
        "model": _located(made.model),
        "revision": made.revision,
        "variant": made.variant,
        "steps": made.steps,
        "dtype": made.dtype,
        "offload": made.offload,
        "compiled": made.compile and on_gpu,
        "device": _device(config, on_gpu),
        "threads": CPU_THREADS,
    }


def verifier_worker(config: Config, on_gpu: bool) -> tuple[str, dict[str, Any]]:
    properties = config.properties()
    if config.actors.kind == "simulated":
        return "actors.models.simulated:SimulatedVerifier", {
            "properties": properties,
            "pass_rate": config.planning.acceptance,
        }
    return "actors.models.verifier:Verifier", {
        "model": _located(config.verification.model),
        "revision": config.verification.revision,
        "properties": properties,
        "device": _device(config, on_gpu),
        "threads": CPU_THREADS,
        "temperatures": load_temperatures(config),
        "second_judge": _second_judge(config),
        "safety": _safety(config),
    }


def _second_judge(config: Config) -> dict[str, Any] | None:
    asked = config.verification.second_judge
    if asked is None:
        return None
    return {"model": _located(asked.model), "revision": asked.revision, "question": asked.question}


def _safety(config: Config) -> dict[str, Any] | None:
    checked = config.verification.safety
    if checked is None:
        return None
    return {"model": _located(checked.model), "revision": checked.revision, "labels": checked.labels}


def _located(model: str) -> str:
    """A folder by its full path: actors do not work in the driver's folder."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def _device(config: Config, on_gpu: bool) -> str:
    """`cuda` only if the config insists: a GPU that Ray counts may still be unusable for torch."""
    if not on_gpu:
        return "cpu"
    return config.actors.device
