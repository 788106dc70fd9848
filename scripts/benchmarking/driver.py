"""The cost of the loop: the schedule alone up to a million slots, the whole driver on pools without Ray."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from actors.loop.simulated_pool import LocalEngine, LocalPool, simulated_driver
from actors.models.simulated import EMBEDDING_DIM, SimulatedGenerator, SimulatedVerifier
from actors.models.writer import RejectedItem, WriteItem
from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.manifest import ManifestLog, create_run
from balancer.manifest.rows import ImageFile
from balancer.planning.plan import make_plan
from balancer.runs.resume import describe_run, restore_schedule
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.schedule import Schedule
from balancer.storage import open_storage
from benchmarking.record import keep_option, save

PASS_RATE = 0.7
SHAPE = 8
SERVICE_S = 2.0
MODELS: dict[str, dict[str, Any]] = {
    "generator": {"model": "simulated", "revision": None},
    "verifier": {"model": "simulated", "revision": None, "embedding_dim": EMBEDDING_DIM},
}


@click.command("driver")
@keep_option
@click.option("--slots", default="10000,100000,1000000", show_default=True, help="For the schedule alone.")
@click.option("--generators", default="8,64,1000", show_default=True, help="For the whole driver.")
@click.option("--images", default=100_000, show_default=True, help="For the whole driver.")
@click.option("--most-images", default=1_000_000, show_default=True, help="For the last of its cases again.")
def command(slots: str, generators: str, images: int, most_images: int) -> None:
    """Time per candidate and memory of schedule and driver; each case in its own process."""
    alone = [_apart(_schedule_alone, int(count)) for count in slots.split(",")]
    fleets = [int(count) for count in generators.split(",")]
    whole = [
        _apart(_whole_driver, fleet, count)
        for fleet, count in [*((fleet, images) for fleet in fleets), (fleets[-1], most_images)]
    ]
    save("driver", {"pass_rate": PASS_RATE, "batch": SHAPE, "schedule_alone": alone, "whole_driver": whole})


def _apart(measure: Callable[..., dict[str, Any]], *arguments: int) -> dict[str, Any]:
    """In a fresh process, to measure its memory alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(measure, arguments)
    click.echo(json.dumps(figures), err=True)
    return figures


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _schedule_alone(slots: int) -> dict[str, Any]:
    """1,000 generators with two batches each; verdicts arrive in the order of the requests."""
    before = _peak_mb()
    cells = 1000
    quotas = [(Cell(f"class{number}", (("light", "day"),)), slots // cells, 0) for number in range(cells)]
    schedule = Schedule(quotas, attempts=4, give_up_below=0.01)
    passes = np.random.default_rng(0).random(4 * slots) < PASS_RATE
    under_way: deque[list[Any]] = deque()
    judged = 0
    began = time.perf_counter()
    while not schedule.done:
        while len(under_way) < 2000 and (batch := schedule.next_batch(SHAPE)):
            under_way.append(batch)
        for candidate in under_way.popleft():
            schedule.judged(Outcome(candidate, None if passes[judged] else "class"))
            if passes[judged]:
                schedule.accept(candidate)
            judged += 1
    seconds = time.perf_counter() - began
    return {
        "slots": slots,
        "candidates": schedule.candidates,
        "ms_per_candidate": round(1000 * seconds / schedule.candidates, 4),
        "memory_mb": round(_peak_mb() - before),
        "bytes_per_slot": round((_peak_mb() - before) * 2**20 / slots),
    }


class _NoWriter:
    """Acknowledges images without writing them: what writing costs is the writers' time."""

    def write(
        self, pixels: Any, items: Sequence[WriteItem], rejected: Sequence[RejectedItem] = ()
    ) -> list[ImageFile]:
        return [ImageFile(f"{item.stem}.png", "0" * 64, 1) for item in items]


class _TimedLog:
    """A log whose commits are timed apart: in a run they are made by a thread of their own."""

    def __init__(self, log: ManifestLog) -> None:
        self._log = log
        self.seconds = 0.0

    def commit(self, rows: Sequence[Any]) -> None:
        began = time.perf_counter()
        self._log.commit(rows)
        self.seconds += time.perf_counter() - began

    def free_name(self, stem: str) -> str:
        return self._log.free_name(stem)


def _whole_driver(generators: int, images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _driven(generators, images, Path(folder))


def _driven(generators: int, images: int, folder: Path) -> dict[str, Any]:
    config = _config(images)
    storage = open_storage(folder / "run", create=True)
    info = create_run(storage, describe_run(config, make_plan(config, {}), MODELS))
    log = _TimedLog(ManifestLog.open(storage, info.schema(), info.run_id))
    schedule = restore_schedule(info, config, info.schema().empty_table(), None)
    engine = LocalEngine()
    helpers = -(-generators // 8)
    generator = SimulatedGenerator(SHAPE, 16, 16, SERVICE_S, sleep=lambda seconds: None)  # the engine waits
    pools = (
        LocalPool("generator", generator, generators, engine, SERVICE_S),
        LocalPool("verifier", SimulatedVerifier(config.properties(), PASS_RATE), helpers, engine, 0.05),
        LocalPool("writer", _NoWriter(), helpers, engine, 0.05),
    )
    driver = simulated_driver(config, info, schedule, log, pools)  # type: ignore[arg-type]
    memory = [(0, _resident_mb())]
    began = time.perf_counter()
    while driver.step():
        if schedule.candidates >= memory[-1][0] + images // 10:
            memory.append((schedule.candidates, _resident_mb()))
    seconds = time.perf_counter() - began
    own = seconds - engine.worked_s - log.seconds
    return {
        "generators": generators,
        "images": images,
        "candidates": schedule.candidates,
        "made_ahead_and_not_needed": schedule.speculation.unused,
        "ms_per_candidate": round(1000 * own / schedule.candidates, 4),
        "commit_thread_ms_per_candidate": round(1000 * log.seconds / schedule.candidates, 4),
        "resident_mb_by_candidates": [[count, round(mb)] for count, mb in memory],
        "bytes_per_slot": round((memory[-1][1] - memory[0][1]) * 2**20 / images),
    }


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _config(images: int) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": "none"},
            "classes": {f"class{n}": {"prompts": ["a picture", "one picture"]} for n in range(10)},
            "facets": {"light": {"values": {f"light{n}": {"prompts": ["so"]} for n in range(4)}}},
            "target": {"per_class": images // 10},
            "generation": {"width": 64, "height": 64, "batch_size": SHAPE},
            "attempts": {"max": 3, "fallback": {}},
        }
    )
