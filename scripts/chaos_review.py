"""Kill reviewers and drivers of a finished run at random times, and check that no decision is lost.

python scripts/chaos_review.py runs/demo --kills 40

Works on a copy. A reviewer saves decisions one by one and says each key once it is saved, as the page does;
now and then it takes what waits into the log. A driver takes over the log and takes decisions in, as a run
does while it goes on. Either is killed at a random moment, with SIGKILL, and begun again. In the end every
key that was said must be in the log, and count once. Prints one JSON object; exits with 1 if not.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import click

from balancer.errors import FencedError
from balancer.manifest.log.view import read_log
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.maintenance.fsck import fsck
from balancer.manifest.rows import utc_now
from balancer.manifest.runfile import read_run
from balancer.review.decisions import DECISIONS, Answer, Decision
from balancer.review.pending import list_pending
from balancer.review.session import ReviewSession
from balancer.review.taking import take_in
from balancer.review.turn import LogInUseError, commit_waiting
from balancer.storage import open_storage

COMMITS = 0.2
"""Of what a reviewer does, the share that is a commit."""


@click.command()
@click.argument("run")
@click.option("--kills", default=40, show_default=True, help="End when so many struck.")
@click.option("--driver-share", default=0.4, show_default=True, help="Part of the kills that hit drivers.")
@click.option("--seed", default=1, show_default=True)
@click.option("--as", "role", type=click.Choice(["reviewer", "driver"]), hidden=True)
def main(run: str, kills: int, driver_share: float, seed: int, role: str | None) -> None:
    """Kill reviewers and drivers of a copy of RUN."""
    if role is not None:
        _review(run, seed) if role == "reviewer" else _drive(run)
        return
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        said: Counter[str] = Counter()
        struck: Counter[str] = Counter()
        while struck.total() < kills:
            role = "driver" if chance.random() < driver_share else "reviewer"
            said.update(_struck(copy, role, chance))
            struck[role] += 1
        result = _judge(copy, set(said)) | {"kills": dict(struck)}
    click.echo(json.dumps(result, indent=2))
    sys.exit(bool(result["lost"] or result["twice"] or result["problems"]))


def _struck(run: Path, role: str, chance: random.Random) -> list[str]:
    """Begin one, kill it at a random moment while it works; returns the keys that it said were saved."""
    command = [sys.executable, __file__, str(run), "--as", role, "--seed", str(chance.randrange(10**9))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip()]  # it is at work from here on
        time.sleep(chance.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        said += [line.strip() for line in process.stdout if line.endswith("\n")]
    return [key for key in said if key and key != "begun"]


def _review(run: str, seed: int) -> None:
    chance = random.Random(seed)
    session = ReviewSession.open(open_storage(run, create=False), f"reviewer {seed}", "estimate")
    items = [item.id for item in session.items()]
    print("begun", flush=True)
    while True:
        key = uuid.UUID(int=chance.getrandbits(128)).hex
        answer: Answer = "reject" if chance.random() < 0.3 else "accept"
        item = chance.choice(items)
        session.save([Decision(key, item, answer, session.reviewer, "estimate", 1.0, utc_now())])
        print(key, flush=True)
        if chance.random() < COMMITS:
            with contextlib.suppress(LogInUseError, FencedError):
                commit_waiting(session.storage, now=_later)


def _later() -> dt.datetime:
    """Whoever was killed while it held the log is taken for gone at once."""
    return utc_now() + dt.timedelta(hours=1)


def _drive(run: str) -> None:
    storage = open_storage(run, create=False)
    info = read_run(storage)
    log = ManifestLog.open(storage, info.schema(), info.run_id)
    take_in(storage, log, info, restoring=True)
    print("begun", flush=True)
    while True:
        if not list_pending(storage):
            log.close("interrupted")
            log = ManifestLog.open(storage, info.schema(), info.run_id)
        take_in(storage, log, info, restoring=False)


def _judge(run: Path, said: set[str]) -> dict[str, object]:
    storage = open_storage(run, create=False)
    info = read_run(storage)
    log = ManifestLog.open(storage, info.schema(), info.run_id)
    take_in(storage, log, info, restoring=True)
    log.close("interrupted")
    # As they stand there: whoever reads them counts each key once, and would see no repetition.
    details = [stamp.detail or {} for stamp in read_log(storage, ()).stamps]
    keys = Counter(decision["key"] for detail in details for decision in detail.get(DECISIONS, ()))
    return {
        "said": len(said),
        "in_the_log": len(keys),
        "lost": len(said - keys.keys()),
        "twice": sum(count > 1 for count in keys.values()),
        "waiting": len(list_pending(storage)),
        "problems": [str(problem) for problem in fsck(storage)],
    }


if __name__ == "__main__":
    main()
