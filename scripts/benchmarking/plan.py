"""Exact plans: how long controlled rounding takes, from the reference case to 120,000 cells, and the whole
command with the largest one. Seconds are of CPU: planning uses one core and waits for nothing."""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from balancer.config.schema import Config
from balancer.planning.plan import make_plan
from benchmarking.record import keep_option, save

FACETS = {"lighting": [0.25] * 4, "burn_level": [0.40, 0.35, 0.25], "angle": [0.2] * 5}


@click.command("plan")
@keep_option
@click.option("--repeats", default=3, show_default=True)
def command(repeats: int) -> None:
    """Plan datasets of 6 to 2,000 classes with three facets each (60 cells a class)."""
    cases = [_case(classes, repeats) for classes in (6, 100, 1000, 2000)]
    save("plan", {"cases": cases, "command": _whole_command(2000, repeats)})


def _case(classes: int, repeats: int) -> dict[str, Any]:
    config = _config(classes)
    chance = random.Random(0)
    counts = {name: chance.randint(0, 600) for name in config.classes}
    plan = make_plan(config, counts)
    return {
        "classes": classes,
        "cells": 60 * classes,
        "images": plan.total,
        "seconds": _cpu_s(lambda: make_plan(config, counts), time.process_time, repeats),
    }


def _whole_command(classes: int, repeats: int) -> dict[str, Any]:
    """`balancer plan` of classes without images: start, config, dataset, plan and what is printed."""
    config = _config(classes).model_dump(mode="json", exclude_unset=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in config["classes"]:
            Path(folder, "dataset", name).mkdir(parents=True)
        settings = {"dataset": {"path": "dataset"}, "actors": {"kind": "simulated"}}
        Path(folder, "job.json").write_text(json.dumps(config | settings))
        arguments = [sys.executable, "-m", "balancer", "plan", "job.json"]
        lines: list[int] = []

        def plan() -> None:
            printed = subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True)
            lines.append(printed.stdout.count("\n"))

        return {
            "cells": 60 * classes,
            "seconds": _cpu_s(plan, _children_s, repeats),
            "lines": lines[0],
        }


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_s(work: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """The median of several runs."""
    times = []
    for _ in range(repeats):
        started = clock()
        work()
        times.append(clock() - started)
    return round(statistics.median(times), 3)


def _config(classes: int) -> Config:
    facets = {
        name: {
            "values": {
                f"{name}{number}": {"share": share, "prompts": [f"{name} {number}"]}
                for number, share in enumerate(shares)
            }
        }
        for name, shares in FACETS.items()
    }
    names = {f"class{number:04d}": {"prompts": ["a picture"]} for number in range(classes)}
    return Config.model_validate({"classes": names, "facets": facets, "target": {"per_class": 600}})
