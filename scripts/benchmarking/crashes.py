"""A long search for crash schedules that break a promise (tests/runs/test_crashes.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import click

from benchmarking.record import RESULTS, keep_option, save

SEARCH = ["tests/runs/test_crashes.py", "-k", "schedule"]


@click.command("crashes")
@keep_option
@click.option("--schedules", default=3000, show_default=True)
def command(schedules: int) -> None:
    """Run schedules on the simulated disk. One that breaks a promise is printed, and is an error."""
    save("crashes", {"violations": 0, **_search(schedules)})


def _search(schedules: int) -> dict[str, Any]:
    """Counts of the events in the schedules; ClickException if a promise was broken."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", *SEARCH],
        cwd=RESULTS.parent,
        env=os.environ | {"BALANCER_CRASH_SCHEDULES": str(schedules)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(done.stdout)
    result = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return dict(json.loads(result))
