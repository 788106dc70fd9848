"""The main job submitted to a cluster of two nodes through Ray's job API, as the README shows it."""

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
from balancer.sample import write_dataset


@pytest.fixture(scope="module")
def cluster():
    """Addresses of a two-node cluster, and the environment its clients need."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("two_node_cluster.py")
    process = subprocess.Popen(
        [sys.executable, script, str(port)],
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


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    root = tmp_path_factory.mktemp("job-dataset") / "sample"
    write_dataset(root, seed=0)
    return ["--set", f"dataset.path={root / 'train'}", "--set", "target.per_class=32"]


def accepted_ids(out):
    table = open_manifest(out).to_table(columns=["id"], filter="source = 'synthetic'")
    return sorted(table["id"].to_pylist())


def test_a_submitted_job_accepts_what_a_local_run_accepts(cluster, overrides, tmp_path, project):
    addresses, environment = cluster
    submitted, local = tmp_path / "submitted", tmp_path / "local"
    arguments = ["-m", "balancer", "run", "configs/demo.yaml", *overrides, "--limit", "24", "--out"]
    submit = ["ray", "job", "submit", "--address", addresses["dashboard"], "--working-dir", "."]
    ray = [sys.executable, "-m", "ray.scripts.scripts", *submit[1:]]
    job = subprocess.run(
        [*ray, "--", sys.executable, *arguments, str(submitted)],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    here = subprocess.run(
        [sys.executable, *arguments, str(local)], cwd=project, capture_output=True, text=True, check=False
    )
    assert here.returncode == 0, here.stderr
    assert accepted_ids(submitted) == accepted_ids(local)
    for name in open_manifest(submitted).to_table(columns=["file_name"])["file_name"].to_pylist():
        assert (submitted / name).is_file(), name


def test_a_driver_outside_the_cluster_joins_it_by_address(cluster, overrides, tmp_path, project):
    addresses, environment = cluster
    out = tmp_path / "joined"
    command = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", *overrides, "--limit", "8"]
    joined = subprocess.run(
        [*command, "--out", str(out), "--address", addresses["address"]],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    assert len(accepted_ids(out)) == 8
