"""The main job submitted to a cluster of two nodes through Ray's job API, as docs/cluster.md shows it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from balancer import open_manifest


@pytest.fixture(scope="module")
def cluster():
    """Addresses of a two-node cluster, and the environment its clients need."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        ports = [str(probe.getsockname()[1]) for probe in (one, other)]
    script = Path(__file__).parents[1].joinpath("two_node_cluster.py")
    process = subprocess.Popen(
        [sys.executable, script, *ports],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the cluster did not start"
        yield json.loads(line), environment
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def accepted(out):
    """slot -> id"""
    table = open_manifest(out).to_table(columns=["slot", "id"], filter="source = 'synthetic'")
    return {row["slot"]: row["id"] for row in table.to_pylist()}


def test_a_submitted_job_accepts_what_a_local_run_accepts(cluster, reference_run, tmp_path, project):
    addresses, environment = cluster
    out = tmp_path / "submitted"
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    submit += ["--address", addresses["dashboard"], "--working-dir", "."]
    run = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--out", str(out)]
    run += ["--set", "target.per_class=10"]  # the first slots of four classes
    job = subprocess.run(
        [*submit, "--", *run], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr
    local = accepted(reference_run)
    submitted = accepted(out)
    assert len(submitted) == 40
    assert submitted == {slot: local[slot] for slot in submitted}
    for name in open_manifest(out).to_table(columns=["file_name"])["file_name"].to_pylist():
        assert (out / name).is_file(), name


def test_a_driver_outside_the_cluster_joins_it_by_address(cluster, tmp_path, project):
    addresses, environment = cluster
    out = tmp_path / "joined"
    command = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--limit", "8"]
    command += ["--set", "actors.kind=simulated"]
    joined = subprocess.run(
        [*command, "--out", str(out), "--address", addresses["address"]],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert joined.returncode == 3, joined.stderr  # the limit leaves images to make
    assert len(accepted(out)) == 8
