"""An evaluation from a run to its outcome, with small networks that are really trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from actors.evaluation.evaluate import evaluate
from balancer.cli.runs.evaluate import _config as evaluation_config
from balancer.config.schema import Config
from balancer.errors import ManifestError, StorageError
from balancer.evaluation.arms import REAL_ALONE, Job
from balancer.evaluation.files import (
    OUTCOME_FILE,
    RULE_FILE,
    read_outcome,
    read_result,
    result_path,
    write_outcome,
)
from balancer.evaluation.staleness import staleness
from balancer.manifest.query.rows import open_rows
from balancer.manifest.runfile import read_run
from balancer.report import render_report
from balancer.storage import open_storage
from tests.evaluation.here import CLASSES, ESTIMATE, Made, Trainers, make_run, settings
from tests.evaluation.here import outcome as an_outcome
from tests.manifest_samples import CONFIG

MADE = Made(train=9, validation=4, test=12, accepted=12, clear={"real": 0.35, "accepted": 0.8})
SETTINGS = {"steps": 12, "seeds": 5, "image_size": 16, "batch_size": 16, "real_shares": [0.3, 0.6]}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run, its outcome, and what was trained."""
    run = make_run(tmp_path_factory.mktemp("evaluated") / "run", MADE)
    storage = open_storage(run, create=False)
    found = []
    trainers = Trainers(before=lambda job: found or found.append(storage.list("evaluation")))
    outcome = evaluate(run, settings(**SETTINGS), trainers=trainers)
    return run, outcome, trainers, found[0]


def results(run, outcome, arm):
    """Whether each seed of an arm is right on each test image, from the files alone: (seeds, images)."""
    folder = run / "evaluation" / outcome["fingerprint"][:16]
    labels = [
        CLASSES.index(each["class"]) for each in json.loads((folder / "images.json").read_text())["test"]
    ]
    files = sorted(folder.glob(f"results/test-{arm}-*.json"))
    predicted = [json.loads(file.read_text())["predicted"] for file in files if f"-{arm}-" in file.name]
    return np.array(predicted) == np.array(labels), np.array(labels)


def test_the_outcome_keeps_its_contract(evaluated):
    _, outcome, _, _ = evaluated
    assert outcome["decision"] in ("add", "do_not_add", "cannot_tell")
    assert {"real", "real_balanced", "real_augmented", "real_logit_adjusted", "accepted"} <= outcome[
        "arms"
    ].keys()
    assert all(each.keys() == {"mean", "low", "high"} for each in outcome["arms"].values())
    assert outcome["classes"].keys() == set(CLASSES)
    assert {"decision", "difference", "low", "high", "test_images"} <= outcome["classes"]["burnt"].keys()
    assert outcome["recommended"].keys() == {"real_share", "classes"}
    assert outcome["recommended"]["real_share"] in SETTINGS["real_shares"]
    assert (outcome["seeds"], outcome["margin"], outcome["metric"]) == (5, 0.02, "balanced_accuracy")


def test_an_outcome_is_of_the_images_that_the_run_has(evaluated):
    run, _, _, _ = evaluated
    storage = open_storage(run, create=False)
    assert staleness(read_outcome(storage), open_rows(storage)) == ""


def test_the_rule_is_written_before_anything_is_trained(evaluated):
    run, outcome, _, before = evaluated
    assert RULE_FILE in before
    assert not [path for path in before if "/results/" in path]
    rule = json.loads((run / RULE_FILE).read_text())
    assert rule["fingerprint"] == outcome["fingerprint"]
    assert "sign-flip" in rule["rule"]
    assert rule["settings"]["margin"] == 0.02


def test_the_intervals_are_those_that_scipy_finds_in_the_kept_results(evaluated):
    run, outcome, _, _ = evaluated
    (ours, labels), (others, _) = (
        results(run, outcome, arm) for arm in ("accepted", outcome["baseline"])
    )  # fmt: skip
    difference = ours.astype(float) - others
    places = [np.flatnonzero(labels == label) for label in range(2)]

    def statistic(seeds, *images):
        return np.mean([difference[np.ix_(seeds, of_class)].mean() for of_class in images])

    found = stats.bootstrap(
        [np.arange(5), *places], statistic, vectorized=False, n_resamples=3000, rng=np.random.default_rng(3)
    ).confidence_interval  # fmt: skip
    mean = statistic(np.arange(5), *places)
    least = 0.5 * (1 - 0.05 ** (1 / 12))  # no narrower than 12 images of a class allow
    kept = outcome["difference"]
    assert kept["mean"] == pytest.approx(mean)
    assert kept["low"] == pytest.approx(min(found.low, mean - least), abs=0.02)
    assert kept["high"] == pytest.approx(max(found.high, mean + least), abs=0.02)


