"""The whole reference run on this machine compared with bare sampling, and a profile of sampling."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch

import balancer
from actors.run import run
from actors.specs import generator_spec
from balancer.cells import Candidate, Slot, enumerate_cells
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.run_manifest import open_manifest
from balancer.scheduling.prompts import Request, ladder, request_for
from benchmarking.record import keep_option, save
from benchmarking.watch import earliest_end, watched

DEMO = Path(balancer.__file__).resolve().parent.parent / "configs" / "demo.yaml"


@click.command("embedded")
@keep_option
@click.option("--processes", default=2, show_default=True, help="As many as the run has generators.")
@click.option("--repeats", default=3, show_default=True)
def command(processes: int, repeats: int) -> None:
    """Run the demo, then sample its candidates in bare loops, as many at once as there were generators.

    The bare time is for generators that begin when those of the run were ready, which is one after the other.
    """
    cases = sorted((_compare(processes) for _ in range(repeats)), key=lambda case: case["run_over_bare"])
    save("embedded", {"repeats": repeats, **cases[len(cases) // 2], "phases_of_sampling": _phases()})


def _compare(processes: int) -> dict[str, Any]:
    ran = _run(processes)
    batches = math.ceil(ran["candidates"] / load_config(DEMO).generation.usual_batch)
    batch_s = _bare_batch_s(math.ceil(batches / processes), processes)
    bare_s = earliest_end(ran["ready_s"], batches, batch_s)
    return ran | {"bare_sampling_s": round(bare_s, 2), "run_over_bare": round(ran["run_s"] / bare_s, 3)}


def _run(processes: int) -> dict[str, Any]:
    """From when the first generator was ready to the end of the last write; what comes before is
    the start."""
    config = load_config(DEMO, [f"actors.generators={processes}"])
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        with watched() as seen:
            result = run(config, Path(folder) / "run")
        ended = time.time()
        rows = open_manifest(Path(folder) / "run").count_by(status="all", filter="source = 'synthetic'")
    ready = sorted(seen.ready["generator"])
    first = ready[0]
    last = max(span[1] for calls in seen.spans["writer"] for span in calls)
    return {
        "generators": processes,
        "accepted": result.accepted,
        "candidates": rows["count"][0].as_py(),
        "start_s": round(first - began, 2),
        "ready_s": [round(one - first, 2) for one in ready],
        "run_s": round(last - first, 2),
        "end_s": round(ended - last, 2),
    }


def _requests(config: Config, count: int) -> list[Request]:
    rung = ladder(config)[0]
    cells = [cell for name in config.classes for cell in enumerate_cells(name, config.facet_axes())]
    candidates = [Candidate(Slot(cells[i % len(cells)], i // len(cells)), 1) for i in range(count)]
    return [request_for(candidate, rung, config) for candidate in candidates]


def _bare_batch_s(batches: int, processes: int) -> float:
    """Seconds per batch of the slowest of several processes that only generate batches."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return max(pool.map(_sample, [batches] * processes))


def _sample(batches: int) -> float:
    config = load_config(DEMO)
    generator = generator_spec(config).load()
    requests = _requests(config, config.generation.usual_batch)
    generator.generate(requests, config.generation.guidance)
    began = time.perf_counter()
    for _ in range(batches):
        generator.generate(requests, config.generation.guidance)
    return (time.perf_counter() - began) / batches


def _phases(batches: int = 5) -> dict[str, float]:
    """Parts of the time of sampling, in one process of one thread."""
    config = load_config(DEMO)
    generator = generator_spec(config).load()
    requests, guidance = _requests(config, config.generation.usual_batch), config.generation.guidance
    generator.generate(requests, guidance)
    spent: dict[str, float] = {}
    pipeline = generator._pipeline
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for name, part, method in (
            ("unet", pipeline.unet, "forward"),
            ("vae", pipeline.vae, "decode"),
            ("text", generator._loaded.embeddings, "arguments"),
            ("scheduler", pipeline.scheduler, "step"),
        ):
            stack.enter_context(_timed(spent, name, part, method))
        for _ in range(batches):
            generator.generate(requests, guidance)
    total = time.perf_counter() - began
    shares = {name: round(seconds / total, 4) for name, seconds in spent.items()}
    return shares | {
        "else": round(1 - sum(spent.values()) / total, 4),
        "s_per_candidate": round(total / batches / len(requests), 4),
    }


@contextlib.contextmanager
def _timed(spent: dict[str, float], name: str, part: Any, method: str) -> Iterator[None]:
    plain = getattr(part, method)

    def timed(*arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*arguments, **more)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    with mock.patch.object(part, method, timed), torch.inference_mode():
        yield
