"""Training and exports that follow what the run's evaluation found."""

from __future__ import annotations

from collections import Counter

import pytest

from balancer import export_run, open_manifest
from balancer.errors import UsageError
from balancer.evaluation.files import write_outcome
from balancer.storage import open_storage
from tests.evaluation.here import Made, evaluated, make_run, outcome


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", Made(train=2, validation=2, test=2, accepted=6))


def counts(dataset):
    return {name: list(dataset.targets).count(label) for label, name in enumerate(dataset.classes)}


def test_classes_that_are_harmed_are_trained_on_real_images_only(run):
    manifest = evaluated(run)
    assert counts(manifest.to_torch()) == {"basic": 8, "burnt": 8}
    assert counts(manifest.to_torch(recommended=True)) == {"basic": 8, "burnt": 2}


def test_the_sampler_draws_real_images_as_often_as_recommended(run):
    sampler = evaluated(run).sampler(recommended=True, seed=0)
    rows = {(each["class"], each["source"]): each["draws"] for each in sampler.exposures().to_pylist()}
    assert len(sampler) == len(open_manifest(run).to_torch(recommended=True))
    assert rows["basic", "real"] == pytest.approx(4 * rows["basic", "synthetic"])
    assert ("burnt", "synthetic") not in rows


@pytest.mark.parametrize(
    ("baseline", "by", "draws"),
    [
        ("real_balanced", None, {"basic": 5, "burnt": 5}),
        ("real", None, {"basic": 8, "burnt": 2}),
        ("real_logit_adjusted", None, {"basic": 8, "burnt": 2}),
        ("real_logit_adjusted", ["class"], {"basic": 5, "burnt": 5}),
    ],
)
def test_classes_are_drawn_as_the_tested_arm_drew_them_unless_asked_otherwise(run, baseline, by, draws):
    sampler = evaluated(run, baseline=baseline).sampler(by, recommended=True)
    drawn = Counter()
    for each in sampler.exposures().to_pylist():
        drawn[each["class"]] += each["draws"]
    assert dict(drawn) == pytest.approx(draws)


def test_two_shares_at_once_are_refused(run):
    with pytest.raises(UsageError, match="as do real_share and real_weight"):
        evaluated(run).sampler(recommended=True, real_share=0.3)


def test_an_export_leaves_out_what_is_not_recommended(run, tmp_path):
    evaluated(run)
    export_run(run, "csv", tmp_path / "out", recommended=True)
    lines = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert sum("burnt" in line for line in lines) < sum("basic" in line for line in lines)
    with pytest.raises(UsageError):
        export_run(run, "csv", tmp_path / "out")


def test_without_an_evaluation_nothing_is_recommended(run):
    with pytest.raises(UsageError, match="has not been evaluated") as refused:
        open_manifest(run).to_torch(recommended=True)
    assert "balancer evaluate" in refused.value.hint


def test_who_follows_an_evaluation_that_could_not_tell_is_told_so(run):
    manifest = evaluated(run, decision="cannot_tell", classes=())
    with pytest.warns(UserWarning, match="could not tell"):
        assert counts(manifest.to_torch(recommended=True)) == {"basic": 8, "burnt": 8}


def test_who_follows_an_evaluation_of_other_images_is_told_so(run):
    write_outcome(open_storage(run, create=False), outcome())
    with pytest.warns(UserWarning, match="had other images when it was evaluated"):
        open_manifest(run).to_torch(recommended=True)


def test_a_class_of_the_outcome_that_the_run_does_not_have_changes_nothing(run):
    manifest = evaluated(run, classes=["'; DROP", "x"])
    assert counts(manifest.to_torch(recommended=True)) == {"basic": 8, "burnt": 8}


def test_who_is_left_without_images_by_the_evaluation_is_told_so(run):
    manifest = evaluated(run)
    with pytest.raises(UsageError, match="that the evaluation recommends") as refused:
        manifest.to_torch(recommended=True, filter="source = 'synthetic' and class = 'burnt'")
    assert "recommended=True" in refused.value.hint
