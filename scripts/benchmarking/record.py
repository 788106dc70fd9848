"""Print the figures of a benchmark, with the machine they were measured on, and keep them if asked."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks"
PACKAGES = ("ray", "torch", "diffusers", "open_clip_torch", "pyarrow", "duckdb", "numpy", "scipy")


keep_option = click.option(
    "--keep",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _, keep: ctx.meta.update({"keep": keep}),
    help="Replace the result that the pages of figures are drawn from.",
)
"""For commands that `save`; without it they only print."""


def save(name: str, figures: Mapping[str, Any], *, device: str = "cpu") -> None:
    """Print the figures as one JSON object; with `--keep`, also write it to `benchmarks/NAME.json`."""
    document = {"benchmark": name, "machine": machine(device), **figures}
    text = json.dumps(document, indent=2)
    print(text)
    if click.get_current_context().meta["keep"]:
        (RESULTS / f"{name}.json").write_text(text + "\n")


def machine(device: str) -> dict[str, Any]:
    return {
        "device": device,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def median_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of several runs of `work`, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