def test_no_choice_sees_a_test_image_and_no_training_a_held_out_one(evaluated):
    _, _, trainers, _ = evaluated
    assert {len(held_out) for job, _, held_out in trainers.jobs if job.stage == "tune"} == {8}
    assert {len(held_out) for job, _, held_out in trainers.jobs if job.stage == "test"} == {24}
    seeds = {
        stage: {job.seed for job, _, _ in trainers.jobs if job.stage == stage} for stage in ("tune", "test")
    }
    assert not seeds["tune"] & seeds["test"]
    pixels = {"trained": set(), "tested": set()}
    for _, training, held_out in trainers.jobs:
        pixels["trained"] |= {image.tobytes() for image in training}
        pixels["tested"] |= {image.tobytes() for image in held_out}
    assert not pixels["trained"] & pixels["tested"]


def test_every_arm_takes_the_same_steps_and_says_what_it_showed(evaluated):
    _, outcome, _, _ = evaluated
    for shown in outcome["exposures"].values():
        for kinds in shown.values():
            assert kinds["real"] > 0
    real = sum(each["real"] * 9 for each in outcome["exposures"]["real"].values())
    both = sum(
        each["real"] * 9 + each["generated"] * 12 for each in outcome["exposures"]["accepted"].values()
    )
    assert real == pytest.approx(both) == pytest.approx(12 * 16)


def test_an_evaluation_that_was_stopped_goes_on_and_ends_the_same(evaluated, tmp_path):
    _, outcome, trainers, _ = evaluated
    run = make_run(tmp_path / "run", MADE)

    def stop(job):
        if len(first.jobs) == 40:
            raise Killed

    first, second = Trainers(before=stop), Trainers()
    with pytest.raises(Killed):
        evaluate(run, settings(**SETTINGS), trainers=first)
    assert read_outcome(open_storage(run, create=False)) is None
    assert evaluate(run, settings(**SETTINGS), trainers=second) == outcome
    assert len(first.jobs) + len(second.jobs) == len(trainers.jobs)


def test_kill_9_and_the_same_command_give_the_numbers_of_an_undisturbed_evaluation(evaluated, tmp_path):
    """On Ray, by the command line."""
    _, outcome, _, _ = evaluated
    run = make_run(tmp_path / "run", MADE)
    given = [word for name, value in SETTINGS.items() for word in ("--set", f"evaluation.{name}={value}")]
    command = [sys.executable, "-m", "balancer", "evaluate", str(run), "--json", *given]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as first:
        while first.poll() is None and len(list(run.glob("evaluation/*/results/*.json"))) < 8:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (run / OUTCOME_FILE).exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == {name: outcome[name] for name in printed}
    assert json.loads((run / OUTCOME_FILE).read_text()) == outcome


def test_experiments_on_the_same_images_are_counted_and_keep_their_rules(tmp_path):
    run = make_run(tmp_path / "run", MADE)
    few = SETTINGS | {"steps": 10}

    def counts(**changes):
        outcome = evaluate(run, settings(**few | changes), trainers=Trainers())
        folder = run / "evaluation" / outcome["fingerprint"][:16]
        assert json.loads((folder / "rule.json").read_text())["fingerprint"] == outcome["fingerprint"]
        assert json.loads((folder / "outcome.json").read_text()) == outcome
        return [note for note in outcome["notes"] if "experiments with different settings" in note]

    assert counts() == []
    [note] = counts(margin=0.05)
    assert note.startswith("2 experiments with different settings have ended on these images, of which ")
    assert len(counts(margin=0.05)) == 1
    [note] = counts(margin=0.1)
    assert note.startswith("3 experiments ")


