"""What conditioning promises whatever happens to a run: on real Ray, with simulated actors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import balancer
from actors.models.simulated import Fault
from actors.run import Reporter, run
from balancer.manifest import check_run
from balancer.manifest.log.view import read_log
from balancer.manifest.runfile import read_run
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
