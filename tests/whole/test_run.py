"""Whole runs on real Ray with simulated actors: what a run promises, whatever happens to it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import re
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import actors.run as job
from actors.cluster.fleet import Pools
from actors.models.simulated import Fault
from actors.run import Reporter, run
from balancer import open_manifest
from balancer.config.schema import Config
from balancer.errors import FencedError, InterruptedRun, StalledError, StorageError, UsageError
from balancer.manifest.log.view import read_log
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.maintenance.fsck import fsck
from balancer.manifest.runfile import create_run, read_run
from balancer.storage import open_storage
from tests.resident import actors_here
from tests.workers import DyingWriterSpec, PoisonedSpec, UnsyncedWriterSpec, with_faults, with_worker

PER_CLASS = 12
REAL = {"cat": 3, "dog": 0}
WANTED = 2 * PER_CLASS - sum(REAL.values())


def write_dataset(root):
    for name, count in REAL.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def make_config(dataset, ray_session):
    return functools.partial(config_of, dataset)


def config_of(dataset, /, **sections):
    base = {
        "seed": 5,
        "dataset": {"path": str(dataset)},
        "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
        "facets": {"light": {"values": {"day": {"prompts": ["day"]}, "night": {"prompts": ["night"]}}}},
        "target": {"per_class": PER_CLASS},
        "generation": {"width": 64, "height": 64, "batch_size": 4},
        "actors": {"kind": "simulated", "generators": 2},
        "planning": {"acceptance": 0.6},
        "output": {"commit_seconds": 0.01},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
    return Config.model_validate(base)


def accepted_ids(out):
    table = open_manifest(out).to_table(columns=["id"], filter="source = 'synthetic'")
    return sorted(table["id"].to_pylist())


def after(count, action, of="candidates"):
    """A reporter that acts once, when so many candidates were judged (or images accepted)."""
    pending = [action]

    def look(snapshot):
        if getattr(snapshot, of) >= count and pending:
            pending.pop()()

    return Reporter(progress=look)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, ray_session):
    """The ids an undisturbed run accepts."""
    folder = tmp_path_factory.mktemp("reference")
    with actors_here():
        run(config_of(write_dataset(folder / "dataset")), folder / "run")
    return accepted_ids(folder / "run")


def test_a_run_says_what_takes_long_before_it_does_it_and_its_log_has_all_it_said(make_config, tmp_path):
    notes = []
    run(make_config(), tmp_path / "run", reporter=Reporter(note=notes.append))
    for step in (
        "reading the dataset",
        f"images read, {WANTED} to generate; Ray is running already",
        "Ray is there; actors start and load their models (generators 2, verifiers 1",
        "the verifier measures the real images",
        "images to make",
        "generator ready",
        "verifier ready",
    ):
        [line] = [note for note in notes if step in note]
        assert re.match(r"\d+:\d\d ", line)
    log = (tmp_path / "run" / "run.log").read_text()
    assert all(note in log for note in notes)
    assert re.search(rf"(complete|short): \d+ of {WANTED} images accepted", log.splitlines()[-1])


@pytest.mark.usefixtures("here")
def test_the_images_that_a_run_ends_without_stand_in_its_log(make_config, tmp_path):
    notes = []
    result = run(make_config(), tmp_path / "run", limit=1, reporter=Reporter(note=notes.append))
    log = (tmp_path / "run" / "run.log").read_text()
    missing = sum(result.open_cells.values())
    for line in [
        f"warning: {missing} images are missing (--limit was reached; the same command without it resumes):",
        *(f"warning:   {cell}: {count}" for cell, count in result.open_cells.items()),
    ]:
        assert line in notes
        assert f"Z {line}\n" in log


@pytest.mark.usefixtures("here")
def test_a_driver_that_takes_over_says_so(make_config, tmp_path):
    notes = []
    run(make_config(), tmp_path / "run", limit=1)
    storage = open_storage(tmp_path / "run", create=False)
    info = read_run(storage)
    ManifestLog.open(storage, info.schema(), info.run_id)
    run(make_config(), tmp_path / "run", limit=1, reporter=Reporter(note=notes.append))
    assert len([note for note in notes if note.startswith("taking over from another driver")]) == 1
    run(make_config(), tmp_path / "run", limit=1, reporter=Reporter(note=notes.append))
    assert len([note for note in notes if note.startswith("taking over from another driver")]) == 1


@pytest.mark.usefixtures("here")
def test_an_error_that_ends_a_run_stands_in_its_log(make_config, tmp_path, monkeypatch):
    def broken(driver):
        raise StalledError("actors keep dying")

    monkeypatch.setattr("actors.loop.driver.Driver.run", broken)
    with pytest.raises(StalledError):
        run(make_config(), tmp_path / "run")
    assert (tmp_path / "run" / "run.log").read_text().endswith("Z error: actors keep dying\n")


def test_a_run_ends_with_exactly_the_images_that_were_missing(make_config, tmp_path):
    result = run(make_config(), tmp_path / "run")
    assert (result.wanted, result.accepted + result.short) == (WANTED, WANTED)
    manifest = open_manifest(tmp_path / "run")
    assert len(accepted_ids(tmp_path / "run")) == result.accepted
    assert manifest.to_table(filter="source = 'real'").num_rows == sum(REAL.values())


@pytest.mark.usefixtures("here")
def test_every_accepted_row_has_its_file_and_every_rejected_row_has_none(make_config, tmp_path):
    run(make_config(), tmp_path / "run")
    rows = open_manifest(tmp_path / "run").to_table(status="all").to_pylist()
    for row in rows:
        present = row["file_name"] is not None and (tmp_path / "run" / row["file_name"]).is_file()
        assert present == (row["status"] == "accepted"), row["id"]
    assert any(row["status"] == "rejected" for row in rows)


@pytest.mark.usefixtures("here")
def test_rejections_are_rows_with_the_weakest_property_as_reason(make_config, tmp_path):
    result = run(make_config(), tmp_path / "run")
    assert sum(result.rejected_by_reason.values()) == result.candidates - result.accepted
    assert set(result.rejected_by_reason) <= {"class", "light"}


@pytest.mark.usefixtures("here")
def test_a_tenth_of_the_accepted_images_is_marked_for_review_evenly(make_config, tmp_path):
    run(make_config(review={"fraction": 0.25}, planning={"acceptance": 1.0}), tmp_path / "run")
    rows = open_manifest(tmp_path / "run").to_table(filter="review").to_pylist()
    assert len(rows) == WANTED // 4
    assert {row["class"] for row in rows} == {"cat", "dog"}


@pytest.mark.parametrize(("generators", "batch_size"), [(1, 4), (2, 1), (2, 16)])
def test_neither_actors_nor_batch_size_change_what_is_accepted(
    make_config, tmp_path, reference, generators, batch_size
):
    config = make_config(actors={"generators": generators}, generation={"batch_size": batch_size})
    run(config, tmp_path / "run")
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.parametrize("fault", ["die", "raise"])
def test_a_failing_actor_changes_nothing_in_the_result(make_config, tmp_path, reference, fault):
    def once(usual):
        for kind in ("generator", "verifier"):
            usual = with_faults(kind, Fault(call=2, kind=fault, once=str(tmp_path / kind)))(usual)
        return usual

    run(make_config(), tmp_path / "run", change_workers=once)
    assert (tmp_path / "generator").exists()
    assert (tmp_path / "verifier").exists()
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_is_killed_changes_nothing_in_the_result(make_config, tmp_path, reference, when):
    dying = with_worker("writer", DyingWriterSpec, struck=str(tmp_path / "struck"), when=when)
    run(make_config(), tmp_path / "run", change_workers=dying)
    assert (tmp_path / "struck").exists()
    assert accepted_ids(tmp_path / "run") == reference
    assert fsck(open_storage(tmp_path / "run", create=False)) == []


def test_a_process_that_a_cuda_error_poisoned_is_replaced(make_config, tmp_path, reference):
    def poisoned(usual):
        for kind in ("generator", "verifier"):
            usual = with_worker(kind, PoisonedSpec, struck=str(tmp_path / kind))(usual)
        return usual

    run(make_config(), tmp_path / "run", change_workers=poisoned)
    assert (tmp_path / "generator").exists()
    assert (tmp_path / "verifier").exists()
    assert accepted_ids(tmp_path / "run") == reference


def test_a_call_that_hangs_is_given_up_and_made_again(make_config, tmp_path, reference):
    hanging = with_faults("generator", Fault(call=2, kind="hang", once=str(tmp_path / "struck")))
    run(make_config(actors={"call_timeout_s": 1.0}), tmp_path / "run", change_workers=hanging)
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.parametrize(("fault", "cause"), [("raise", "simulated fault"), ("die", "ActorDiedError")])
def test_an_actor_that_always_fails_ends_the_run_with_the_cause_and_keeps_what_is_committed(
    make_config, tmp_path, fault, cause
):
    always = with_faults("generator", *(Fault(call, kind=fault) for call in range(1, 100)))
    with pytest.raises(StalledError, match=cause):
        run(make_config(actors={"max_restarts": 1}), tmp_path / "run", change_workers=always)
    assert accepted_ids(tmp_path / "run") == []
    assert read_log(open_storage(tmp_path / "run", create=False)).state == "failed"


def test_a_writer_whose_disk_cannot_sync_stops_the_run_and_the_same_command_goes_on(
    make_config, tmp_path, reference
):
    unsynced = with_worker("writer", UnsyncedWriterSpec)
    with pytest.raises(StorageError, match=r"cannot sync .*nothing more is written to this run") as caught:
        run(make_config(), tmp_path / "run", change_workers=unsynced)
    assert caught.value.exit_code == 4
    assert accepted_ids(tmp_path / "run") != reference
    with actors_here():
        run(make_config(), tmp_path / "run")
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.usefixtures("here")
def test_a_driver_whose_disk_cannot_sync_commits_nothing_more(make_config, tmp_path, reference, monkeypatch):
    def break_disk():
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))

    with pytest.raises(StorageError, match="cannot sync"):
        run(make_config(), tmp_path / "run", reporter=after(1, break_disk))
    monkeypatch.undo()
    run(make_config(), tmp_path / "run")
    assert accepted_ids(tmp_path / "run") == reference
    assert fsck(open_storage(tmp_path / "run", create=False)) == []


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_commits_and_the_same_command_goes_on(make_config, tmp_path, times):
    # Batches of one, so that what is under way when the signal comes is far less than what is wanted.
    config = make_config(target={"per_class": 40}, generation={"batch_size": 1})
    out, whole = tmp_path / "run", tmp_path / "whole"
    with actors_here():
        run(config, whole)
    stop = after(2, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(times)], of="accepted")
    with pytest.raises(InterruptedRun) as caught:
        run(config, out, reporter=stop)
    assert caught.value.exit_code == 130
    part = accepted_ids(out)
    assert 0 < len(part) < len(accepted_ids(whole))
    with actors_here():
        run(config, out)
    assert accepted_ids(out) == accepted_ids(whole)
    assert set(part) <= set(accepted_ids(whole))


def test_sigterm_ends_with_the_exit_code_of_a_shell(make_config, tmp_path):
    stop = after(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(InterruptedRun) as caught:
        run(make_config(), tmp_path / "run", reporter=stop)
    assert caught.value.exit_code == 143


@pytest.mark.usefixtures("here")
def test_signals_are_the_users_again_after_a_run(make_config, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run(make_config(), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("here")
def test_a_finished_run_is_left_alone_without_starting_ray(make_config, tmp_path, monkeypatch):
    config = make_config(planning={"acceptance": 1.0})
    first = run(config, tmp_path / "run")
    monkeypatch.setattr(job, "connected", None)
    assert run(config, tmp_path / "run") == first


@pytest.mark.usefixtures("here")
def test_a_budget_of_candidates_ends_the_run_with_its_gaps_listed(make_config, tmp_path):
    result = run(make_config(budget={"max_candidates": 8}), tmp_path / "run")
    assert result.state == "budget"
    assert result.candidates <= 8
    assert sum(result.open_cells.values()) == WANTED - result.accepted


@pytest.mark.usefixtures("here")
def test_a_larger_budget_goes_on_with_the_same_run(make_config, tmp_path, reference):
    run(make_config(budget={"max_candidates": 8}), tmp_path / "run")
    run(make_config(), tmp_path / "run")
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.usefixtures("here")
def test_a_limit_works_on_that_many_slots(make_config, tmp_path):
    result = run(make_config(planning={"acceptance": 1.0}), tmp_path / "run", limit=5)
    assert (result.state, result.accepted) == ("interrupted", 5)


@pytest.mark.usefixtures("here")
def test_images_that_never_pass_leave_the_run_short_and_nothing_accepted(make_config, tmp_path):
    result = run(make_config(planning={"acceptance": 1e-9}), tmp_path / "run")
    assert (result.state, result.accepted, result.short) == ("short", 0, WANTED)
    assert result.candidates == 3 * WANTED


@pytest.mark.usefixtures("here")
def test_the_fallback_rung_is_one_more_attempt_and_marked(make_config, tmp_path):
    config = make_config(planning={"acceptance": 0.2}, attempts={"max": 1, "fallback": {"threshold": 0.5}})
    run(config, tmp_path / "run")
    rows = open_manifest(tmp_path / "run").to_table(status="all", filter="source = 'synthetic'").to_pylist()
    seen = {(row["attempt"], row["fallback"], row["threshold"]) for row in rows}
    assert seen == {(1, False, 0.6), (2, True, 0.5)}


@pytest.mark.usefixtures("here")
def test_a_changed_config_is_refused_with_what_changed(make_config, tmp_path):
    run(make_config(), tmp_path / "run", limit=1)
    with pytest.raises(UsageError, match=r"another config; changed: seed$") as caught:
        run(make_config(seed=6, verification={"threshold": 0.7}), tmp_path / "run")
    assert caught.value.exit_code == 2
    assert "--allow-config-change" in caught.value.hint


@pytest.mark.usefixtures("here")
def test_a_changed_config_is_taken_if_allowed_but_never_another_facet(make_config, tmp_path):
    run(make_config(), tmp_path / "run", limit=1)
    run(make_config(seed=6), tmp_path / "run", limit=1, allow_config_change=True)
    run(make_config(seed=6), tmp_path / "run", limit=1)  # it is the run's by now
    other = make_config(seed=6, facets={"weather": {"values": {"rain": {"prompts": ["rain"]}}}})
    with pytest.raises(UsageError, match=r"facets\.weather"):
        run(other, tmp_path / "run", allow_config_change=True)


@pytest.mark.usefixtures("here")
def test_weights_that_changed_under_the_same_name_are_refused(make_config, tmp_path, monkeypatch):
    def models(sha256):
        original = vars(job)["describe_models"](make_config())
        return lambda config: {kind: told | {"sha256": sha256} for kind, told in original.items()}

    unknown, one, other = models(None), models("1" * 64), models("2" * 64)
    for describe in (one, unknown, one):
        monkeypatch.setattr(job, "describe_models", describe)
        run(make_config(), tmp_path / "run", limit=1)
    assert read_run(open_storage(tmp_path / "run", create=False)).models["generator"]["sha256"] == "1" * 64
    monkeypatch.setattr(job, "describe_models", other)
    with pytest.raises(UsageError, match="weights of the generator, weights of the verifier"):
        run(make_config(), tmp_path / "run", limit=1)
    run(make_config(), tmp_path / "run", limit=1, allow_config_change=True)


@pytest.mark.usefixtures("here")
def test_how_a_run_is_made_may_change_between_starts(make_config, tmp_path, reference):
    run(make_config(), tmp_path / "run", limit=4)
    run(make_config(actors={"generators": 1}, generation={"batch_size": 8}), tmp_path / "run")
    assert accepted_ids(tmp_path / "run") == reference


@pytest.mark.usefixtures("here")
def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(make_config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("important")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        run(make_config(), out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("here")
def test_a_driver_that_was_taken_over_stops_and_repeats_no_row(make_config, tmp_path):
    out = tmp_path / "run"

    def take_over():
        storage = open_storage(out, create=False)
        info = read_run(storage)
        ManifestLog.open(storage, info.schema(), info.run_id)

    with pytest.raises(FencedError) as caught:
        run(make_config(), out, reporter=after(1, take_over))
    assert caught.value.exit_code == 5
    ids = open_manifest(out).to_table(status="all", columns=["id"])["id"].to_pylist()
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("here")
def test_a_run_whose_folder_another_run_takes_stops_and_commits_nothing_there(make_config, tmp_path):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def exchange():
        out.rename(elsewhere)
        storage = open_storage(out, create=True)
        info = create_run(
            storage, dataclasses.replace(read_run(open_storage(elsewhere, create=False)), run_id="2")
        )
        ManifestLog.open(storage, info.schema(), info.run_id)

    with pytest.raises(StorageError):
        run(make_config(), out, reporter=after(1, exchange))
    assert read_log(open_storage(out, create=False)).fragments == 1
    assert fsck(open_storage(elsewhere, create=False)) == []


@pytest.mark.usefixtures("here")
def test_real_images_are_copied_byte_for_byte_or_referenced(make_config, tmp_path, dataset):
    run(make_config(), tmp_path / "copied", limit=1)
    run(make_config(output={"real_images": "reference"}), tmp_path / "referenced", limit=1)
    for out in ("copied", "referenced"):
        rows = open_manifest(tmp_path / out).to_table(filter="source = 'real'").to_pylist()
        sources = sorted(path.read_bytes() for path in (dataset / "cat").iterdir())
        assert sorted((tmp_path / out / row["file_name"]).read_bytes() for row in rows) == sources


def test_generators_hold_different_gpus_and_the_verifier_fits_beside_them(make_config, tmp_path, monkeypatch):
    pools = []
    original = job.make_pools
    monkeypatch.setattr(job, "make_pools", lambda *told: pools.extend(original(*told)) or Pools(*pools))
    monkeypatch.setattr("actors.cluster.sizing._uses_gpus", lambda wanted, resources: True)
    seen = {}

    def look(snapshot):
        for pool in pools:
            for actor in pool.actors:
                if actor.ready:
                    told = actor.description
                    seen.setdefault(pool.kind, {})[told["pid"]] = told["gpu_ids"]

    config = make_config(planning={"acceptance": 0.6, "seconds_per_candidate": 0.05})
    run(config, tmp_path / "run", reporter=Reporter(progress=look))
    assert sorted(seen["generator"].values()) == [["0"], ["1"]]
    assert list(seen["verifier"].values()) in ([["0"]], [["1"]])


@pytest.mark.usefixtures("here")
def test_a_run_with_splits_fills_up_what_is_trained_on(make_config, tmp_path, dataset):
    shutil.copy(dataset / "cat" / "0.png", dataset / "cat" / "copy.png")
    shares = {"path": str(dataset), "splits": {"train": 0.5, "validation": 0.5}}
    result = run(make_config(dataset=shares), tmp_path / "run")
    rows = open_manifest(tmp_path / "run").to_table(["id", "class", "source", "split"]).to_pylist()
    splits = {one["id"]: one["split"] for one in rows if one["source"] == "real"}
    assert set(splits.values()) == {"train", "validation"}
    assert splits["real/cat/0.png"] == splits["real/cat/copy.png"]
    trained_on = Counter(one["class"] for one in rows if one["split"] == "train")
    assert trained_on == {"cat": PER_CLASS, "dog": PER_CLASS}
    assert {one["split"] for one in rows if one["source"] == "synthetic"} == {"train"}
    assert result.wanted == 2 * PER_CLASS - Counter(splits.values())["train"]
    run(make_config(dataset=shares), tmp_path / "again")
    again = open_manifest(tmp_path / "again").to_table(["id", "split"], "source = 'real'").to_pylist()
    assert {one["id"]: one["split"] for one in again} == splits


@pytest.mark.usefixtures("here")
def test_a_run_tells_of_real_images_that_the_hold_out_shows(make_config, tmp_path, dataset):
    (tmp_path / "holdout" / "cat").mkdir(parents=True)
    shutil.copy(dataset / "cat" / "1.png", tmp_path / "holdout" / "cat")
    places = {"path": str(dataset), "holdout": str(tmp_path / "holdout")}
    notes = []
    run(make_config(dataset=places), tmp_path / "run", reporter=Reporter(note=notes.append))
    assert any(
        "hold-out images show the same as 1 real image, such as real/cat/1.png" in note for note in notes
    )
    manifest = open_manifest(tmp_path / "run")
    (marked,) = manifest.to_table(filter="source = 'real' and nearest_id is not null").to_pylist()
    assert (marked["id"], marked["nearest_id"]) == ("real/cat/1.png", "holdout/cat/1.png")
    with pytest.warns(UserWarning, match="left out"):
        assert "real/cat/1.png" not in {image.id for image in manifest.images()}


@pytest.mark.usefixtures("here")
def test_unreadable_images_are_told_of_and_made_up_for(make_config, tmp_path, dataset):
    whole = (dataset / "cat" / "0.png").read_bytes()
    (dataset / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    notes = []
    result = run(make_config(), tmp_path / "run", limit=1, reporter=Reporter(note=notes.append))
    assert result.wanted == WANTED + 1
    assert (
        len(
            [
                note
                for note in notes
                if "1 image cannot be read, so it is not counted: cat/0.png: truncated" in note
            ]
        )
        == 1
    )


@pytest.mark.usefixtures("here")
def test_a_budget_of_time_ends_the_run_with_its_gaps_listed(make_config, tmp_path):
    result = run(make_config(budget={"max_hours": 1e-9}), tmp_path / "run")
    assert (result.state, result.accepted) == ("budget", 0)
    assert sum(result.open_cells.values()) == WANTED
