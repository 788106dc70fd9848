"""A started run takes up another config or dataset, and ends as one that began with it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from balancer.cli import main
from balancer.config.schema import Config
from balancer.dataset.audit import Audit, RealImage, match_classes
from balancer.dataset.near_duplicates import KnownImage
from balancer.dataset.splits import assign_splits, select_training
from balancer.errors import ManifestError, UsageError
from balancer.manifest import ManifestLog, check_run, create_run, read_log, read_run
from balancer.manifest.layout import REVISIONS_DIR
from balancer.manifest.log.fragment import State
from balancer.manifest.maintenance.gc import find_unneeded
from balancer.manifest.rules import Rules
from balancer.manifest.runfile import FORMAT
from balancer.manifest.snapshot.build import compact
from balancer.manifest.status import read_status
from balancer.planning.plan import make_plan
from balancer.report.facts import gather_facts
from balancer.run_manifest import manifest_in
from balancer.runs.growing import Begun, commit_growth, real_columns
from balancer.runs.import_real import commit_real_images
from balancer.runs.rejudge import apply, rejudge
from balancer.runs.resume import check_unchanged, describe_run, restore_schedule, run_facts
from balancer.scheduling.ledger import Outcome
from tests.manifest_samples import CONFIG, DIM, NOON, MemoryStorage, image_bytes, rejected, row

MODELS: dict[str, dict[str, Any]] = {
    "generator": {"model": "embedded", "revision": None},
    "verifier": {"model": "embedded", "revision": None, "embedding_dim": DIM},
}
NOTHING_ELSE = {"facets": {"lighting": CONFIG["facets"]["lighting"]}}


class Killed(Exception):
    """The driver is gone."""


class FailingStorage(MemoryStorage):
    """Its driver dies at the create or publish with that number, from 1."""

    left: int | None = None

    def _count(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise Killed

    def create(self, path: str, data: bytes) -> bool:
        self._count()
        return super().create(path, data)

    def publish(self, path: str, data: bytes) -> None:
        self._count()
        super().publish(path, data)


class World:
    """A run in memory and its dataset on disk, without actors: a candidate's id decides its scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = FailingStorage()
        self.images: dict[str, str] = {}
        self.settings = copy.deepcopy(CONFIG | NOTHING_ELSE)
        self.minutes = 0
        self.notes: list[str] = []
        self.format = FORMAT
        self.phashes: dict[str, str] = {}
        self.values: dict[str, str] = {}

    @property
    def config(self) -> Config:
        return Config.model_validate(self.settings)

    def put(self, name: str, picture: str) -> None:
        self.images[name] = picture
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(picture)

    def remove(self, name: str) -> None:
        del self.images[name]
        (self.folder / name).unlink()

    def audit(self) -> Audit:
        images = tuple(
            real_image(name, picture, self.phashes.get(picture), self.values.get(name))
            for name, picture in sorted(self.images.items())
        )
        counts = Counter(image.class_name for image in images)
        nothing: dict[str, Any] = {
            field.name: () for field in dataclasses.fields(Audit) if field.default is dataclasses.MISSING
        }
        return Audit(
            **nothing | {"path": self.folder, "images": images, "counts": dict(counts), "ignored_files": 0}
        )

    def start(self, confirmed: bool = True, steps: int = 10**6) -> str:
        """As `balancer run` does it; returns the state."""
        self.minutes += 10
        config, audit = self.config, self.audit()
        begun = self.find_begun()
        if begun:
            check_unchanged(config, MODELS, begun.known, False, begun.view.rules)
        splits = assign_splits(audit, config, begun.splits(audit) if begun else None)
        counts = match_classes(select_training(audit, splits), config)
        plan = make_plan(config, counts)
        growing = begun.compared(config, audit, counts, confirmed, self.notes.append) if begun else None
        new = dataclasses.replace(describe_run(config, plan, MODELS), format=self.format)
        if growing:
            growing.prepare(plan)
            info = growing.settled(lambda: (None, None))
        else:
            info = create_run(self.storage, new)
        now = NOON + datetime.timedelta(minutes=self.minutes)
        log = ManifestLog.open(self.storage, info.schema(), info.run_id, now=lambda: now)
        references = [
            KnownImage(f"real/{image.file_name}", image.phash, image.pixel_sha256, bytes(2 * DIM))
            for image in audit.images
        ]
        commit_growth(growing, self.storage, log, references)
        facts = run_facts(info, config)
        commit_real_images(audit, config.classes, log, self.storage, facts, splits=splits)
        schedule = restore_schedule(info, config, log.table(), None)
        for _ in range(steps):
            batch = [*schedule.next_batch(1), *schedule.next_batch(1)]  # one by one: no attempts ahead
            if not batch:
                break
            rows = [self.judged(candidate.slot.key, candidate.attempt, info.run_id) for candidate in batch]
            log.commit(rows)
            for candidate, made in zip(batch, rows, strict=True):
                schedule.judged(Outcome(candidate, made["reason"]))
                if made["reason"] is None:
                    schedule.accept(candidate)
        state: State = "interrupted" if schedule.open else "short" if schedule.short else "complete"
        log.close(state)
        return state

    def find_begun(self) -> Begun | None:
        try:
            known = read_run(self.storage)
        except UsageError:
            return None
        return Begun(known, read_log(self.storage, real_columns(known)), self.storage)

    def judged(self, slot: str, attempt: int, run_id: str) -> dict[str, Any]:
        name = f"{slot}-{attempt}"
        digest = hashlib.sha256(name.encode())
        score = 0.5 + digest.digest()[0] % 8 / 16  # the fallback always passes
        threshold = 0.5 if attempt == 4 else self.config.verification.threshold
        kind, reason = (row, None) if score >= threshold else (rejected, "lighting")
        told: dict[str, Any] = {
            "score": min(0.875, score),
            "threshold": threshold,
            "fallback": attempt == 4,
            "reason": reason,
        }
        made = kind(slot, attempt, **told, run_id=run_id, split="train", phash=digest.hexdigest()[:16])
        made["scores"] = {"class": 0.875, "lighting": score}
        del made["burn_level"]
        if reason is None:
            self.storage.publish(made["file_name"], image_bytes(name))
        return made

    @property
    def run_id(self) -> str:
        return read_run(self.storage).run_id

    def rows(self, **wanted: object) -> list[dict[str, Any]]:
        rows = read_log(self.storage).table.to_pylist()
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def accepted(self) -> set[str]:
        return {row["id"] for row in self.rows(source="synthetic", status="accepted")}

    def per_class(self) -> dict[str, int]:
        return dict(Counter(row["class"] for row in self.rows(status="accepted", split="train")))

    def per_cell(self) -> dict[str | None, int]:
        return dict(Counter(row["cell"] for row in self.rows(status="accepted")))

    def status(self) -> dict[str, Any]:
        return read_status(self.storage, NOON + datetime.timedelta(minutes=self.minutes))

    def fresh(self, folder: Path) -> World:
        """A run that begins with the same config and dataset."""
        other = World(folder)
        other.settings = copy.deepcopy(self.settings)
        for name, picture in self.images.items():
            other.put(name, picture)
        other.start()
        return other


