"""The main job on the embedded models: real Ray, a real pipeline, a real verifier, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import actors.run as job
from actors.run import Reporter, run
from balancer import open_manifest
from balancer.config.load import load_config
from balancer.dataset.sample import write_dataset
from balancer.errors import BalancerError
from balancer.manifest.log.view import read_log
from balancer.storage import open_storage
from tests.fault_proxy import CONFLICT, LATE, LOST, RESET, SLOW, STALL, UNAVAILABLE
from tests.resident import actors_here

START_LIMIT_S = 300
STORE_SEEDS = int(os.environ.get("BALANCER_STORE_SEEDS", "1"))
FAULT_RATE = float(os.environ.get("BALANCER_STORE_FAULTS", "0.05"))
"""How often the run in a bucket is made, each time with other faults, and how many requests meet with one."""

NEAR_THRESHOLD = 0.01
"""Batch shape moves the low bits of an image: verdicts this close to their threshold may turn."""


def balancer(*arguments, **options):
    command = [sys.executable, "-m", "balancer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def synthetic(out, **filters):
    return open_manifest(out).to_table(filter="source = 'synthetic'", **filters)


def accepted_ids(out):
    return sorted(synthetic(out, columns=["id"])["id"].to_pylist())


# ---- the reference case, once ----------------------------------------------------------------


def test_the_reference_case_ends_with_244_generated_and_56_real_images(reference_run):
    sources = Counter(open_manifest(reference_run).to_table(columns=["source"])["source"].to_pylist())
    assert sources == {"synthetic": 244, "real": 56}


def test_every_class_of_the_reference_case_has_50_images(reference_run):
    classes = Counter(open_manifest(reference_run).to_table(columns=["class"])["class"].to_pylist())
    names = ("basic", "burnt", "combined", "mixed", "progression", "segment")
    assert classes == dict.fromkeys(names, 50)


def test_lighting_and_burn_levels_of_the_reference_case_are_exact(reference_run):
    rows = synthetic(reference_run)
    assert set(Counter(rows["lighting"].to_pylist()).values()) == {61}
    burnt = Counter(level for level in rows["burn_level"].to_pylist() if level is not None)
    assert burnt == {"slightly_burnt": 10, "moderately_burnt": 8, "severely_burnt": 6}


def test_every_generated_image_of_the_reference_case_reached_its_threshold(reference_run):
    for row in synthetic(reference_run).to_pylist():
        asked = {name: score for name, score in row["scores"].items() if score is not None}
        assert min(asked.values()) == pytest.approx(row["score"], abs=1e-6)
        assert row["score"] >= row["threshold"], row["id"]
        assert row["threshold"] == (0.5 if row["fallback"] else 0.6)


def test_fsck_finds_nothing_in_the_reference_case(reference_run):
    result = balancer("fsck", reference_run)
    assert result.returncode == 0, result.stdout + result.stderr


def test_status_of_the_reference_case_is_complete(reference_run):
    status = json.loads(balancer("status", reference_run, "--json").stdout)
    counts = {name: status[name] for name in ("state", "wanted", "accepted", "short")}
    assert counts == {"state": "complete", "wanted": 244, "accepted": 244, "short": 0}
    assert status["success_rate"] == 1
    rejected = sum(status["rejected_by_reason"].values())
    assert status["candidates"] == 244 + rejected


def test_running_the_reference_case_again_changes_nothing(reference_run, project):
    before = sorted(path for path in reference_run.rglob("*"))
    result = balancer("run", "configs/demo.yaml", "--out", reference_run, cwd=project)
    assert result.returncode == 0
    assert "nothing left to do" in result.stderr
    assert sorted(path for path in reference_run.rglob("*")) == before


def test_the_reference_case_reports_its_criteria(reference_run):
    result = balancer("report", reference_run)
    assert result.returncode == 0, result.stderr
    assert "progression" in (reference_run / "report.html").read_text()


# ---- a small case, many times ----------------------------------------------------------------


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    """The sample dataset with one image left: 47 images of 32 cells are missing to 8 a class."""
    root = tmp_path_factory.mktemp("small") / "sample"
    write_dataset(root, seed=0)
    first, *others = sorted((root / "train").glob("*/*.png"))
    for path in others:
        path.unlink()
    assert first.parent.name == "basic"
    return root / "train"


@pytest.fixture(scope="session")
def small_overrides(small_dataset):
    # With one labelled image the share of challenge images is near the usual limit, on one CPU above it.
    challenge = "verification.max_challenge_accepted=0.05"
    return [f"dataset.path={small_dataset}", "target.per_class=8", challenge]


@pytest.fixture
def small_config(small_overrides, project, ray_session):
    def make(*overrides):
        everywhere = ("actors.device=cpu", "output.commit_seconds=0.1")
        return load_config(project / "configs/demo.yaml", [*small_overrides, *everywhere, *overrides])

    return make


@pytest.fixture(scope="session")
def small_reference(small_overrides, project, tmp_path_factory, ray_session):
    """The run of one generator, undisturbed."""
    out = tmp_path_factory.mktemp("small-reference") / "run"
    overrides = [*small_overrides, "actors.device=cpu", "actors.generators=1"]
    with actors_here():
        run(load_config(project / "configs/demo.yaml", overrides), out)
    return out


@pytest.mark.parametrize("batch_size", [4, 16])
def test_batch_size_turns_no_verdict_but_those_at_the_threshold(
    small_config, small_reference, tmp_path, batch_size
):
    with actors_here():
        run(small_config(f"generation.batch_size={batch_size}"), tmp_path / "run")
    one, other = verdicts(small_reference), verdicts(tmp_path / "run")
    turned = {name for name in one.keys() & other.keys() if one[name][0] != other[name][0]}
    assert all(abs(one[name][1]) <= NEAR_THRESHOLD for name in turned), turned
    settled_otherwise = set(accepted_ids(small_reference)) ^ set(accepted_ids(tmp_path / "run"))
    assert {name.rpartition("-")[0] for name in settled_otherwise} == {n.rpartition("-")[0] for n in turned}


def verdicts(out):
    """id -> (status, score above threshold) of every candidate."""
    rows = open_manifest(out).to_table(status="all", filter="source = 'synthetic'").to_pylist()
    return {row["id"]: (row["status"], row["score"] - row["threshold"]) for row in rows}


def test_killing_an_actor_changes_nothing_in_the_result(small_config, small_reference, tmp_path, monkeypatch):
    """Two generators, one of which is killed as the verifier is, accept what one accepts."""
    pools, killed = {}, []
    original = job.make_pools

    def remember(*told):
        made = original(*told)
        pools.update((pool.kind, pool) for pool in made)
        return made

    monkeypatch.setattr(job, "make_pools", remember)

    def kill(snapshot):
        for victim, candidates in (("verifier", 8), ("generator", 16)):
            if snapshot.candidates >= candidates and victim not in killed:
                killed.append(victim)
                os.kill(pools[victim].actors[0].description["pid"], signal.SIGKILL)

    run(small_config("actors.generators=2"), tmp_path / "run", reporter=Reporter(progress=kill))
    assert killed == ["verifier", "generator"]
    assert accepted_ids(tmp_path / "run") == accepted_ids(small_reference)


@pytest.mark.soak
def test_a_driver_killed_in_the_middle_goes_on_and_ends_with_the_same_images(
    small_config, small_overrides, small_reference, tmp_path, project
):
    """Killed as a process of its own; that the same command goes on is for test_faults."""
    out = tmp_path / "run"
    options = [part for override in small_overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--out", str(out), *options]
    driver = subprocess.Popen(command, cwd=project, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for_candidates(out, 16, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    part = accepted_ids(out)
    assert 0 < len(part) < len(accepted_ids(small_reference))
    with actors_here():
        assert run(small_config(), out).state == "complete"
    assert accepted_ids(out) == accepted_ids(small_reference)
    slots = synthetic(out)["slot"].to_pylist()
    assert len(slots) == len(set(slots)) == 47
    assert balancer("fsck", out).returncode == 0


def wait_for_candidates(out: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_LIMIT_S
    while candidates(out) < count:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < give_up, "the run makes no progress"
        time.sleep(0.1)


def candidates(out: Path) -> int:
    try:
        return read_log(open_storage(out, create=False)).table.num_rows
    except BalancerError:
        return 0  # not begun yet


def test_the_generated_images_are_marked_as_synthetic(small_reference):
    from balancer.images import is_marked_synthetic

    for name in synthetic(small_reference)["file_name"].to_pylist():
        assert is_marked_synthetic((small_reference / name).read_bytes()), name


# ---- the same in a bucket ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(STORE_SEEDS))
def test_a_run_in_a_bucket_whose_store_fails_again_and_again_ends_with_the_same_images(
    run_uri, small_config, small_reference, proxy, monkeypatch, seed
):
    monkeypatch.setenv("AWS_TIMEOUT", "3s")
    proxy.fail_at_random(FAULT_RATE, seed, UNAVAILABLE, CONFLICT, RESET, STALL, LOST, LATE, SLOW)
    for key in ("run.json", "log/00000000000000000001", "log/00000000000000000003", "images/"):
        proxy.fail(LOST, "PUT", key)  # whatever chance brings
    with actors_here():
        assert run(small_config(), run_uri, limit=16).state == "interrupted"
        assert len(accepted_ids(run_uri)) == 16
        assert run(small_config(), run_uri).state == "complete"
    assert accepted_ids(run_uri) == accepted_ids(small_reference)
    rows = open_manifest(run_uri).to_table(status="all").to_pylist()
    slots = [row["slot"] for row in rows if row["status"] == "accepted" and row["slot"] is not None]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(slots) == len(set(slots)) == 47
    named = {row["file_name"] for row in rows if row["file_name"] is not None}
    assert named <= set(open_storage(run_uri, create=False).list("images"))
    assert len(named) == 47 + 1  # and the real one
    checked = balancer("fsck", run_uri)
    assert (checked.returncode, checked.stdout.endswith("no problems\n")) == (0, True), checked.stdout
    assert proxy.faults()[LOST] >= 4
    print(f"{len(proxy.seen)} requests, {dict(proxy.faults())}")  # with -s, the figures
