"""Runs of the embedded models that start from real images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import balancer
from actors.reproduce import reproduce, rows_to_reproduce
from actors.run import Reporter, run
from balancer.config.load import load_config
from balancer.manifest import check_run
from balancer.manifest.runfile import read_run
from balancer.runs.rejudge import rejudge
from balancer.runs.reproduction import Outcome
from balancer.storage import open_storage
from balancer.training.images import Decoder

# The schedulers of diffusers 0.42 pass tensors to numpy the way of numpy 1.
pytestmark = [
    pytest.mark.usefixtures("all_here"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:"
        r"DeprecationWarning:diffusers\.schedulers"
    ),
]

SETTINGS = (
    "generation.conditioning=image",
    "dataset.holdout=null",
    "dataset.splits={train: 0.6, validation: 0.2, test: 0.2}",
    "target={classes: {basic: 22, burnt: 20, combined: 2, mixed: keep, progression: keep, segment: keep}}",
    "attempts={max: 2, give_up_below: 0}",
    "actors={generators: 1, device: cpu}",
    "verification.unjudged=[class, lighting, burn_level, off_domain]",
    "verification.typicality=never",
    "verification.heads=never",
    "output.commit_seconds=0.01",
)


def make(project: Path, out: Path, *settings: str, **options: Any) -> list[str]:
    """Run into `out`; what it said."""
    notes: list[str] = []
    config = load_config(project / "configs/demo.yaml", [*SETTINGS, *settings])
    run(config, out, reporter=Reporter(note=notes.append), **options)
    return notes


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    table = balancer.open_manifest(out).to_table(status="all")
    return {row["id"]: row for row in table.to_pylist()}


def generated(out: Path) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in read_rows(out).items() if row["source"] == "synthetic"}


@pytest.fixture(scope="module")
def made(project, tmp_path_factory):
    """A run in batches of three, and what it said."""
    out = tmp_path_factory.mktemp("conditioned") / "run"
    return out, make(project, out, "generation.batch_size=3")


def test_candidates_of_classes_with_real_images_have_a_parent_and_others_have_none(made):
    out, notes = made
    rows = generated(out)
    assert {row["class"] for row in rows.values()} == {"basic", "burnt", "combined"}
    for row in rows.values():
        conditioned = row["class"] != "combined"
        assert (row["parent_id"] is not None) == conditioned == (row["strength"] is not None)
        assert (row["parent_distance"] is not None) == conditioned == (row["parent_similarity"] is not None)
    [line] = [note for note in notes if note.startswith("conditioning: ")]
    assert "; from text alone: combined, mixed, progression, segment" in line


def test_parents_are_training_images_of_the_class_and_children_follow_them(made):
    out, _ = made
    rows = read_rows(out)
    splits = {row["split"] for row in rows.values() if row["source"] == "real"}
    assert splits == {"train", "validation", "test"}
    for row in generated(out).values():
        if row["parent_id"] is not None:
            parent = rows[row["parent_id"]]
            assert (parent["source"], parent["split"], parent["class"]) == ("real", "train", row["class"])
            assert row["nearest_id"] != row["parent_id"]
    assert check_run(open_storage(out, create=False)).problems == ()


def test_strengths_climb_and_rows_have_the_steps_that_were_run(made):
    seen = {
        (row["attempt"], row["strength"], row["steps"])
        for row in generated(made[0]).values()
        if row["strength"]
    }
    assert (1, 0.5, 5) in seen
    assert seen <= {(1, 0.5, 5), (2, 0.7, 7)}
    assert {row["steps"] for row in generated(made[0]).values() if not row["strength"]} == {10}


def test_run_json_says_what_candidates_were_drawn_from(made):
    info = read_run(open_storage(made[0], create=False))
    assert info.parents is not None
    assert info.parents["count"] == sum(info.parents["by_class"].values()) > 0
    assert info.conditioned_classes == {"basic", "burnt"}


def test_neither_batches_nor_an_interruption_change_parents_or_images(project, made, tmp_path):
    whole, decoder = (
        generated(made[0]),
        Decoder.of(str(made[0]), read_run(open_storage(made[0], create=False))),
    )
    make(project, tmp_path / "run", "generation.batch_size=1", limit=2)
    notes = make(project, tmp_path / "run", "generation.batch_size=1")
    assert not [note for note in notes if note.startswith("parents: ")]
    alone = generated(tmp_path / "run")
    same = ("parent_id", "strength", "steps", "status", "reason", "seed")
    assert {name: [row[column] for column in same] for name, row in alone.items()} == {
        name: [row[column] for column in same] for name, row in whole.items()
    }
    here = Decoder.of(str(tmp_path / "run"), read_run(open_storage(tmp_path / "run", create=False)))
    for name, row in alone.items():
        if row["file_name"] is not None:  # kernels for other batch sizes add up in another order
            one, other = (each.pixels(file, "synthetic").astype(int) for each, file in
                          ((here, row["file_name"]), (decoder, whole[name]["file_name"])))  # fmt: skip
            assert abs(one - other).max() <= 1


def test_a_conditioned_image_is_made_again_identically(made):
    manifest = balancer.open_manifest(made[0])
    rows = [row for row in rows_to_reproduce(manifest, None) if row["strength"] is not None]
    assert {one.outcome for one in reproduce(manifest, rows[:3])} == {Outcome.IDENTICAL}


def test_an_image_whose_parent_is_gone_or_another_by_now_cannot_be_made_again(made, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(made[0], out)
    manifest = balancer.open_manifest(out)
    [row] = [row for row in rows_to_reproduce(manifest, None) if row["strength"] is not None][:1]
    parents = {one["id"]: one for one in manifest.to_table(["id", "file_name"]).to_pylist()}
    file, other = (
        out / parents[name]["file_name"]
        for name in (row["parent_id"], next(n for n in parents if n != row["parent_id"] and "real" in n))
    )
    shutil.copyfile(other, file)
    [changed] = reproduce(manifest, [row])
    assert (changed.outcome, "its pixels are not those" in changed.detail) == (Outcome.INCOMPARABLE, True)
    [gone] = reproduce(manifest, [row | {"parent_id": "real/basic/none.png"}])
    assert "is no longer in the run" in gone.detail
    for wrong in ({"strength": None}, {"strength": 1.5}, {"steps": 11}):
        [refused] = reproduce(manifest, [row | wrong])
        assert refused.outcome is Outcome.INCOMPARABLE


def test_other_limits_for_parents_follow_from_the_rows(made):
    storage = open_storage(made[0], create=False)
    assert not rejudge(storage).pending
    strict = rejudge(storage, ["verification.parent={max_distance: 64, min_similarity: -1}"])
    conditioned = {name for name, row in generated(made[0]).items()
                   if row["status"] == "accepted" and row["parent_id"]}  # fmt: skip
    revoked = {change.id: change.reason for change in strict.changes if change.before == "accepted"}
    assert revoked == dict.fromkeys(conditioned, "near_parent")


def test_a_parent_that_is_copied_is_a_reason_of_its_own(project, tmp_path):
    alike = "verification.parent={max_distance: 64, min_similarity: -1}"
    make(project, tmp_path / "run", "generation.batch_size=3", "attempts.max=1", alike, limit=4)
    reasons = {(row["class"] == "combined", row["reason"]) for row in generated(tmp_path / "run").values()}
    assert (False, "near_parent") in reasons
    assert (True, "near_parent") not in reasons


def test_the_lineage_of_a_conditioned_image_leads_to_its_parent(made):
    manifest = balancer.open_manifest(made[0])
    [one, *_] = [name for name, row in generated(made[0]).items() if row["strength"] is not None]
    lineage = manifest.lineage(one)
    assert lineage.parent is not None
    assert (lineage.parent.source, lineage.strength) == ("real", 0.5)