def real_image(name: str, picture: str, phash: str | None, value: str | None) -> RealImage:
    digest = hashlib.sha256(picture.encode()).hexdigest()
    return RealImage(
        file_name=name,
        class_name=name.split("/")[0],
        facets={"lighting": value} if value else {},
        width=8,
        height=8,
        num_bytes=len(picture.encode()),
        sha256=digest,
        phash=phash or digest[:16],
        pixel_sha256=digest,
    )


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "dataset")
    for number in range(3):
        made.put(f"basic/{number}.png", f"picture {number}")
    made.put("burnt/0.png", "burnt picture")
    made.settings["target"]["per_class"] = 8
    return made


def sound(world: World) -> None:
    assert check_run(world.storage).problems == ()
    assert not rejudge(world.storage).pending


# ---- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 2, 10**6])
def test_a_raised_target_goes_on_with_every_accepted_image(world, tmp_path, steps):
    world.start(steps=steps)
    before, run_json = world.accepted(), world.storage.files["run.json"]
    world.settings["target"]["per_class"] = 11
    assert world.start() == "complete"
    assert world.storage.files["run.json"] == run_json
    assert before <= world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    assert world.per_class() == {"basic": 11, "burnt": 11}
    assert [note for note in world.notes if note.startswith(("config", "plan"))] == [
        "config: target.per_class 8 -> 11",
        "plan: +6 in 4 cells",
    ]
    sound(world)


