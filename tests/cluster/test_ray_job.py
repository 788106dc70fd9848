"""The main job submitted to a cluster of two nodes by `balancer submit`, as docs/cluster.md shows it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balancer import open_manifest


@pytest.fixture(scope="module")
def cluster():
    """Addresses of a two-node cluster, and the environment its clients need."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # jobs call `python`
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


CLIENT = """
import json, sys
from click.testing import CliRunner
from balancer.cli import main

for line in sys.stdin:
    result = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([result.exit_code, result.stdout, result.stderr]), flush=True)
"""


@pytest.fixture(scope="module")
def submit(cluster, project, tmp_path_factory):
    """`balancer submit` in one process for all calls; returns exit code, output and what was said."""
    addresses, environment = cluster
    # Ray's own variables must not win over --address, and this one leads nowhere.
    environment = environment | {"RAY_ADDRESS": "http://127.0.0.1:9"}
    folder = tmp_path_factory.getbasetemp()
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT], cwd=project, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip

        def call(*words):
            options = ["--address", addresses["dashboard"], "--shared", str(folder)]
            process.stdin.write(json.dumps(["submit", *map(str, words), *options]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call
        process.stdin.close()


def test_a_submitted_job_accepts_what_a_local_run_accepts(cluster, submit, reference_run, tmp_path):
    _, environment = cluster
    out = tmp_path / "submitted"
    words = ["configs/demo.yaml", "--out", out, "--image-has-balancer", "--follow"]
    words += ["--set", "target.per_class=10"]  # the first slots of four classes
    code, shown, said = submit(*words)
    assert code == 0, shown + said
    assert "40 of 40 images accepted" in shown
    assert environment["RAY_AUTH_TOKEN"] not in shown + said
    local = accepted(reference_run)
    submitted = accepted(out)
    assert len(submitted) == 40
    assert submitted == {slot: local[slot] for slot in submitted}
    for name in open_manifest(out).to_table(columns=["file_name"])["file_name"].to_pylist():
        assert (out / name).is_file(), name
    code, shown, said = submit(*words)
    assert (code, shown.count("has finished this run")) == (0, 1), said
    assert submit("--out", out, "--status")[1].split()[-2:] == ["succeeded", "0"]


SIMULATED = ["configs/demo.yaml", "--image-has-balancer", "--set", "actors.kind=simulated"]
SLOW = ["--set", "planning.seconds_per_candidate=0.5"]


def test_a_job_is_submitted_once_stopped_and_goes_on(submit, tmp_path):
    out = tmp_path / "stopped"
    words = [*SIMULATED, "--out", out]
    code, shown, said = submit(*words, *SLOW)
    assert (code, shown.count(" submitted: ")) == (0, 1), said
    assert "is under way already" in submit(*words, *SLOW)[1]
    code, _, said = submit(*words, "--set", "seed=1")
    assert (code, said.count("is at work in")) == (2, 1), said
    wait_for(lambda: (out / "run.json").exists() and accepted(out))
    assert "was told to stop" in submit("--out", out, "--stop")[1]
    code, shown, said = submit("--out", out, "--logs", "--follow")
    assert code == 143, shown + said
    before = accepted(out)
    code, shown, said = submit(*words, "--limit", "8", "--follow")
    assert code == 3, shown + said  # the limit leaves images to make
    after = accepted(out)
    assert len(after) >= len(before) + 8
    assert before.items() <= after.items()
    jobs = submit("--out", out, "--status")[1].splitlines()[2:]
    assert [job.split()[1:] for job in jobs] == [["stopped", "-"], ["failed", "3"]]


def test_a_cluster_does_not_take_another_token(cluster, tmp_path, project):
    addresses, environment = cluster
    command = [sys.executable, "-m", "balancer", "submit", *SIMULATED, "--out", str(tmp_path / "r")]
    command += ["--shared", str(tmp_path), "--address", addresses["dashboard"]]
    refused = subprocess.run(
        command, cwd=project, env=environment | {"RAY_AUTH_TOKEN": "another"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert refused.returncode == 4
    assert "does not take this token" in refused.stderr


def wait_for(condition, limit_s=120):
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.5)


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
