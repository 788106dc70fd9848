from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from actors.node_lock import one_at_a_time

HOLD = """
import sys, time
from actors.node_lock import one_at_a_time
with one_at_a_time(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    print("ending", flush=True)
"""
LONG_S = 60


@pytest.fixture
def hold(project, tmp_path, monkeypatch):
    """Another process that holds the lock."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    started = []

    def start(what, seconds):
        command = [sys.executable, "-c", HOLD, what, str(seconds)]
        process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    monkeypatch.setattr("tempfile.tempdir", None)


def test_a_second_process_waits_for_the_first(hold):
    holder = hold("load", 0.5)
    with one_at_a_time("load"):
        assert holder.stdout.readline() == "ending\n"


def test_different_things_may_be_done_at_once(hold):
    holder = hold("load", LONG_S)
    with one_at_a_time("compile"):
        assert holder.poll() is None


def test_a_process_that_died_holds_nothing(hold):
    holder = hold("load", LONG_S)
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with one_at_a_time("load"):
        assert time.monotonic() - began < LONG_S


def test_a_link_in_its_place_is_not_followed(tmp_path, hold):
    victim = tmp_path / "precious"
    victim.write_text("keep")
    (tmp_path / f"balancer-{os.getuid()}-load.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), one_at_a_time("load"):
        pass
    assert victim.read_text() == "keep"