def test_targets_of_single_classes_and_patterns_of_files_are_taken_up(world):
    world.start()
    world.settings["target"]["classes"] = {"burnt": 10}
    assert world.start() == "complete"
    assert world.per_class() == {"basic": 8, "burnt": 10}
    world.settings["target"]["classes"] = {"basic": 9, "burnt": 11}
    assert world.start() == "complete"
    assert world.per_class() == {"basic": 9, "burnt": 11}
    world.settings["dataset"] = world.settings["dataset"] | {"exclude": ["nothing"], "include": ["*"]}
    world.start()
    assert world.notes[-1] == "config: dataset.include, dataset.exclude"
    sound(world)


def test_status_says_which_revision_is_in_effect_and_what_each_changed(world):
    world.start()
    assert (world.status()["revision"], world.status()["revisions"]) == (1, [])
    world.settings["target"]["per_class"] = 11
    world.start()
    status = world.status()
    assert (status["revision"], status["wanted"], status["open"]) == (2, 18, 0)
    [revision] = status["revisions"]
    assert revision["changes"] == ["config: target.per_class 8 -> 11", "plan: +6 in 4 cells"]
    assert revision["committed_at"] == "2026-03-01T12:20:00+00:00"


def test_without_a_change_there_is_no_revision(world):
    world.start()
    files = set(world.storage.files)
    world.start()
    assert not [path for path in world.storage.files if path.startswith(REVISIONS_DIR)]
    assert read_log(world.storage).rules == Rules()
    assert len(set(world.storage.files) - files) == 2  # it was opened and closed


def test_a_lowered_target_asks_and_keeps_the_files_of_what_is_surplus(world, tmp_path):
    world.start()
    before = world.accepted()
    world.settings["target"]["per_class"] = 6
    files = dict(world.storage.files)
    with pytest.raises(UsageError, match=r"4 accepted images would leave .*per_class 8 -> 6") as refused:
        world.start(confirmed=False)
    assert "--yes" in refused.value.hint
    assert world.storage.files == files
    world.start()
    surplus = world.rows(reason="surplus")
    assert len(surplus) == 4
    assert {row["status"] for row in surplus} == {"rejected"}
    assert all(row["file_name"] in world.storage.files for row in surplus)
    assert not find_unneeded(world.storage)
    assert world.accepted() == before - {row["id"] for row in surplus}
    assert world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    assert (world.status()["open"], world.status()["short"]) == (0, 0)
    sound(world)


def test_what_was_surplus_comes_back_at_no_cost(world):
    world.start()
    before, candidates = world.accepted(), world.status()["candidates"]
    for per_class in (6, 3, 8):
        world.settings["target"]["per_class"] = per_class
        world.start()
        sound(world)
    assert (world.accepted(), world.status()["candidates"]) == (before, candidates)
    assert world.status()["revision"] == 4


def test_other_shares_move_images_between_cells(world, tmp_path):
    world.start()
    values = world.settings["facets"]["lighting"]["values"]
    values["dim"]["share"], values["harsh"]["share"] = 0.75, 0.25
    world.start()
    assert world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    sound(world)


@pytest.mark.parametrize("kill", range(1, 9))
def test_a_kill_at_any_commit_leaves_the_old_plan_or_the_new_one(world, tmp_path, monkeypatch, kill):
    monkeypatch.setattr("balancer.runs.rejudge.COMMIT_ROWS", 1)
    world.start()
    world.settings["target"]["per_class"] = 6
    world.put("basic/3.png", "picture 3")
    world.remove("basic/0.png")
    world.storage.left = kill
    with pytest.raises(Killed):
        world.start()
    world.storage.left = None
    assert check_run(world.storage).problems == ()
    assert world.status()["revision"] in (1, 2)
    world.start()
    assert world.status()["revision"] == 2
    assert world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    sound(world)


