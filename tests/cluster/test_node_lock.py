from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from actors.models.node_lock import one_at_a_time
from balancer.storage.cache import private_folder

HOLD = """
import sys, time
from actors.models.node_lock import one_at_a_time
with one_at_a_time(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    print("ending", flush=True)
"""
LONG_S = 60


@pytest.fixture
def hold(project, tmp_path, monkeypatch):
    """Another process that holds the lock."""
    monkeypatch.setenv("BALANCER_CACHE", str(tmp_path / "cache"))
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


def test_a_second_process_waits_for_the_first_and_says_so(hold, caplog):
    holder = hold("load", 0.5)
    with one_at_a_time("load"):
        assert holder.stdout.readline() == "ending\n"
    assert caplog.messages == ["waiting for another process of this user to load its model"]


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


def test_nothing_in_the_shared_temporary_folder_holds_a_lock(hold, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.setattr("tempfile.tempdir", None)
    (shared / f"balancer-{os.getuid()}-load.lock").touch(mode=0o000)
    hold("load", LONG_S)
    assert [path.name for path in shared.iterdir()] == [f"balancer-{os.getuid()}-load.lock"]
    monkeypatch.setattr("tempfile.tempdir", None)


def test_where_there_can_be_no_lock_the_work_goes_on_and_says_so(hold, tmp_path, caplog):
    victim = tmp_path / "precious"
    victim.write_text("keep")
    locks = private_folder("locks")
    (locks / f"{socket.gethostname()}-load.lock").symlink_to(victim)
    with one_at_a_time("load"):
        pass
    assert victim.read_text() == "keep"
    (locks / f"{socket.gethostname()}-load.lock").unlink()
    locks.chmod(0o777)
    with one_at_a_time("load"):
        pass
    assert [message.split(":")[0] for message in caplog.messages] == [
        "without a lock several processes may load models at once"
    ] * 2
