"""Whole runs as a user starts them: real processes, real signals, a real disk that is full. Actors are
simulated, so that a run takes seconds; what is compared with them has its actors in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.loop.stopping import DRAIN_S
from actors.run import run as go_on
from balancer.config.load import load_config
from balancer.errors import BalancerError
from balancer.manifest.log.view import read_log
from balancer.manifest.maintenance.fsck import check_run
from balancer.storage import open_storage
from chaos import Session
from tests.resident import actors_here

PER_CLASS = 30
WAIT_S = 300
PACE_S = 0.05
LEFT_FOR_S = 5 + 10
"""Processes of Ray outlive their driver by no more than five seconds; the rest is for a loaded machine."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    (root / "dataset" / "cat").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(root / "dataset" / "cat" / "0.png")
    document = {
        "seed": 5,
        "dataset": {"path": str(root / "dataset")},
        "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
        "target": {"per_class": PER_CLASS},
        "generation": {"width": 64, "height": 64, "batch_size": 4},
        "actors": {"kind": "simulated", "generators": 2},
        "planning": {"acceptance": 0.6, "seconds_per_candidate": PACE_S},
        "output": {"commit_seconds": 0.1},
    }
    (root / "config.json").write_text(json.dumps(document))
    return root / "config.json"


class Run:
    """`balancer run` in a session of its own, as from a terminal."""

    def __init__(self, config: Path, out: Path, *overrides: str) -> None:
        self.out = out
        self.said = out.with_name(f"{out.name}-{time.monotonic_ns()}.txt")
        command = [sys.executable, "-m", "balancer", "run", str(config), "--out", str(out)]
        command += [part for override in overrides for part in ("--set", override)]
        with self.said.open("wb") as file:
            project = Path(__file__).parents[2]
            self.driver = subprocess.Popen(command, cwd=project, stderr=file, start_new_session=True)
        self.session = Session(self.driver)

    def rows(self) -> list[dict[str, Any]]:
        with suppress(BalancerError):
            return read_log(open_storage(self.out, create=False)).table.to_pylist()
        return []

    def accepted(self) -> list[str]:
        return accepted_in(self.rows())

    def wait_until(self, condition) -> None:
        give_up = time.monotonic() + WAIT_S
        while not condition():
            assert self.driver.poll() is None, f"the run ended: {self.said.read_text()}"
            assert time.monotonic() < give_up, self.said.read_text()
            time.sleep(0.05)

    def wait_until_it_says(self, text: str) -> None:
        self.wait_until(lambda: text in self.said.read_text())

    def end(self, timeout_s: float = WAIT_S) -> int:
        return self.driver.wait(timeout_s)


@pytest.fixture
def start(config):
    runs = []

    def begin(out, *overrides):
        runs.append(Run(config, out, *overrides))
        return runs[-1]

    yield begin
    for run in runs:
        run.session.end()


def accepted_in(rows):
    return sorted(row["id"] for row in rows if (row["source"], row["status"]) == ("synthetic", "accepted"))


@pytest.fixture(scope="module")
def finish(config, ray_session):
    """Go on with a run that nobody disturbs any more, with actors in this process; its rows."""

    def to_the_end(out):
        with actors_here():
            assert go_on(load_config(config), out).state == "short"  # some slots fail all of their attempts
        return read_log(open_storage(out, create=False)).table.to_pylist()

    return to_the_end


@pytest.fixture(scope="module")
def reference(finish, tmp_path_factory):
    """What a run that nobody disturbs accepts."""
    return accepted_in(finish(tmp_path_factory.mktemp("reference") / "run"))


def assert_sound(run, reference):
    assert check_run(open_storage(run.out, create=False)).problems == ()
    ids = Counter(row["id"] for row in run.rows())
    assert ids.most_common(1)[0][1] == 1
    assert run.accepted() == reference