# ---- real images ---------------------------------------------------------------------------------


def test_real_images_are_added_removed_and_replaced(world, tmp_path):
    world.start()
    world.put("basic/9.png", "another picture")
    world.put("burnt/8.png", "another burnt picture")
    world.remove("basic/0.png")
    world.put("basic/1.png", "a better picture")
    with pytest.raises(UsageError, match="1 accepted image would leave"):
        world.start(confirmed=False)
    world.start()
    assert world.notes[-2:] == ["dataset: +2 -1 ~1", "plan: -1 in 1 cell"]
    real = {row["id"]: row for row in world.rows(source="real")}
    assert {row["id"] for row in real.values() if row["status"] == "accepted"} == {
        f"real/{name}" for name in world.images
    }
    gone, replaced = real["real/basic/0.png"], real["real/basic/1.png"]
    assert (gone["status"], gone["reason"], gone["file_name"]) == ("void", "removed", None)
    assert world.storage.files[replaced["file_name"]] == b"a better picture"
    assert world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    assert world.per_class() == {"basic": 8, "burnt": 8}
    sound(world)


def test_a_removed_image_that_comes_back_is_the_same_row_again(world):
    world.start()
    before = world.rows(source="real")
    world.remove("basic/0.png")
    world.start()
    world.put("basic/0.png", "picture 0")
    world.start()
    assert world.rows(source="real") == before
    assert world.status()["revision"] == 3
    sound(world)


def test_images_stay_in_their_split_whatever_becomes_of_others(world):
    world.settings["dataset"]["splits"] = {"train": 0.5, "test": 0.5}
    for number in range(3, 9):
        world.put(f"basic/{number}.png", f"picture {number}")
    world.start()
    before = {row["pixel_sha256"]: row["split"] for row in world.rows(source="real")}
    world.remove("basic/0.png")
    world.remove("basic/4.png")
    world.put("basic/renamed.png", "picture 4")
    world.put("basic/5.png", "picture 6")  # they change places
    world.put("basic/6.png", "picture 5")
    for number in range(20, 23):
        world.put(f"basic/{number}.png", f"picture {number}")
    world.start()
    after = {row["pixel_sha256"]: row["split"] for row in world.rows(source="real", status="accepted")}
    assert {after[picture] for picture in before.keys() & after.keys()} == {"train", "test"}
    assert all(after[picture] == split for picture, split in before.items() if picture in after)
    sound(world)


def test_an_accepted_image_that_a_new_real_one_shows_as_well_is_no_longer_accepted(world):
    world.start()
    copied = min(world.accepted())
    [phash] = [row["phash"] for row in world.rows(id=copied)]
    world.put("burnt/copied.png", "the same")
    world.phashes["the same"] = phash
    world.start()
    [copy_of_it] = world.rows(id=copied)
    assert (copy_of_it["reason"], copy_of_it["nearest_id"]) == ("near_copy", "real/burnt/copied.png")
    assert world.per_class() == {"basic": 8, "burnt": 8}
    sound(world)


def test_facet_values_of_real_images_are_compared_as_the_config_knows_them(world):
    world.values = {"basic/0.png": "dim", "basic/1.png": "dusk"}  # no value of the config
    world.start()
    assert [row["lighting"] for row in world.rows(source="real")] == ["dim", None, None, None]
    world.values["basic/0.png"] = "harsh"
    world.start()
    assert world.notes[-1] == "dataset: +0 -0 ~1"
    assert [row["lighting"] for row in world.rows(id="real/basic/0.png")] == ["harsh"]
    log = ManifestLog.open(world.storage, read_run(world.storage).schema(), world.run_id, now=lambda: NOON)
    [row] = world.rows(id="real/basic/2.png")
    log.commit_verdicts([row | {"lighting": "dusk"}])  # as an earlier version wrote it
    log.close("complete")
    world.start()
    assert world.status()["revision"] == 2
    sound(world)


