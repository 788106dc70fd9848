"""What the loop costs: the schedule alone up to a million slots, the whole driver on pools without Ray."""

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

from actors.loop.driver import Driver
from actors.loop.feed import Feed
from actors.loop.simulated_pool import AtOnce, LocalEngine, LocalPool
from actors.models.simulated import EMBEDDING_DIM, SimulatedGenerator, SimulatedVerifier
from actors.models.writer import RejectedItem, WriteItem
from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.manifest import ManifestLog, create_run
from balancer.manifest.rows import ImageFile
from balancer.planning.plan import make_plan
from balancer.runs.resume import describe_run, facts_of, schedule_of
from balancer.scheduling.schedule import Outcome, Schedule
from balancer.storage import open_storage
from benchmarking.record import save

PASS_RATE = 0.7
SHAPE = 8
SERVICE_S = 2.0
MODELS: dict[str, dict[str, Any]] = {
    "generator": {"model": "simulated", "revision": None},
    "verifier": {"model": "simulated", "revision": None, "embedding_dim": EMBEDDING_DIM},
}


@click.command("driver")
@click.option("--slots", default="10000,100000,1000000", show_default=True, help="For the schedule alone.")
@click.option("--generators", default="8,64,1000", show_default=True, help="For the whole driver.")
@click.option("--images", default=100_000, show_default=True, help="For the whole driver.")
@click.option("--most-images", default=1_000_000, show_default=True, help="For the last of its cases again.")
def command(slots: str, generators: str, images: int, most_images: int) -> None:
    """Time per candidate and memory of schedule and driver; each case in a process of its own."""
    alone = [_apart(_schedule_alone, int(count)) for count in slots.split(",")]
    fleets = [int(count) for count in generators.split(",")]
    whole = [
        _apart(_whole_driver, fleet, count)
        for fleet, count in [*((fleet, images) for fleet in fleets), (fleets[-1], most_images)]
    ]
    save("driver", {"pass_rate": PASS_RATE, "batch": SHAPE, "schedule_alone": alone, "whole_driver": whole})


def _apart(measure: Callable[..., dict[str, Any]], *arguments: int) -> dict[str, Any]:
    """In a fresh process, so that memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(measure, arguments)
    click.echo(json.dumps(found), err=True)
    return found


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _schedule_alone(slots: int) -> dict[str, Any]:
    """1,000 generators with two batches each, whose verdicts come back in the order they were asked for."""
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
    schedule = schedule_of(info, config, info.schema().empty_table(), None)
    engine = LocalEngine()
    helpers = -(-generators // 8)
    generator = SimulatedGenerator(SHAPE, 16, 16, SERVICE_S, sleep=lambda seconds: None)  # the engine waits
    driver = Driver(
        config,
        facts_of(info, config),
        Feed(config, schedule),
        log,  # type: ignore[arg-type]
        generators=LocalPool("generator", generator, generators, engine, SERVICE_S),
        verifiers=LocalPool(
            "verifier", SimulatedVerifier(config.properties(), PASS_RATE), helpers, engine, 0.05
        ),
        writers=LocalPool("writer", _NoWriter(), helpers, engine, 0.05),
        references=NearDuplicateIndex([], config.verification.copies),
        clock=engine.clock,
        wait=engine.wait,
        commit_thread=AtOnce(),
    )
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
        "made_ahead_and_not_needed": driver.feed.speculation.started - driver.feed.speculation.used,
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
