"""Idle time of generators: simulated fleets on real Ray, with the real driver, pools, schedule and log."""

from __future__ import annotations

import json
import math
import statistics
from itertools import pairwise
from typing import Any

import click

from benchmarking.record import keep_option, save
from benchmarking.simulated_job import PASS_RATE, SHAPE, VERIFY_S, Job, run_job
from benchmarking.simulated_writer import WRITE_S
from benchmarking.watch import Span, earliest_end

BATCHES_EACH = 60
"""Batches that every generator makes on average."""


@click.command("fleet")
@keep_option
@click.option("--generators", default="1,8,32,64", show_default=True)
@click.option("--service", default="2.0,0.5", show_default=True, help="Seconds a batch of 8 takes.")
@click.option("--repeats", default=1, show_default=True, help="The median efficiency is kept.")
def command(generators: str, service: str, repeats: int) -> None:
    """Efficiency, idle gaps and the end of a run, for fleets of several sizes."""
    cases = []
    for service_s in map(float, service.split(",")):
        for count in map(int, generators.split(",")):
            repeated = [_case(count, service_s) for _ in range(repeats)]
            repeated.sort(key=lambda case: case["efficiency"])
            cases.append(repeated[len(repeated) // 2])
            click.echo(json.dumps(cases[-1]), err=True)
    save(
        "fleet",
        {"batch": SHAPE, "pass_rate": PASS_RATE, "verify_s": VERIFY_S, "write_s": WRITE_S, "cases": cases},
    )


def _case(generators: int, service_s: float) -> dict[str, Any]:
    images = max(40, round(generators * BATCHES_EACH * SHAPE * PASS_RATE / 40) * 40)
    job = run_job(images, generators, service_s)
    return {"generators": generators, "service_s": service_s} | _figures(job, generators, service_s)


def _figures(job: Job, generators: int, service_s: float) -> dict[str, Any]:
    """Steady time is from when the last generator has begun its first batch to the end of the last batch.

    The lower bound is the shortest time for the same attempts after the first generator was ready: each
    generator is busy without a gap once it is ready, then come one verdict and one file.
    """
    by_generator = job.spans["generator"]
    work = [_calls(spans, service_s) for spans in by_generator]
    steady_from = max(calls[0][0] for calls in work)
    last = max(calls[-1][1] for calls in work)
    written = max(span[1] for spans in job.spans["writer"] for span in spans)
    made = sum(end > steady_from for calls in work for _, end in calls) * SHAPE
    rate = SHAPE / service_s
    gaps = [later[0] - earlier[1] for calls in work for earlier, later in pairwise(calls)]
    bound = earliest_end(job.ready, math.ceil(job.candidates / SHAPE), service_s) + VERIFY_S + WRITE_S
    first = min(job.ready)
    waste = sum(map(len, work)) * SHAPE - job.candidates
    return {
        "accepted": job.accepted,
        "candidates": job.candidates,
        "made_ahead_and_not_needed": waste,
        "start_s": round(steady_from - job.began, 2),
        "steady_s": round(last - steady_from, 2),
        "efficiency": round(made / (rate * generators * (last - steady_from)), 4),
        "idle_gap_ms_p50": round(1000 * statistics.median(gaps), 2),
        "idle_gap_ms_p99": round(1000 * _percentile(gaps, 0.99), 2),
        "last_image_over_bound": round((written - first) / (bound - first), 4),
    }


def _calls(spans: list[Span], service_s: float) -> list[Span]:
    """Those that made a batch."""
    return [span for span in spans if span[1] - span[0] >= 0.9 * service_s]


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