def test_no_accepted_image_is_a_copy_of_a_new_image_of_the_test_split(world):
    world.settings["dataset"]["splits"] = {"train": 0.5, "test": 0.5}
    world.start()
    copied = min(world.accepted())
    [world.phashes["the same"]] = [row["phash"] for row in world.rows(id=copied)]
    before = world.status()["wanted"]
    world.put("burnt/copied.png", "the same")
    world.start()
    assert world.notes[-1] == "dataset: +1 -0 ~0"
    assert [(row["split"], row["status"]) for row in world.rows(id="real/burnt/copied.png")] == [
        ("test", "accepted")
    ]
    assert [row["reason"] for row in world.rows(id=copied)] == ["near_copy"]
    assert (world.status()["wanted"], world.status()["open"], world.status()["revision"]) == (before, 0, 1)
    sound(world)


def test_many_real_images_leave_only_if_that_is_meant(world):
    for number in range(3, 40):
        world.put(f"basic/{number}.png", f"picture {number}")
    world.settings["target"]["per_class"] = 50
    world.start()
    for number in range(3, 22):
        world.remove(f"basic/{number}.png")
    with pytest.raises(UsageError, match="19 of 41 real images are gone from the dataset") as refused:
        world.start(confirmed=False)
    assert "--yes" in refused.value.hint
    world.start()
    assert world.per_class()["basic"] == 50
    sound(world)


def test_a_copy_of_an_image_that_left_the_dataset_is_made_again(world, tmp_path):
    world.start(steps=0)
    copied = next(iter(sorted(world.fresh(tmp_path / "fresh").accepted())))
    info = read_run(world.storage)
    log = ManifestLog.open(world.storage, info.schema(), info.run_id, now=lambda: NOON)
    made = world.judged(copied.rpartition("-")[0], int(copied[-1]), info.run_id)
    nearest = {"nearest_id": "real/basic/0.png", "nearest_distance": 0, "nearest_similarity": 1.0}
    nothing = {"file_name": None, "sha256": None, "num_bytes": None}
    log.commit([made | {"status": "rejected", "reason": "near_copy"} | nearest | nothing])
    log.close("interrupted")
    world.remove("basic/0.png")
    world.start()
    assert copied in world.accepted()
    sound(world)


# ---- wordings and limits -------------------------------------------------------------------------


def test_other_wordings_are_taken_up_for_new_images(world):
    world.start()
    before = world.accepted()
    world.settings["classes"]["basic"]["prompts"] = ["a meal"]
    world.start(confirmed=False)
    assert world.notes[-2:] == [
        "config: classes.basic.prompts",
        "the new wordings hold for images that are still to be made",
    ]
    assert (world.accepted(), world.status()["revision"]) == (before, 2)


def test_a_threshold_in_the_config_is_applied_as_rejudge_applies_it(world):
    world.start()
    world.settings["verification"]["threshold"] = 0.75
    with pytest.raises(UsageError, match=r"would leave the dataset: config: .*threshold 0.6 -> 0.75"):
        world.start(confirmed=False)
    world.start()
    scores = [row["score"] for row in world.rows(source="synthetic", status="accepted", fallback=False)]
    assert min(scores) >= 0.75
    world.settings["verification"]["threshold"] = 0.5
    world.start(confirmed=False)
    assert world.per_class() == {"basic": 8, "burnt": 8}
    sound(world)


def test_a_change_that_rejudge_made_is_not_taken_back_by_the_config_file(world):
    world.start()
    apply(world.storage, ["verification.threshold=0.7"], now=lambda: NOON + datetime.timedelta(hours=9))
    with pytest.raises(UsageError, match="judged again under other rules") as refused:
        world.start()
    assert "--set verification.threshold=0.7" in refused.value.hint
    world.settings["verification"]["threshold"] = 0.7
    world.settings["target"]["per_class"] = 9
    world.start()
    assert read_log(world.storage).rules.overrides == {}  # the revision's config has it
    assert (
        read_run(world.storage).under(read_log(world.storage).rules).config["verification"]["threshold"]
        == 0.7
    )
    sound(world)