def test_an_evaluation_of_noise_says_so(tmp_path):
    simulated = Config.model_validate(CONFIG | {"actors": CONFIG["actors"] | {"kind": "simulated"}})
    run = make_run(tmp_path / "run", MADE, config=simulated)
    outcome = evaluate(run, settings(**SETTINGS | {"steps": 10}), trainers=Trainers())
    assert any("were simulated: its generated images are noise" in note for note in outcome["notes"])


def test_a_damaged_outcome_is_told(tmp_path):
    storage = open_storage(tmp_path, create=True)
    assert read_outcome(storage) is None
    for text in ("{", '{"decision": "maybe"}'):
        storage.replace(OUTCOME_FILE, text.encode())
        with pytest.raises(ManifestError, match=r"outcome\.json is damaged"):
            read_outcome(storage)


@pytest.mark.parametrize("problem", ["another training", "2 predictions of 2 classes"])
def test_a_result_is_read_only_if_this_training_can_have_written_it(tmp_path, problem):
    storage = open_storage(tmp_path, create=True)
    job, other = (Job("test", REAL_ALONE, 0.01, seed) for seed in (0, 1))
    written = other if problem == "another training" else job
    document = {"job": written.as_dict(), "predicted": [0, 1] if written is other else [0, 99]}
    storage.create(result_path("f" * 64, job), json.dumps(document).encode())
    with pytest.raises(ManifestError, match=problem):
        read_result(storage, "f" * 64, job, 2, 2)


@pytest.mark.parametrize("place", ["evaluation/outcome.json", "evaluation/ffffffffffffffff/results"])
def test_no_pipe_or_link_of_a_run_is_read_as_a_result(tmp_path, place):
    storage, job = open_storage(tmp_path / "run", create=True), Job("test", REAL_ALONE, 0.01, 0)
    path = tmp_path / "run" / place
    path.parent.mkdir(parents=True)
    if path.suffix:
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path)
        (tmp_path / f"{job.name}.json").write_text(json.dumps({"job": job.as_dict(), "predicted": [0]}))
    with pytest.raises(StorageError, match=r"regular file|symbolic link"):
        read_outcome(storage) if path.suffix else read_result(storage, "f" * 64, job, 1, 2)


def test_results_from_other_weights_of_the_same_name_are_not_gone_on_with(tmp_path):
    run = make_run(tmp_path / "run", Made(train=2, validation=2, test=6, accepted=2))
    weights = tmp_path / "start.safetensors"
    config = settings(depth="full", weights=str(weights), min_test_images=5)

    def killed(job):
        raise Killed

    rules = []
    for content in (b"one", b"other"):
        weights.write_bytes(content)
        with pytest.raises(Killed):
            evaluate(run, config, trainers=Trainers(before=killed))
        rules.append(json.loads((run / RULE_FILE).read_text()))
    assert rules[0]["fingerprint"] != rules[1]["fingerprint"]


@pytest.mark.parametrize(
    "change",
    [
        {"arms": {}},
        {"arms": {"real": ESTIMATE | {"low": 0.9}}},
        {"classes": {"basic": an_outcome()["classes"]["basic"] | {"difference": 1e300}}},
        {"classes": {"basic": an_outcome()["classes"]["basic"] | {"needed": -1}}},
        {"recommended": {"real_share": 0, "classes": []}},
        {"margin": -1e308},
        {"seeds": 10**400},
        {"notes": ["line"] * 1000},
    ],
)
def test_an_outcome_that_no_evaluation_writes_is_told(tmp_path, change):
    run = make_run(tmp_path / "run", Made(train=2, validation=0, test=0, accepted=2))
    write_outcome(open_storage(run, create=False), an_outcome() | change)
    assert "outcome.json is damaged" in render_report(run)


def test_a_run_does_not_say_which_cluster_its_evaluation_may_join(tmp_path):
    config = Config.model_validate(CONFIG | {"actors": {"allow_open_cluster": True}})
    run = make_run(tmp_path / "run", Made(train=2, validation=0, test=0, accepted=2), config=config)
    info = read_run(open_storage(run, create=False))
    assert info.config_as(Config).actors.allow_open_cluster
    assert not evaluation_config(info, None, [], None).actors.allow_open_cluster
    own = tmp_path / "own.yaml"
    own.write_text(
        "classes: {any: {prompts: [any]}}\ntarget: {per_class: 1}\nactors: {allow_open_cluster: true}\n"
    )
    assert evaluation_config(info, str(own), [], None).actors.allow_open_cluster
