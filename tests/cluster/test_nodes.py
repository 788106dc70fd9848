"""A run on a cluster whose nodes come and go (`node_faults.py`, in a process of its own, on real Ray)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.run import run
from balancer import open_manifest
from tests.node_faults import config
from tests.resident import actors_here

ROOM_BYTES = 1_500_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("nodes")
    (root / "cat").mkdir()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(root / "cat" / "0.png")
    return root


@pytest.fixture(scope="module")
def play(dataset, tmp_path_factory, project):
    def scenario(name, **environment):
        out = tmp_path_factory.mktemp(name) / "run"
        command = [sys.executable, "-m", "tests.node_faults", name, str(dataset), str(out)]
        told = subprocess.run(
            command, cwd=project, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return json.loads(out.with_name("run.json").read_text())

    return scenario


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with actors_here():
        run(config(str(dataset)), out)
    return sorted(open_manifest(out).to_table(["id"], "source = 'synthetic'")["id"].to_pylist())


def test_a_node_that_is_lost_counts_once_and_its_actors_go_on_where_another_node_comes(play, undisturbed):
    told = play("lost_and_added")
    assert told["acted"]
    assert told["restarts"]["generator"] == 1  # there were two of them
    assert told["accepted"] == undisturbed


def test_a_node_that_is_drained_gets_no_more_work_and_its_end_is_no_failure(play, undisturbed):
    told = play("drained")
    assert told["node_of_generators"]
    assert not told["takes_work_while_draining"]
    assert told["restarts"]["generator"] == 0
    assert told["accepted"] == undisturbed


def test_pixels_that_went_with_their_node_are_no_fault_of_the_actor_that_was_to_see_them(play):
    told = play("object_lost")
    assert told == {"is_lost_object": True, "looker_is_well": True, "restarts": 0}


@pytest.mark.soak
def test_an_actor_ended_by_the_memory_monitor_is_told_as_that(play):
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    threshold = (memory["MemTotal"] - memory["MemAvailable"] + ROOM_BYTES) / memory["MemTotal"]
    told = play("memory_used_up", RAY_memory_usage_threshold=f"{threshold:.3f}")
    assert "memory" in told["message"]
    assert "OutOfMemoryError" in told["message"]
