"""Images of another run: judged by the rules of this one, committed with where they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import balancer
from actors.models.simulated import SimulatedVerifier
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.errors import ManifestError, UsageError
from balancer.manifest import read_run
from balancer.manifest.maintenance.fsck import fsck
from balancer.manifest.rows import utc_now
from balancer.manifest.schema import rows_to_table
from balancer.manifest.status import read_status
from balancer.runs.rejudge import rejudge
from balancer.runs.resume import run_facts
from balancer.runs.reuse import Reused, Source, Target, find_source, take_over
from balancer.scheduling.adaptive import Tally
from balancer.storage import open_storage
from tests.loop.test_driver import MODELS, Trial, make_config

HOW_IT_WAS_MADE = ("prompt", "seed", "model", "steps", "width", "sha256", "generated_at", "class", "light")


@pytest.fixture
def first(tmp_path):
    """The folder of a finished run with 30 accepted images."""
    trial = Trial(tmp_path / "first", make_config(acceptance=0.8))
    trial.log.close(trial.run())
    assert len(trial.accepted()) == 30
    return tmp_path / "first"


def begin(folder, source, config, acceptance: float = 1.0) -> tuple[Trial, Reused]:
    """A start of the other run, as far as its images are taken over."""
    trial = Trial(folder, config)
    info = read_run(trial.storage)
    found = source if isinstance(source, Source) else find_source(source, info)
    assert found is not None
    verifier = SimulatedVerifier(config.properties(), acceptance)
    target = Target(
        run_facts(info, config),
        trial.log,
        trial.storage,
        NearDuplicateIndex([], config.verification.copies),
    )

    def measure(calls: Any) -> Any:
        return ((number, verifier.measure(*arguments)) for number, arguments in enumerate(calls))

    return trial, take_over(found, target, trial.schedule, measure)


def taken(folder) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        balancer.open_manifest(folder).to_table(filter="origin_id is not null").to_pylist()
    )
    return rows


def test_images_are_taken_over_byte_by_byte_and_the_rest_is_made(first, tmp_path):
    config = make_config(acceptance=0.8, target={"per_class": 17})
    trial, reused = begin(tmp_path / "second", first, config)
    assert reused == Reused(offered=30, taken=30, without_cell=0)
    trial.log.close("interrupted")
    rows = taken(tmp_path / "second")
    source = {row["id"]: row for row in balancer.open_manifest(first).to_table().to_pylist()}
    assert {row["origin_id"] for row in rows} == source.keys()
    for row in rows:
        origin = source[row["origin_id"]]
        assert {name: row[name] for name in HOW_IT_WAS_MADE} == {
            name: origin[name] for name in HOW_IT_WAS_MADE
        }
        assert row["origin_run_id"] == origin["run_id"] != row["run_id"]
        assert (tmp_path / "second" / row["file_name"]).read_bytes() == (
            first / origin["file_name"]
        ).read_bytes()
    status = read_status(trial.storage, utc_now())
    assert (status["accepted"], status["candidates"], status["acceptance"]) == (30, 0, None)
    lineage = balancer.open_manifest(tmp_path / "second").lineage(rows[0]["id"])
    assert (lineage.origin_run_id, lineage.origin_id) == (rows[0]["origin_run_id"], rows[0]["origin_id"])

    trial = Trial(tmp_path / "second", config)
    assert (len(trial.schedule.accepted), trial.schedule.open) == (30, 4)
    assert trial.schedule.candidates == 0
    trial.log.close(trial.run())
    cells = Counter(row["cell"] for row in trial.rows() if row["status"] == "accepted")
    assert sorted(cells.values()) == [8, 8, 9, 9]
    assert fsck(trial.storage) == []
    assert not rejudge(trial.storage).pending


def test_images_that_were_taken_over_cost_no_budget_and_say_nothing_about_acceptance(first, tmp_path):
    config = make_config(acceptance=0.8, target={"per_class": 17}, budget={"max_candidates": 4})
    trial, _ = begin(tmp_path / "second", first, config)
    trial.log.close("interrupted")
    trial = Trial(tmp_path / "second", config)
    assert all(trial.schedule.tally(cell) == Tally(0, 0) for cell, _, _ in trial.schedule.quotas)
    trial.log.close(trial.run())
    assert trial.schedule.candidates == 4, "the whole budget is left for the 4 images that are missing"
    status = read_status(trial.storage, utc_now())
    if status["open"]:
        rate = status["acceptance"]
        assert status["remedies"]["budget"]["needed"] == 4 + math.ceil(status["open"] / rate)


def test_images_that_do_not_pass_cost_nothing_and_leave_no_row(first, tmp_path):
    config = make_config(acceptance=0.8, verification={"threshold": 0.95})
    trial, reused = begin(tmp_path / "second", first, config)
    passing = balancer.open_manifest(first).to_table(["id"], "score >= 0.95")["id"].to_pylist()
    assert reused == Reused(offered=30, taken=len(passing), without_cell=0)
    trial.log.close("interrupted")
    assert {row["origin_id"] for row in taken(tmp_path / "second")} == set(passing)
    assert len(trial.rows()) == len(passing) < 30


def test_no_more_are_taken_than_there_are_open_slots_and_none_twice(first, tmp_path):
    few, more = (make_config(target={"per_class": count}) for count in (6, 10))
    trial, reused = begin(tmp_path / "second", first, few)
    assert (reused.taken, trial.log.close("complete")) == (12, None)
    assert begin(tmp_path / "second", first, few)[1] == Reused(0, 0, 0)
    ids = [row["origin_id"] for row in taken(tmp_path / "second")]
    assert len(ids) == len(set(ids)) == 12
    other, reused = begin(tmp_path / "third", first, more)
    assert (reused.taken, other.schedule.wanted) == (20, 20)


def test_no_image_is_taken_that_the_run_has_from_elsewhere(first, tmp_path):
    """The second run has images of the first; the third asks both."""
    few, more = (make_config(target={"per_class": count}) for count in (6, 15))
    second, _ = begin(tmp_path / "second", first, few)
    second.log.close("complete")
    third, reused = begin(tmp_path / "third", tmp_path / "second", more)
    assert (reused.taken, third.log.close("interrupted")) == (12, None)
    third, reused = begin(tmp_path / "third", first, more)
    assert reused.taken == 30 - 12
    pixels = [row["pixel_sha256"] for row in third.rows() if row["status"] == "accepted"]
    assert len(pixels) == len(set(pixels)) == 30


def test_images_without_a_cell_are_counted(first, tmp_path):
    config = make_config(
        facets={"light": {"values": {"day": {"prompts": ["day"]}, "dusk": {"prompts": ["dusk"]}}}}
    )
    trial, reused = begin(tmp_path / "second", first, config)
    night = Counter(row["light"] for row in balancer.open_manifest(first).to_table().to_pylist())["night"]
    assert (reused.without_cell, reused.taken) == (night, reused.offered)
    assert {row["light"] for row in trial.rows()} == {"day"}
    offered = f"{reused.taken} of {reused.taken} images of the other run that were offered for open slots"
    told = f"took over {offered}; {night} fit no open cell"
    assert str(reused) == told


def test_a_changed_image_is_an_error_that_names_it(first, tmp_path):
    path = next((first / "images").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ManifestError, match=f"{path.name} is not the image that its row names"):
        begin(tmp_path / "second", first, make_config())


def with_pixels(folder: Path, side: int, named: int) -> Source:
    """Every image of the run has `side` pixels a side, and every row says `named`."""
    source = find_source(folder, None)
    assert source is not None
    data = io.BytesIO()
    Image.new("1", (side, side)).save(data, "PNG")
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(data.getvalue())
    rows = source.rows.to_table(filter="source = 'synthetic'").to_pylist()
    changes = {"width": named, "height": named, "sha256": sha256}
    table = rows_to_table([row | changes for row in rows], source.rows.run.schema())
    return Source(source.storage, SimpleNamespace(run=source.rows.run, to_table=lambda **_: table))  # type: ignore[arg-type]


def test_an_image_of_another_size_than_its_row_names_is_an_error(first, tmp_path):
    found = with_pixels(first, side=24, named=16)
    with pytest.raises(ManifestError, match="has 24 x 24 pixels, and its row names 16 x 16"):
        begin(tmp_path / "second", found, make_config())


def test_large_images_are_measured_few_at_a_time(first, tmp_path, monkeypatch):
    found = with_pixels(first, side=32, named=32)
    monkeypatch.setattr("balancer.runs.reuse.BATCH_PIXELS", 2 * 32 * 32)
    sizes = []
    measure = SimulatedVerifier.measure

    def counted(self: SimulatedVerifier, pixels: Any, *others: Any) -> Any:
        sizes.append(len(pixels))
        return measure(self, pixels, *others)

    monkeypatch.setattr(SimulatedVerifier, "measure", counted)
    begin(tmp_path / "second", found, make_config())
    assert max(sizes) == 2


def test_a_run_takes_nothing_from_itself_nor_from_one_that_is_going_on(first, tmp_path):
    info = read_run(open_storage(first, create=False))
    with pytest.raises(UsageError, match="--reuse names the run itself"):
        find_source(first, info)
    other = dataclasses.replace(info, run_id="other", format=2)
    with pytest.raises(UsageError, match="an earlier version began this run"):
        find_source(first, other)
    Trial(tmp_path / "going", make_config())
    with pytest.raises(UsageError, match="the run is in progress"):
        find_source(tmp_path / "going", None)
    assert find_source(None, info) is None


def test_a_limit_of_slots_and_images_to_fill_them_all_are_refused_together(tmp_path):
    with pytest.raises(UsageError, match="--limit cannot hold"):
        balancer.run(make_config(), tmp_path / "run", reuse=tmp_path / "other", limit=3)
    assert not (tmp_path / "run").exists()


def test_images_that_a_lora_has_made_go_to_runs_with_the_same_one(tmp_path, monkeypatch):
    ours, other = ({"model": f"{name}.safetensors", "sha256": name * 64, "weight": 1.0} for name in "12")
    monkeypatch.setitem(MODELS, "LoRA 1", ours)
    trial = Trial(tmp_path / "first", make_config())
    trial.log.close(trial.run())
    count = len(trial.accepted())
    for name, loras, taken_over in (
        ("none", {}, 0),
        ("other", {"LoRA 1": other}, 0),
        ("same", {"LoRA 1": other, "LoRA 2": ours | {"weight": 0.5}}, count),
    ):
        monkeypatch.delitem(MODELS, "LoRA 1", raising=False)
        for kind, lora in loras.items():
            monkeypatch.setitem(MODELS, kind, lora)
        trial, reused = begin(tmp_path / name, tmp_path / "first", make_config())
        trial.log.close("interrupted")
        assert (reused.taken, reused.with_other_loras) == (taken_over, count - taken_over)
        assert ("LoRAs that are not in generation.loras" in str(reused)) is (taken_over == 0)