# ---- classes and facet values --------------------------------------------------------------------


def test_a_class_and_a_facet_value_come_and_go(world, tmp_path):
    world.start()
    before = world.accepted()
    world.settings["classes"]["mixed"] = {"prompts": ["mixed"]}
    world.settings["facets"]["lighting"]["values"]["dusk"] = {"prompts": ["dusk"]}
    world.put("mixed/0.png", "mixed picture")
    world.start()
    assert world.per_class() == {"basic": 8, "burnt": 8, "mixed": 8}
    assert world.accepted() == world.fresh(tmp_path / "fresh").accepted()
    sound(world)
    del world.settings["classes"]["mixed"]
    del world.settings["facets"]["lighting"]["values"]["dusk"]
    world.remove("mixed/0.png")
    with pytest.raises(UsageError, match=r"accepted images would leave .*classes\.mixed, .*dusk"):
        world.start(confirmed=False)
    world.start()
    assert world.accepted() == before
    assert {row["reason"] for row in world.rows(source="synthetic", **{"class": "mixed"})} >= {"surplus"}
    sound(world)


def test_a_run_of_an_earlier_version_keeps_its_classes(world):
    world.format = 2
    world.start()
    world.settings["classes"]["mixed"] = {"prompts": ["mixed"]}
    with pytest.raises(UsageError, match=r"classes\.mixed would change them: an earlier version began it"):
        world.start()
    del world.settings["classes"]["mixed"]
    world.settings["target"]["per_class"] = 9
    assert world.start() == "complete"
    sound(world)


# ---- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [False, True])
def test_every_reader_has_the_plan_of_the_last_revision(world, tmp_path, compacted):
    world.start()
    world.settings["target"]["per_class"] = 6
    world.settings["classes"]["mixed"] = {"prompts": ["mixed"]}
    world.remove("basic/0.png")
    world.start()
    if compacted:
        assert compact(world.storage)
    manifest = manifest_in(world.storage)
    assert (manifest.run.revision, manifest.run.wanted) == (2, 15)
    assert list(manifest.run.config["classes"]) == ["basic", "burnt", "mixed"]
    assert manifest.count_by("class").to_pylist() == [
        {"class": name, "count": 6} for name in ("basic", "burnt", "mixed")
    ]
    surplus = manifest.to_table(["id"], "reason = 'surplus'", status="rejected")
    assert set(surplus["id"].to_pylist()) == {row["id"] for row in world.rows(reason="surplus")} != set()
    facts = gather_facts(manifest.rows, world.status())
    assert [(count.name, count.real, count.generated, count.target) for count in facts.classes] == [
        ("basic", 2, 4, 6), ("burnt", 1, 5, 6), ("mixed", 0, 6, 6),
    ]  # fmt: skip
    assert (facts.wanted, sum(cell.accepted for cell in facts.cells)) == (15, 15)
    sound(world)


def test_a_revision_whose_file_is_lost_or_changed_is_an_error_that_names_it(world, monkeypatch):
    world.start()
    world.settings["target"]["per_class"] = 9
    world.start()
    [path] = [path for path in world.storage.files if path.startswith(REVISIONS_DIR)]
    data = world.storage.files.pop(path)
    with pytest.raises(ManifestError, match=f"{path}: it is missing, and the log names it"):
        world.status()
    assert path in check_run(world.storage).problems[0].detail
    world.storage.files[path] = data.replace(b"9", b"8")
    with pytest.raises(ManifestError, match=f"{path}: its content is not what was written"):
        world.status()
    world.storage.files[path] = data
    sound(world)
    monkeypatch.setattr("balancer.manifest.runfile.MAX_REVISIONS", 0)
    with pytest.raises(ManifestError, match="there are 1 files, over the limit of 0"):
        world.status()