# ---- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.soak),
    ],
)
def test_a_signal_to_the_whole_terminal_drains_commits_and_leaves_no_process(
    start, tmp_path, reference, finish, number, exit_code
):
    run = start(tmp_path / "run")
    run.wait_until(lambda: run.accepted())
    os.killpg(run.driver.pid, number)  # as Ctrl-C does: Ray's processes get it, too
    assert run.end() == exit_code
    assert "committed" in run.said.read_text()
    assert 0 < len(run.accepted()) < len(reference)
    run.session.wait_until_gone()
    finish(tmp_path / "run")
    assert_sound(run, reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_ray_starts_ends_the_run_with_a_line_and_leaves_no_process(start, tmp_path, number):
    run = start(tmp_path / "run")
    run.wait_until(lambda: "gcs_server" in run.session.titles())
    run.driver.send_signal(number)
    assert run.end(60) == 128 + number
    told = run.said.read_text()
    assert told.count("error: interrupted") == 1
    assert "Traceback" not in told
    run.session.wait_until_gone(LEFT_FOR_S)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_second_ctrl_c_does_not_wait_for_what_is_under_way(start, tmp_path):
    run = start(tmp_path / "run", "planning.seconds_per_candidate=1000")
    run.wait_until_it_says("images to make")
    os.killpg(run.driver.pid, signal.SIGINT)
    run.wait_until_it_says("once more to stop at once")
    os.killpg(run.driver.pid, signal.SIGINT)
    assert run.end(timeout_s=DRAIN_S / 2) == 130


def test_a_driver_that_was_killed_goes_on_where_it_was_though_no_progress_is_seen(
    start, tmp_path, config, reference
):
    run = start(tmp_path / "run")
    run.wait_until(lambda: run.accepted())
    run.driver.kill()
    run.session.wait_until_gone(LEFT_FOR_S)
    part = set(run.accepted())
    assert 0 < len(part) < len(reference)
    command = [sys.executable, "-m", "balancer", "run", str(config), "--out", str(tmp_path / "run")]
    with open("/dev/full", "wb") as full:
        again = subprocess.run(
            command, stderr=full, stdout=subprocess.PIPE, check=False, start_new_session=True
        )
    assert again.returncode == 3
    assert b"images accepted" in again.stdout
    assert part <= set(run.accepted())
    assert_sound(run, reference)


# ---- two drivers ---------------------------------------------------------------------------------


def test_of_two_drivers_on_one_run_the_first_is_fenced_and_no_row_is_there_twice(start, tmp_path, reference):
    first = start(tmp_path / "run", "planning.seconds_per_candidate=2")
    first.wait_until(lambda: first.accepted())
    second = start(tmp_path / "run")
    assert first.end() == 5
    assert "another driver took run" in first.said.read_text()
    assert second.end() == 3
    assert_sound(second, reference)


# ---- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, 256 kB of which are free until `ballast` is removed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system here")
    (folder / "ballast").write_bytes(bytes(768 * 1024))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_on_a_full_disk_waits_keeps_what_is_whole_and_goes_on_when_there_is_room(
    start, small_disk, config, tmp_path, reference
):
    out = small_disk / "run"
    run = start(out)
    run.wait_until_it_says("for space (output.disk_full_wait_s)")
    found = check_run(open_storage(out, create=False))
    assert found.problems == ()
    assert all(note.rule != "no unreferenced images" or whole(out / note.path) for note in found.notes)
    (small_disk / "ballast").unlink()
    run.wait_until_it_says("there is space again")
    assert run.end() == 3
    assert_sound(run, reference)


def whole(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
    return True


# ---- secrets ---------------------------------------------------------------------------------------


def test_nothing_of_the_secrets_around_a_run_is_in_it_nor_in_what_it_says_or_logs(start, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_madeupmadeupmadeupmadeup",
        "AWS_SECRET_ACCESS_KEY": "madeup/secret/of/a/store",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:  # Ray's sockets want a short path
        for name, value in {**secrets, "RAY_TMPDIR": folder}.items():
            monkeypatch.setenv(name, value)
        run = start(Path(folder) / "run")
        assert run.end() == 3, run.said.read_text()
        run.session.end()
        files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
        assert run.said in files
        assert any(path.name == "raylet.out" for path in files)
        data = {path: path.read_bytes() for path in files}
    assert [
        (path.name, name)
        for path, content in data.items()
        for name, secret in secrets.items()
        if secret.encode() in content
    ] == []
