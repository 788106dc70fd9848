"""What conditioning promises whatever happens to a run: on real Ray, with simulated actors."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import balancer
from actors.models.simulated import Fault
from actors.run import Reporter, run
from balancer.errors import UsageError
from balancer.manifest import check_run
from balancer.manifest.log.view import read_log
from balancer.manifest.runfile import read_run
from balancer.runs.rejudge import rejudge
from balancer.storage import open_storage
from tests.whole import test_run
from tests.workers import with_faults

dataset, make_config = test_run.dataset, test_run.make_config  # fixtures

IMAGE = {"conditioning": "image"}


@pytest.fixture
def conditioned(make_config):
    def make(**sections):
        generation = IMAGE | sections.pop("generation", {})
        return make_config(generation=generation, **sections)

    return make


def add_image(dataset, name, class_name="cat"):
    noise = np.random.default_rng(len(name)).integers(0, 256, (16, 16, 3), np.uint8)
    (dataset / class_name).mkdir(exist_ok=True)
    Image.fromarray(noise).save(dataset / class_name / f"{name}.png")


def parents(out):
    rows = balancer.open_manifest(out).to_table(filter="source = 'synthetic'", status="all").to_pylist()
    return {row["id"]: (row["parent_id"], row["strength"]) for row in rows}


def is_sound(out):
    return check_run(open_storage(out, create=False)).problems == ()


def test_neither_batches_nor_dying_generators_change_parents(conditioned, tmp_path):
    run(conditioned(), tmp_path / "whole")
    usual = parents(tmp_path / "whole")
    assert {parent for name, (parent, _) in usual.items() if name.startswith("dog")} == {None}
    assert {parent for name, (parent, _) in usual.items() if name.startswith("cat")} == {
        f"real/cat/{number}.png" for number in range(3)
    }
    assert {strength for name, (_, strength) in usual.items() if name.endswith("-2")} >= {0.7}
    dying = with_faults("generator", Fault(call=2, kind="die", once=str(tmp_path / "struck")))
    run(conditioned(generation={"batch_size": 3}), tmp_path / "run", change_workers=dying)
    assert (tmp_path / "struck").exists()
    assert parents(tmp_path / "run") == usual
    assert is_sound(tmp_path / "run")


@pytest.mark.usefixtures("here")
def test_a_start_says_that_candidates_are_drawn_from_other_images(conditioned, dataset, tmp_path):
    out, notes = tmp_path / "run", []
    run(conditioned(), out, limit=6)
    before = parents(out)
    (dataset / "cat" / "0.png").unlink()
    add_image(dataset, "other")
    run(conditioned(), out, confirmed=True, reporter=Reporter(note=notes.append))
    assert "parents: 3 -> 3 real images; candidates to come are drawn from these" in notes
    after = parents(out)
    assert {name: after[name] for name in before} == before
    late = {parent for name, (parent, _) in after.items() if name not in before and parent}
    assert "real/cat/0.png" not in late
    assert "real/cat/other.png" in late
    assert is_sound(out)

    storage = open_storage(out, create=False)
    info = read_run(storage)
    latest = info.under(read_log(storage).rules)
    assert (info.parents, latest.parents) != (latest.parents, info.parents)
    add_image(dataset, "one more")
    notes.clear()
    run(conditioned(target={"per_class": 14}), out, reporter=Reporter(note=notes.append))
    assert "parents: 3 -> 4 real images; candidates to come are drawn from these" in notes


def accepted_parents(out):
    rows = balancer.open_manifest(out).to_table(["id", "parent_id"], "parent_id is not null")
    return dict(zip(rows["id"].to_pylist(), rows["parent_id"].to_pylist(), strict=True))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_images_leave_with_the_image_that_they_were_made_from(conditioned, dataset, tmp_path, change):
    """It may be tested on by now, or was removed for a reason."""
    out, name = tmp_path / "run", "real/cat/0.png"
    run(conditioned(), out)
    children = {child for child, parent in accepted_parents(out).items() if parent == name}
    assert children
    (dataset / "cat" / "0.png").unlink()
    add_image(dataset, "0" if change == "replaced" else "another")
    with pytest.raises(UsageError, match=r"accepted images? would leave"):
        run(conditioned(), out)
    run(conditioned(), out, confirmed=True)
    after = accepted_parents(out)
    assert not children & after.keys()
    rows = balancer.open_manifest(out).to_table(["id", "reason"], "reason = 'orphaned'", status="rejected")
    assert children <= set(rows["id"].to_pylist())
    assert (name in after.values()) == (change == "replaced"), "those made from the new picture"
    assert is_sound(out)
    assert not rejudge(open_storage(out, create=False)).pending


@pytest.mark.usefixtures("here")
def test_an_image_that_a_later_hold_out_shows_is_trained_on_no_more_nor_is_what_was_made_from_it(
    conditioned, dataset, tmp_path
):
    out, holdout = tmp_path / "run", tmp_path / "holdout"
    run(conditioned(), out)
    manifest = balancer.open_manifest(out)
    children = {child for child, parent in accepted_parents(out).items() if parent == "real/cat/0.png"}
    assert children <= trained_on(manifest)
    (holdout / "cat").mkdir(parents=True)
    shutil.copy(dataset / "cat" / "0.png", holdout / "cat" / "held.png")
    run(
        conditioned(dataset={"holdout": str(holdout)}, target={"per_class": 13}),
        out,
        allow_config_change=True,
    )
    manifest = balancer.open_manifest(out)
    [row] = manifest.to_table(["id", "nearest_id"], "id = 'real/cat/0.png'").to_pylist()
    assert row["nearest_id"] == "holdout/cat/held.png"
    assert not trained_on(manifest) & (children | {"real/cat/0.png"})
    assert is_sound(out)


def trained_on(manifest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = manifest.to_torch()
    return {dataset.id(place) for place in range(len(dataset))}


@pytest.mark.usefixtures("here")
def test_an_image_of_another_run_is_taken_over_only_if_its_parent_may_be_one_here(
    conditioned, dataset, tmp_path
):
    for number in range(6):
        add_image(dataset, f"more{'e' * number}")
    run(conditioned(target={"per_class": 30}), tmp_path / "first")
    splits = {"dataset": {"splits": {"train": 0.5, "test": 0.5}}}
    config = conditioned(target={"per_class": 30}, seed=6, **splits)
    run(config, tmp_path / "second", reuse=tmp_path / "first")
    manifest = balancer.open_manifest(tmp_path / "second")
    rows = {row["id"]: row for row in manifest.to_table().to_pylist()}
    taken = [row for row in rows.values() if row["origin_id"] is not None]
    origins = parents(tmp_path / "first")
    assert taken
    for row in taken:
        assert (row["parent_id"], row["strength"]) == origins[row["origin_id"]]
        assert row["parent_id"] is None or rows[row["parent_id"]]["split"] == "train"
    tested = {name for name, row in rows.items() if row["split"] == "test"}
    assert tested & {parent for parent, _ in origins.values()}
    assert is_sound(tmp_path / "second")


@pytest.mark.usefixtures("here")
def test_a_run_for_text_alone_takes_over_conditioned_images_too(conditioned, make_config, tmp_path):
    run(conditioned(), tmp_path / "first")
    run(make_config(seed=6), tmp_path / "second", reuse=tmp_path / "first")
    taken = balancer.open_manifest(tmp_path / "second").to_table(filter="parent_id is not null")
    assert taken.num_rows > 0
    assert is_sound(tmp_path / "second")
