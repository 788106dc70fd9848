"""Targets that follow an evaluated run: `target.rule: recommended`."""

from __future__ import annotations

import shutil

import pytest

import balancer
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.errors import ConfigError
from balancer.evaluation.files import write_outcome
from balancer.evaluation.targets import with_recommended_targets
from balancer.storage import open_storage
from tests.evaluation.here import Made, evaluated, make_run, outcome
from tests.manifest_samples import CONFIG


@pytest.fixture(scope="module")
def unevaluated(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("evaluated") / "run", Made(train=2, test=2, accepted=3))


@pytest.fixture
def a_run(unevaluated, tmp_path):
    return shutil.copytree(unevaluated, tmp_path / "run")


def config(run, **target):
    settings = {"rule": "recommended", "evaluation": str(run), **target}
    return Config.model_validate(CONFIG | {"target": settings})


def targets(run, notes=None, **target):
    take = (lambda _: None) if notes is None else notes.append
    return dict(with_recommended_targets(config(run, **target), take).target.classes)


def test_classes_have_the_targets_of_the_run_but_for_those_that_are_left_out(a_run):
    planned = evaluated(a_run, classes=("burnt",)).run.targets
    notes: list[str] = []
    assert targets(a_run, notes) == {"basic": planned["basic"], "burnt": "keep"}
    told = f"the evaluation of {a_run} says add; no generated images for burnt"
    assert notes == [f"target.rule: recommended: {told}"]


def test_an_evaluation_that_could_not_tell_changes_no_target_and_that_is_said(a_run):
    planned = evaluated(a_run, decision="cannot_tell", classes=()).run.targets
    notes: list[str] = []
    assert targets(a_run, notes) == planned
    assert notes == [f"target.rule: recommended: the evaluation of {a_run} cannot tell"]


def test_a_target_of_the_users_own_stays(a_run):
    evaluated(a_run, classes=("burnt",))
    assert targets(a_run, classes={"burnt": 7})["burnt"] == 7
    assert targets("nowhere", classes={"basic": 8, "burnt": 7}) == {"basic": 8, "burnt": 7}


def test_other_rules_read_no_run():
    plain = Config.model_validate(CONFIG)
    assert with_recommended_targets(plain) is plain


def test_a_run_that_has_changed_since_is_named(a_run, caplog):
    write_outcome(open_storage(a_run, create=False), outcome())
    targets(a_run)
    assert "target.evaluation: the run had other images when it was evaluated" in caplog.text


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("none", r"target\.evaluation: no such run: .*/none"),
        ("run", r"target\.evaluation: .*/run has not been evaluated"),
    ],
)
def test_without_an_evaluated_run_there_is_no_target(a_run, case, problem):
    with pytest.raises(ConfigError, match=problem):
        targets(a_run.parent / case)


def test_a_class_that_the_run_did_not_have_needs_a_target_of_its_own(a_run):
    evaluated(a_run)
    more = CONFIG["classes"] | {"raw": {"prompts": ["raw"]}}
    asked = {"rule": "recommended", "evaluation": str(a_run)}
    with pytest.raises(ConfigError, match="has no class 'raw'") as refused:
        with_recommended_targets(Config.model_validate(CONFIG | {"classes": more, "target": asked}))
    assert "target.classes" in refused.value.hint


def test_the_run_is_looked_up_beside_the_config(a_run, tmp_path):
    evaluated(a_run, classes=("basic", "burnt"))
    for name in ("basic", "burnt"):
        (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "job.yaml").write_text(
        "dataset: {path: images}\n"
        "target: {rule: recommended, evaluation: run}\n"
        "classes: {basic: {prompts: [a]}, burnt: {prompts: [b]}}\n"
    )
    loaded = load_config(tmp_path / "job.yaml")
    assert dict(with_recommended_targets(loaded).target.classes) == {"basic": "keep", "burnt": "keep"}
    assert balancer.plan(loaded).total == 0
