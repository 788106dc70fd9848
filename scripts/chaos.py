"""Kill drivers and actors of real runs at random times, and check that nothing is lost.

python scripts/chaos.py --kills 100

A run on the embedded models is started as a user would, and restarted whenever its driver was killed, until
it is done; then the next run begins, up to the requested number of kills. Each run must end with the same
images as a run without kills. A kill counts if the process was alive and its driver had begun to work. Prints
one JSON object; `--keep` replaces `benchmarks/chaos.json` by it.

A driver leads its own session, and every process that Ray starts for it belongs to that. The processes a
killed driver leaves behind (Ray's agents live on for a while) are the rest of its session; no others are
ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from balancer.errors import BalancerError
from balancer.manifest.layout import LOG_DIR
from balancer.manifest.log.view import read_log
from balancer.manifest.maintenance.fsck import Problem, check_run
from balancer.storage import open_storage
from benchmarking.record import keep_option, save

PROJECT = Path(__file__).resolve().parent.parent
ACTORS = ("Generator", "Verifier", "Writer")
WEIGHTS = {"Generator": 6, "Verifier": 2, "Writer": 2}

FINISHED = (0, 3)
STALLED = 1
START_LIMIT_S = 300.0
END_LIMIT_S = 60.0
LOOK_S = 0.1

DUPLICATE = ("ids are unique", "one accepted image a slot", "one row an image")
DANGLING = (
    "images are there", "images can be read", "images have their size", "images have their sha256",
    "accepted rows have an image",
)  # fmt: skip


@click.command()
@keep_option
@click.option("--kills", default=100, show_default=True, help="End when so many struck.")
@click.option("--config", default="configs/demo.yaml", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config value.")
@click.option("--driver-share", default=0.12, show_default=True, help="Part of the kills that hit drivers.")
@click.option("--pause", default=(3.0, 8.0), type=(float, float), show_default=True, help="Between kills, s.")
@click.option("--seed", default=0, show_default=True, help="Of the times and the victims.")
def main(
    kills: int,
    config: str,
    overrides: tuple[str, ...],
    driver_share: float,
    pause: tuple[float, float],
    seed: int,
) -> None:
    """Kill drivers and actors of runs of CONFIG, and compare with an undisturbed run."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    # Short, because Ray's sockets are in it, and their paths are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    try:
        reference = Trial(folder / "reference", config, overrides, random.Random(seed))
        reference.run_undisturbed()
        chaos = Chaos(kills, driver_share, pause, random.Random(seed))
        while sum(chaos.struck.values()) < kills:
            trial = Trial(folder / f"run-{chaos.runs}", config, overrides, chaos.chance)
            chaos.disturb(trial)
            chaos.judge(trial, reference.accepted())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    save("chaos", {"seed": seed, "seconds": round(time.monotonic() - began), **chaos.figures()})
    sys.exit(0 if chaos.is_sound else 1)


@dataclass(slots=True)
class Session:
    """A driver and the processes that Ray started for it."""

    driver: subprocess.Popen[bytes]

    def members(self) -> list[int]:
        """Living processes of the session, without zombies."""
        return [pid for pid in _process_ids() if _read_session(pid) == self.driver.pid and _is_alive(pid)]

    def actors(self) -> dict[int, str]:
        """The kind of each actor's process."""
        titles = {pid: _title(pid) for pid in self.members()}
        kinds = {pid: title.removeprefix("ray::").partition(".")[0] for pid, title in titles.items()}
        return {pid: kind for pid, kind in kinds.items() if kind in ACTORS}

    def titles(self) -> str:
        return " ".join(map(_title, self.members()))

    def wait_until_gone(self, limit_s: float = END_LIMIT_S) -> None:
        """Wait until the driver and all its processes have ended; TimeoutError if one stays."""
        self.driver.wait(END_LIMIT_S)
        give_up = time.monotonic() + limit_s
        while members := self.members():
            if time.monotonic() > give_up:
                raise TimeoutError(f"left behind: {[(pid, _title(pid)) for pid in members]}")
            time.sleep(LOOK_S)

    def end(self) -> None:
        """Kill the remaining processes."""
        give_up = time.monotonic() + END_LIMIT_S
        while members := self.members():
            if time.monotonic() > give_up:
                raise TimeoutError(f"processes that do not end: {members}")
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_S)
        self.driver.wait()


