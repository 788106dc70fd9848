"""Calibration and pre-flight by the command line, on the embedded verifier; no Ray, no generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import balancer
from actors.run import describe_models
from balancer.cli import main
from balancer.config.load import load_config
from balancer.dataset.audit import audit_dataset, find_dataset, match_classes
from balancer.dataset.sample import LIGHTINGS, render
from balancer.errors import UsageError
from balancer.planning.plan import make_plan
from balancer.runs.resume import check_unchanged, describe_run

FRESH_SEEDS = 2**45
"""Renders from here on were neither trained, calibrated nor measured on."""


@pytest.fixture
def demo(project, tmp_path) -> Path:
    """A copy of the demo config."""
    path = tmp_path / "demo.yaml"
    path.write_text((project / "configs/demo.yaml").read_text())
    return path


@pytest.fixture(scope="module")
def calibrated_demo(project, tmp_path_factory) -> Path:
    """A copy of the demo config, with the calibration that was made for it."""
    path = tmp_path_factory.mktemp("calibrated") / "demo.yaml"
    path.write_text((project / "configs/demo.yaml").read_text())
    result = invoke("calibrate", path)
    assert result.exit_code == 0, result.output
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def setting(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


# ---- calibrate ---------------------------------------------------------------------------------


def test_calibrate_writes_beside_the_config_and_says_what_to_put_into_it(calibrated_demo):
    result = invoke("calibrate", calibrated_demo)
    path = calibrated_demo.with_name("demo.calibration.json")
    assert result.stderr == f"written; put into the config: verification.calibration: {path}\n"
    document = json.loads(path.read_text())
    assert document["verifier"]["model"] == "embedded"
    assert [found["folds"] for found in document["properties"].values()] == [5, 5, 5]
    assert document["properties"]["class"]["examples"]["combined"] == 20
    assert all(
        min(found["auc"].values()) > 0.95 and sum(map(sum, found["confusion"])) in (46, 176)
        for found in document["properties"].values()
    )


def test_calibrate_makes_the_same_file_again(calibrated_demo, tmp_path):
    before = calibrated_demo.with_name("demo.calibration.json").read_bytes()
    invoke("calibrate", calibrated_demo, "--out", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == before


def test_calibrate_prints_what_it_writes_as_json(demo, tmp_path):
    out = tmp_path / "elsewhere" / "c.json"
    result = invoke("calibrate", demo, "--json", "--out", out)
    assert json.loads(result.stdout) == json.loads(out.read_text())


def test_a_property_with_too_few_images_keeps_its_probabilities_and_is_named(demo, tmp_path):
    result = invoke("calibrate", demo, "--json", *setting(verification__min_examples=20))
    found = json.loads(result.stdout)["properties"]
    assert (found["burn_level"]["temperature"], found["burn_level"]["folds"]) == (1.0, 0)
    assert found["class"]["folds"] == 5
    assert "warning: burn_level keeps its probabilities (temperature 1): it needs two values" in result.stderr


NONSENSE = [
    part
    for labels in ("classes.basic.labels=[a wug]", "classes.burnt.labels=[a blicket]")
    for part in ("--set", labels)
]
"""Words that the verifier does not know."""


def test_words_are_shown_beside_words_and_examples(demo):
    result = invoke("calibrate", demo, *NONSENSE)
    lines = [line.split() for line in result.stdout.splitlines()]
    [figures] = [line for line in lines if line[:3] == ["class", "basic", "30"]]
    assert [float(auc) for auc in figures[3:]] == [pytest.approx(0.5, abs=0.5), pytest.approx(1.0, abs=0.01)]
    assert any(line[0] == "class" and line[-3:] == ["words", "+", "examples"] for line in lines if line)
    assert any(line[0] == "lighting" and line[-1] == "words" for line in lines if line)
    heads = json.loads(demo.with_name("demo.calibration.json").read_text())["heads"]
    assert {name: head["taken"] for name, head in heads.items()} == {
        "class": True,
        "lighting": False,
        "burn_level": False,
    }
    assert all(head["out_of_fold"] for head in heads.values())


def test_without_heads_words_are_shown_alone(demo):
    result = invoke("calibrate", demo, *setting(verification__heads="never"))
    assert "words + examples" not in result.stdout
    assert "no head for class: verification.heads is never" in result.stderr


def test_a_plan_says_what_judges_and_what_always_would_refuse(demo):
    result = invoke("plan", demo)
    line = "heads: class, lighting, burn_level by words alone (the words are right: log loss 0.00)"
    assert line in " ".join(result.stdout.split())
    always = setting(verification__heads="always", verification__min_examples=40)
    result = invoke("plan", demo, *always, *setting(verification__unjudged="[class, lighting, burn_level]"))
    assert "warning: `run` would stop: verification.heads is always" in result.stderr


def test_simulated_actors_cannot_be_calibrated(demo):
    result = invoke("calibrate", demo, *setting(actors__kind="simulated"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "simulated" in result.stderr


# ---- a run with a calibration ------------------------------------------------------------------


def use(config: Path, *overrides: str):
    path = config.with_name("demo.calibration.json")
    return load_config(config, [f"verification.calibration={path}", *overrides])


def test_what_was_calibrated_is_recorded_and_compared_when_a_run_goes_on(calibrated_demo, tmp_path):
    plain, config = load_config(calibrated_demo), use(calibrated_demo)
    assert describe_models(plain)["verifier"]["calibration"] is None
    models = describe_models(config)
    info = describe_run(config, make_plan(config, match_classes(audit_dataset(config), config)), models)
    assert len(info.models["verifier"]["calibration"]) == 64
    check_unchanged(config, models, info, allowed=False)
    with pytest.raises(UsageError, match="changed: calibration of the verifier"):
        check_unchanged(plain, describe_models(plain), info, allowed=False)
    check_unchanged(plain, describe_models(plain), info, allowed=True)


def test_another_file_with_the_same_temperatures_is_the_same_calibration(calibrated_demo, tmp_path):
    copy = tmp_path / "copy.json"
    copy.write_bytes(calibrated_demo.with_name("demo.calibration.json").read_bytes())
    moved = load_config(calibrated_demo, [f"verification.calibration={copy}"])
    assert describe_models(moved) == describe_models(use(calibrated_demo))
    assert moved.fingerprint() == use(calibrated_demo).fingerprint()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes.basic.labels": "[a plain pizza]"}, "other wordings"),
        ({"facets.lighting.classes": "[basic]"}, ""),
        ({"classes.calzone": "{prompts: [a calzone]}"}, "other values of class"),
    ],
)
def test_a_calibration_holds_for_its_wordings_and_values_alone(calibrated_demo, changes, problem):
    config = use(calibrated_demo, *(f"{key}={value}" for key, value in changes.items()))
    if not problem:
        describe_models(config)
        return
    with pytest.raises(UsageError, match=problem) as caught:
        describe_models(config)
    assert caught.value.exit_code == 2


def test_run_refuses_a_file_that_is_no_calibration_before_it_starts_anything(demo, tmp_path):
    (tmp_path / "c.json").write_text("{}")
    settings = setting(verification__calibration=tmp_path / "c.json")
    result = invoke("run", demo, "--out", tmp_path / "run", *settings)
    assert result.exit_code == 2
    assert "is not a calibration" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_verifier_of_a_run_has_the_temperatures_of_its_calibration(calibrated_demo):
    from actors.specs import verifier_spec

    document = json.loads(calibrated_demo.with_name("demo.calibration.json").read_text())
    spec = verifier_spec(use(calibrated_demo))
    wanted = {name: found["temperature"] for name, found in document["properties"].items()}
    assert spec.temperatures == wanted
    assert wanted["class"] != 1.0
    spec.load()


# ---- the pre-flight of a plan ------------------------------------------------------------------


def test_plan_ends_with_what_the_verifier_can_tell_apart(demo):
    result = invoke("plan", demo)
    assert result.exit_code == 0
    table = result.stdout.split("pre-flight: what the verifier tells apart on 176 real images\n")[1]
    assert table.splitlines()[0].split() == ["property", "value", "examples", "AUC", "verdict"]
    assert table.count("  proven\n") == 13


def test_plan_as_json_has_the_preflight(demo):
    found = json.loads(invoke("plan", demo, "--json").stdout)["preflight"]
    assert (found["ready"], found["images"], len(found["values"])) == (True, 176, 13)


def test_plan_lists_what_is_not_proven_and_does_not_fail(demo):
    result = invoke("plan", demo, *setting(dataset__holdout="null", verification__unjudged="[class=mixed]"))
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any("segment 0 - not proven: no labelled images, 5 needed" in line for line in lines)
    assert any("mixed 0 - not proven, allowed by verification.unjudged" in line for line in lines)
    assert "`run` would stop: 3 values not proven and not in verification.unjudged" in result.stderr


def test_plan_credits_measured_facet_values_as_it_credits_known_ones(demo, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(find_dataset("sample"), unlabelled)
    (unlabelled / "metadata.parquet").unlink()

    def quotas(count, path="sample", *more):
        changes = setting(dataset__path=path, target__count_real_facets=count)
        result = invoke("plan", demo, "--json", *changes, *more)
        assert result.exit_code == 0, result.output
        return [tuple(cell.values()) for cell in json.loads(result.stdout)["cells"]], result.stderr

    known, _ = quotas("known")
    assert known != quotas("no")[0]
    assert quotas("measured", unlabelled)[0] == known
    without, told = quotas("measured", unlabelled, "--no-preflight")
    assert without == quotas("no")[0]
    assert "target.count_real_facets: only values in the metadata are counted here" in told
    config = load_config(
        demo, [f"dataset.path={unlabelled}", "dataset.holdout=null", "target.count_real_facets=measured"]
    )
    planned = balancer.plan(config).in_turn()
    assert [tuple(cell.as_dict(config.facets).values()) for cell in planned] == known


def test_plan_without_a_preflight_loads_no_verifier(demo, monkeypatch):
    monkeypatch.setattr("actors.real_images.measure_here", None)
    assert json.loads(invoke("plan", demo, "--json", "--no-preflight").stdout)["preflight"] is None


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"actors__kind": "simulated"}, "no pre-flight: simulated actors judge nothing"),
        ({"verification__model": "no/such/folder"}, "no pre-flight: no/such/folder: no such folder"),
    ],
)
def test_plan_says_in_one_line_why_there_is_no_preflight(demo, overrides, reason):
    result = invoke("plan", demo, "--json", *setting(**overrides))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["preflight"] is None
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"verification__calibration": "none.json"}, "none.json: the calibration cannot be read"),
        ({"dataset__holdout": "/no/such/folder"}, "no such dataset folder: /no/such/folder"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--no-preflight"]])
def test_plan_refuses_what_a_run_would_refuse(demo, overrides, reason, options):
    result = invoke("plan", demo, *options, *setting(**overrides))
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr.splitlines()[0]


def test_plan_does_not_download_a_verifier(demo, monkeypatch):
    from actors.weights import resolve as weights

    monkeypatch.setattr(weights, "check", lambda *model: weights.Availability("hub", None, 1_700_000_000))
    result = invoke("plan", demo, "--json")
    assert "the verifier is not on this machine (1.7 GB to download)" in result.stderr


def test_a_run_with_a_verifier_whose_text_weights_are_shuffled_is_refused(demo, project, tmp_path, here):
    folder = tmp_path / "verifier"
    shutil.copytree(project / "balancer/embedded/verifier", folder)
    tensors = load_file(folder / "open_clip_model.safetensors")
    words = tensors["token_embedding.weight"]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    tensors["token_embedding.weight"] = words[order].contiguous()
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "run"
    result = invoke("run", demo, "--out", out, *setting(verification__model=folder, actors__generators=1))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "labelled images do not prove that the verifier can judge these" in result.stderr
    assert "class=" in result.stderr
    assert not (out / "run.json").exists()


# ---- reliability -------------------------------------------------------------------------------


def test_calibrated_probabilities_can_be_taken_at_their_word_on_fresh_renders(calibrated_demo):
    """A quick look; scripts/measure_calibration.py does it on 2,000 for every property."""
    import numpy as np

    from actors.specs import verifier_spec
    from balancer.cells import Cell
    from balancer.verification.calibration import calibration_error, reliability
    from balancer.verification.verdict import ImageFlags

    config = use(calibrated_demo)
    classes = [name for name in config.classes if name != "burnt"]
    asked = [(name, lighting) for name in classes for lighting in LIGHTINGS] * 6
    pictures = [render(*cell, None, FRESH_SEEDS + index) for index, cell in enumerate(asked)]
    cells = [Cell(name, (("lighting", lighting),)) for name, lighting in asked]
    verifier = verifier_spec(config).load()
    found = verifier.measure(np.stack(pictures), [ImageFlags()] * len(cells), cells)
    for name in ("class", "lighting"):
        values = list(config.properties()[name])
        probabilities = np.array([[*one.probabilities[name].values()] for one in found])
        labels = np.array([values.index(dict(cell.properties)[name]) for cell in cells])
        assert calibration_error(reliability(probabilities, labels)) < 0.03
