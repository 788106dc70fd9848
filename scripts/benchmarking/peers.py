"""The same simulated work done in three ways: one image after another, as a Ray Data pipeline, and by a run.

All have generators that make 8 images in the same time, alone or together, and verdicts that follow from the
candidate. Start-up is left out for all of them: time counts from the first batch to the last image.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray

from benchmarking.record import keep_option, save
from benchmarking.simulated_job import SHAPE, SIDE, VERIFY_S, run_job
from benchmarking.simulated_writer import WRITE_S

ATTEMPTS = 4


@click.command("peers")
@keep_option
@click.option("--generators", default="1,8", show_default=True)
@click.option("--service", default="2.0,0.5", show_default=True, help="Seconds a batch of 8 takes.")
@click.option("--pass-rates", default="0.7,0.9", show_default=True)
@click.option("--batches-each", default=30, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def command(generators: str, service: str, pass_rates: str, batches_each: int, repeats: int) -> None:
    """Ratios of wall times, medians of several runs each."""
    cases = []
    for count in map(int, generators.split(",")):
        for service_s in map(float, service.split(",")):
            for rate in map(float, pass_rates.split(",")):
                cases.append(_case(count, service_s, rate, batches_each, repeats))
                click.echo(json.dumps(cases[-1]), err=True)
    save(
        "peers",
        {"batch": SHAPE, "verify_s": VERIFY_S, "write_s": WRITE_S, "repeats": repeats, "cases": cases},
    )


def _case(generators: int, service_s: float, rate: float, batches_each: int, repeats: int) -> dict[str, Any]:
    images = max(40, round(generators * batches_each * SHAPE * rate / 40) * 40)

    def median(way: Callable[[int, int, float, float], float]) -> float:
        return statistics.median(way(images, generators, service_s, rate) for _ in range(repeats))

    one_by_one, slower_alone = median(_one_by_one), median(_one_by_one_slower)
    ray_data, ours = median(_ray_data), median(_by_a_run)
    return {
        "generators": generators,
        "service_s": service_s,
        "pass_rate": rate,
        "images": images,
        "one_after_another_s": round(one_by_one, 2),
        "one_after_another_slower_alone_s": round(slower_alone, 2),
        "ray_data_s": round(ray_data, 2),
        "balancer_s": round(ours, 2),
        "one_after_another_over_balancer": round(one_by_one / ours, 3),
        "one_after_another_slower_alone_over_balancer": round(slower_alone / ours, 3),
        "ray_data_over_balancer": round(ray_data / ours, 3),
    }


def _passes(slot: int, attempt: int, rate: float) -> bool:
    return bool(np.random.default_rng([slot, attempt]).random() < rate)


def _one_by_one(
    images: int, generators: int, service_s: float, rate: float, slower_alone: float = 1.0
) -> float:
    """Each generator has its share of the images, and makes, judges and saves one after another, up to four
    times each. Per image, everything takes an eighth of what a batch takes: as if an image took no longer
    alone than in a batch, which is true of no GPU."""

    def make(slots: range) -> None:
        for slot in slots:
            for attempt in range(ATTEMPTS):
                time.sleep((slower_alone * service_s + VERIFY_S) / SHAPE)
                if _passes(slot, attempt, rate):
                    time.sleep(WRITE_S / SHAPE)
                    break

    shares = [range(first, images, generators) for first in range(generators)]
    began = time.monotonic()
    with ThreadPoolExecutor(generators) as threads:
        list(threads.map(make, shares))
    return time.monotonic() - began


def _one_by_one_slower(images: int, generators: int, service_s: float, rate: float) -> float:
    """An image takes twice as long alone as in a batch. Published for 512 x 512: 3 times on an H200
    (Qwen-Image, github.com/sgl-project/sglang/pull/22183), 6 times on an L4 (SDXL-Turbo,
    github.com/luxonis/datadreamer/pull/34)."""
    return _one_by_one(images, generators, service_s, rate, slower_alone=2.0)


class _Generate:
    """Notes when its first batch began, and leaves pixels as large as a run's."""

    def __init__(self, service_s: float, notes: str) -> None:
        self._service_s, self._notes = service_s, Path(notes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with (self._notes / f"{time.time_ns()}").open("x"):
            time.sleep(self._service_s)
        return batch | {"pixels": np.zeros((len(batch["slot"]), SIDE, SIDE, 3), np.uint8)}


class _Verify:
    def __init__(self, rate: float) -> None:
        self._rate = rate

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(VERIFY_S + WRITE_S)
        passed = [
            _passes(slot, attempt, self._rate)
            for slot, attempt in zip(batch["slot"], batch["attempt"], strict=True)
        ]
        return {"slot": batch["slot"], "passed": np.array(passed)}


def _ray_data(images: int, generators: int, service_s: float, rate: float) -> float:
    """Two stages of actors. A pipeline cannot go back, so rejected images go into the next round."""
    with tempfile.TemporaryDirectory() as notes:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=2 * generators + 8,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            slots = list(range(images))
            for attempt in range(ATTEMPTS):
                if slots:
                    slots = _round(slots, attempt, generators, service_s, rate, notes)
            ended = time.time()
        finally:
            ray.shutdown()
        return ended - min(int(path.name) for path in Path(notes).iterdir()) / 1e9


def _round(
    slots: list[int], attempt: int, generators: int, service_s: float, rate: float, notes: str
) -> list[int]:
    items = [{"slot": slot, "attempt": attempt} for slot in slots]
    blocks = math.ceil(len(items) / SHAPE)
    judged = (
        ray.data.from_items(items, override_num_blocks=blocks)
        .map_batches(
            _Generate,
            fn_constructor_args=(service_s, notes),
            batch_size=SHAPE,
            concurrency=generators,
            num_cpus=1,
        )
        .map_batches(
            _Verify,
            fn_constructor_args=(rate,),
            batch_size=SHAPE,
            concurrency=max(1, generators // 8),
            num_cpus=1,
        )
    )
    return [row["slot"] for row in judged.iter_rows() if not row["passed"]]


def _by_a_run(images: int, generators: int, service_s: float, rate: float) -> float:
    job = run_job(images, generators, service_s, rate)
    first = min(span[0] for calls in job.spans["generator"] for span in calls)
    return max(span[1] for calls in job.spans["writer"] for span in calls) - first