@dataclass(slots=True)
class Trial:
    """One run, with as many starts as it takes."""

    out: Path
    config: str
    overrides: tuple[str, ...]
    chance: random.Random
    seen: set[str] = field(default_factory=set)
    """Ids of rows that were in the log after some kill."""

    def run_undisturbed(self) -> None:
        with self.started() as session:
            code = session.driver.wait()
        if code not in FINISHED:
            raise click.ClickException(f"the run without kills ended with exit code {code}")

    @contextlib.contextmanager
    def started(self) -> Iterator[Session]:
        """A running driver; all its processes are gone afterwards."""
        command = [sys.executable, "-m", "balancer", "run", self.config, "--out", str(self.out)]
        command += [part for override in self.overrides for part in ("--set", override)]
        ray_folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets want a short path
        environment = os.environ | {"RAY_TMPDIR": ray_folder}
        with open(self.out.parent / "driver.log", "ab") as log:
            driver = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        session = Session(driver)
        try:
            yield session
        finally:
            session.end()
            shutil.rmtree(ray_folder, ignore_errors=True)

    def fragments(self) -> int:
        folder = self.out / LOG_DIR
        return len(list(folder.glob("*.arrow"))) if folder.is_dir() else 0

    def note_rows(self) -> None:
        with contextlib.suppress(BalancerError):  # killed before there was a run
            self.seen.update(read_log(open_storage(self.out, create=False)).table["id"].to_pylist())

    def accepted(self) -> list[str]:
        table = read_log(open_storage(self.out, create=False)).table
        rows = table.select(["id", "source", "status"]).to_pylist()
        return sorted(
            row["id"] for row in rows if (row["source"], row["status"]) == ("synthetic", "accepted")
        )


@dataclass(slots=True)
class Chaos:
    kills: int
    driver_share: float
    pause: tuple[float, float]
    chance: random.Random
    struck: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0
    stalled: int = 0
    rows: int = 0
    lost: int = 0
    unequal: int = 0
    problems: list[Problem] = field(default_factory=list)

    def disturb(self, trial: Trial) -> None:
        """Start the run until it is done, and kill processes while it works."""
        while True:
            before = trial.fragments()
            with trial.started() as session:
                self.starts += 1
                self._kill_while_it_works(trial, session, before)
                code = session.driver.wait()
            trial.note_rows()
            if code in FINISHED:
                return
            if code == STALLED:  # it paused after many kills in a row, and resumes on the next start
                self.stalled += 1
            elif code != -signal.SIGKILL:
                raise click.ClickException(f"a driver ended with exit code {code}")

    def _kill_while_it_works(self, trial: Trial, session: Session, before: int) -> None:
        give_up = time.monotonic() + START_LIMIT_S
        while session.driver.poll() is None and trial.fragments() <= before:
            if time.monotonic() > give_up:
                raise click.ClickException("a driver does not begin to work")
            time.sleep(LOOK_S)
        while sum(self.struck.values()) < self.kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.driver.wait(self.chance.uniform(*self.pause))
            if session.driver.poll() is not None or self._strike(session):
                return

    def _strike(self, session: Session) -> bool:
        """Kill one process; returns whether it was the driver."""
        if self.chance.random() < self.driver_share:
            session.driver.kill()
            was_working = session.driver.wait() == -signal.SIGKILL
            self.struck["Driver"] += was_working
            self._tell(session.driver.pid, "Driver")
            return True
        actors = session.actors()
        if actors:
            pids = sorted(actors)
            [victim] = self.chance.choices(pids, [WEIGHTS[actors[pid]] for pid in pids])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.struck[actors[victim]] += 1
                self._tell(victim, actors[victim])
        return False

    def _tell(self, pid: int, kind: str) -> None:
        click.echo(f"{sum(self.struck.values()):4} {kind} {pid}", err=True)

    def judge(self, trial: Trial, expected: list[str]) -> None:
        self.runs += 1
        storage = open_storage(trial.out, create=False)
        findings = check_run(storage)
        ids = set(read_log(storage).table["id"].to_pylist())
        self.rows += findings.rows
        self.lost += len(trial.seen - ids)
        self.unequal += len(set(expected) ^ set(trial.accepted()))
        self.problems += findings.problems
        click.echo(f"run {self.runs}: {findings.rows} rows, {len(findings.problems)} problems", err=True)

    @property
    def is_sound(self) -> bool:
        return not (self.lost or self.unequal or self.problems)

    def figures(self) -> dict[str, Any]:
        rules = Counter(problem.rule for problem in self.problems)
        duplicate, dangling = (sum(rules[rule] for rule in named) for named in (DUPLICATE, DANGLING))
        return {
            "kills": sum(self.struck.values()),
            "kills_by_kind": dict(sorted(self.struck.items())),
            "runs": self.runs,
            "driver_starts": self.starts,
            "stopped_as_stalled": self.stalled,
            "rows": self.rows,
            "lost": self.lost,
            "duplicate": duplicate,
            "dangling": dangling,
            "other_problems": len(self.problems) - duplicate - dangling,
            "accepted_ids_that_differ": self.unequal,
        }


# ---- processes, by what Linux says of them ---------------------------------------------------------


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    main()