def test_status_and_report_tell_of_the_last_revision(world):
    world.start()
    world.settings["target"]["per_class"] = 9
    world.start()
    folder = world.folder / "copy"
    for path, data in world.storage.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    shown = CliRunner().invoke(main, ["status", str(folder)])
    assert shown.exit_code == 0, shown.output
    expected = (
        "plan revision 2 (2026-03-01T12:20:00+00:00): config: target.per_class 8 -> 9; plan: +2 in 2 cells"
    )
    assert expected in " ".join(shown.stderr.split())
    assert CliRunner().invoke(main, ["report", str(folder)]).exit_code == 0
    report = (folder / "report.html").read_text()
    assert (
        "Plan revision 2 (2026-03-01T12:20:00+00:00): config: target.per_class 8 -&gt; 9; plan: +2" in report
    )


# ---- any history ---------------------------------------------------------------------------------

HISTORIES = int(os.environ.get("BALANCER_GROWTH_HISTORIES", "10"))

NAMES = st.sampled_from([f"{name}/{number}.png" for name in ("basic", "burnt") for number in range(4)])
EDITS = st.one_of(
    st.tuples(st.just("per_class"), st.integers(2, 7)),
    st.tuples(st.just("share"), st.sampled_from([0.25, 0.5, 0.75])),
    st.tuples(st.just("threshold"), st.sampled_from([0.55, 0.6, 0.75])),
    st.tuples(st.just("prompt"), st.sampled_from(["a meal", "food"])),
    st.tuples(st.just("class"), st.booleans()),
    st.tuples(st.just("value"), st.booleans()),
    st.tuples(st.just("put"), NAMES, st.integers(0, 9)),
    st.tuples(st.just("remove"), NAMES),
)
KILLS = st.one_of(st.none(), st.integers(1, 12))


def put(section: dict[str, Any], name: str, is_there: bool) -> None:
    section.pop(name, None)
    if is_there:
        section[name] = {"prompts": [name]}


def edit(world: World, kind: str, *values: Any) -> None:
    if kind == "per_class":
        world.settings["target"]["per_class"] = values[0]
    elif kind == "share":
        lighting = world.settings["facets"]["lighting"]["values"]
        if "dusk" not in lighting:  # all of them have a share, or none has
            lighting["dim"]["share"], lighting["harsh"]["share"] = values[0], 1 - values[0]
    elif kind == "threshold":
        world.settings["verification"]["threshold"] = values[0]
    elif kind == "prompt":
        world.settings["classes"]["basic"]["prompts"] = [values[0]]
    elif kind == "class":
        put(world.settings["classes"], "mixed", values[0])
    elif kind == "value":
        lighting = world.settings["facets"]["lighting"]["values"]
        lighting["dim"]["share"] = lighting["harsh"]["share"] = None
        put(lighting, "dusk", values[0])
    elif kind == "put":
        world.put(values[0], f"picture {values[0].split('/')[0]} {values[1]}")
    elif values[0] in world.images:
        world.remove(values[0])


@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # cutting a failure down takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(st.tuples(st.lists(EDITS, min_size=1, max_size=3), KILLS), min_size=1, max_size=5))
def test_any_history_ends_as_a_run_that_began_so(history, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("balancer.runs.rejudge.COMMIT_ROWS", 2)
    folder = tmp_path_factory.mktemp("history")
    world = World(folder / "dataset")
    world.put("basic/0.png", "picture basic 0")
    world.put("burnt/0.png", "picture burnt 0")
    for edits, kill in [([], None), *history]:
        for change in edits:
            edit(world, *change)
        world.storage.left = kill
        with contextlib.suppress(Killed):
            world.start()
        assert check_run(world.storage).problems == ()
    world.storage.left = None
    assert world.start() == "complete"
    fresh = world.fresh(folder / "fresh")
    assert world.per_cell() == fresh.per_cell()
    assert world.status()["wanted"] == world.status()["accepted"] == fresh.status()["wanted"]
    assert {row["id"] for row in world.rows(source="real", status="accepted")} == {
        row["id"] for row in fresh.rows(source="real", status="accepted")
    }
    if not any(kind == "threshold" for edits, _ in history for kind, *_ in edits):
        assert world.accepted() == fresh.accepted()
    sound(world)
