"""The loop on pools without Ray: what is accepted, whatever the order in which work comes back or is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectLostError

from actors.loop.collapse import CollapseWatch
from actors.loop.simulated_pool import LocalEngine, LocalPool, simulated_driver
from actors.models.simulated import EMBEDDING_DIM, SimulatedGenerator, SimulatedVerifier
from actors.models.writer import Writer
from balancer.config.schema import Config
from balancer.errors import InterruptedRun
from balancer.manifest import ManifestLog, create_run
from balancer.manifest.maintenance.fsck import fsck
from balancer.planning.plan import make_plan
from balancer.process.signals import StopSignal
from balancer.runs.resume import describe_run, restore_schedule
from balancer.storage import DiskFullError, open_storage

MODELS: dict[str, dict[str, Any]] = {
    "generator": {"model": "simulated", "revision": None},
    "verifier": {"model": "simulated", "revision": None, "embedding_dim": EMBEDDING_DIM},
}


def make_config(acceptance=0.5, **sections):
    base = {
        "seed": 5,
        "dataset": {"path": "none"},
        "classes": {"cat": {"prompts": ["a cat"]}, "dog": {"prompts": ["a dog"]}},
        "facets": {"light": {"values": {"day": {"prompts": ["day"]}, "night": {"prompts": ["night"]}}}},
        "target": {"per_class": 15},
        "generation": {"width": 64, "height": 64, "batch_size": 4},
        "actors": {"kind": "simulated"},
        "attempts": {"max": 4},
        "planning": {"acceptance": acceptance},
        "output": {"commit_seconds": 0.1},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return Config.model_validate(base)


BATCH_S = 2.0


def generator_of(size, kind=SimulatedGenerator):
    """Says that a batch takes its time; that it passes is the engine's business."""
    return kind(size, 64, 64, BATCH_S, sleep=lambda seconds: None)


class Trial:
    """One start of a run in `folder`."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        generators=2,
        fails=lambda: None,
        spread=lambda: 0.0,
        collapse=None,
        reviewed=False,
    ):
        self.storage = open_storage(folder, create=True)
        self.notes: list[str] = []
        info = create_run(self.storage, describe_run(config, make_plan(config, {}), MODELS))
        self.log = ManifestLog.open(self.storage, info.schema(), info.run_id)
        self.schedule = restore_schedule(info, config, self.log.table(), None)
        self.engine = LocalEngine(spread=spread)
        self.stop = StopSignal()
        size = config.generation.batch_size
        workers = {
            "generator": (generator_of(size), generators, BATCH_S),
            "verifier": (SimulatedVerifier(config.properties(), config.planning.acceptance), 1, 0.1),
            "writer": (Writer(self.storage.uri), 1, 0.1),
        }
        self.pools = [
            LocalPool(kind, worker, count, self.engine, service_s, fails)
            for kind, (worker, count, service_s) in workers.items()
        ]
        self.driver = simulated_driver(
            config,
            info,
            self.schedule,
            self.log,
            self.pools,
            stop=self.stop,
            note=self.notes.append,
            collapse=collapse,
            storage=self.storage if reviewed else None,
        )

    def run(self):
        return self.driver.run()

    def rows(self):
        return self.log.table().to_pylist()

    def accepted(self):
        return sorted(row["id"] for row in self.rows() if row["status"] == "accepted")

    def closed_and_sound(self, state):
        self.log.close(state)
        return fsck(self.storage) == []


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What one generator accepts if nothing goes wrong, by acceptance."""
    known = {}

    def of(acceptance):
        if acceptance not in known:
            trial = Trial(tmp_path_factory.mktemp("run"), make_config(acceptance), generators=1)
            trial.run()
            known[acceptance] = trial.accepted()
        return known[acceptance]

    return of


@pytest.mark.parametrize("seed", range(25))
def test_what_is_accepted_depends_on_nothing_but_the_candidates(seed, reference, tmp_path):
    chance = random.Random(seed)
    acceptance = chance.choice([0.3, 0.5, 0.9])
    lost = ObjectLostError("0" * 56, None, "")
    trial = Trial(
        tmp_path,
        make_config(acceptance, generation={"batch_size": chance.choice([1, 3, 4, 16])}),
        generators=chance.choice([1, 3, 8, 40]),
        fails=lambda: chance.choice([lost, RuntimeError("died")]) if chance.random() < 0.1 else None,
        spread=lambda: chance.choice([0.0, chance.random(), 30 * chance.random()]),
    )
    state = trial.run()
    assert trial.accepted() == reference(acceptance)
    ids = Counter(row["id"] for row in trial.rows())
    assert ids.most_common(1)[0][1] == 1
    assert trial.closed_and_sound(state)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_that_is_cut_off_and_begun_again_accepts_the_same(seed, reference, tmp_path):
    chance = random.Random(seed)
    while True:
        generators = chance.choice([1, 5, 20])
        trial = Trial(tmp_path, make_config(), generators=generators, spread=lambda: 9 * chance.random())
        turns = chance.randint(3, 60)
        while turns > 0 and trial.driver.step():
            turns -= 1
        if turns > 0:
            trial.driver.committer.flush()
            break
        trial.driver.committer.close()  # what was not committed by now is lost
    assert Trial(tmp_path, make_config()).accepted() == reference(0.5)


# ---- attempts ahead ------------------------------------------------------------------------------


def test_the_last_images_do_not_wait_for_a_whole_ladder_while_generators_are_idle(tmp_path):
    few = {"target": {"per_class": 2}, "attempts": {"max": 9}}
    trial = Trial(tmp_path, make_config(0.2, **few), generators=40)
    trial.run()
    deepest = max(row["attempt"] for row in trial.rows())
    assert deepest >= 4
    assert trial.engine.now_s < 2 * 2.5  # the first batch, and all that was made ahead of it


def test_what_is_made_ahead_and_not_needed_leaves_no_row(tmp_path):
    trial = Trial(tmp_path, make_config(0.5), generators=40)
    trial.run()
    speculation = trial.schedule.speculation
    assert speculation.unused > 0
    attempts = Counter(row["slot"] for row in trial.rows())
    accepted = {row["slot"]: row["attempt"] for row in trial.rows() if row["status"] == "accepted"}
    assert all(attempts[slot] == attempt for slot, attempt in accepted.items())


def test_an_attempt_that_needs_the_reason_before_is_never_made_ahead(tmp_path):
    rungs = {"max": 4, "rungs": [{}, {"strengthen": True}]}
    trial = Trial(tmp_path, make_config(0.3, attempts=rungs), generators=40)
    trial.run()
    assert trial.schedule.speculation.started == 0
    assert any("strengthen" in " ".join(row["changes"]) for row in trial.rows())


def test_a_budget_is_never_spent_on_attempts_ahead_that_others_may_need(tmp_path):
    tight = make_config(0.3, budget={"max_candidates": 70})
    trial = Trial(tmp_path / "tight", tight, generators=40)
    assert trial.run() == "budget"
    assert trial.schedule.candidates == 70
    assert trial.schedule.speculation.started == 0
    ample = Trial(tmp_path / "ample", make_config(0.3, budget={"max_candidates": 999}), generators=40)
    ample.run()
    assert ample.schedule.speculation.started > 0
    assert ample.schedule.candidates + ample.schedule.speculation.unused <= 999


def test_all_candidates_of_one_call_share_their_guidance_also_ahead(tmp_path):
    rungs = {"max": 4, "rungs": [{}, {"guidance": 9}, {"guidance": 3}]}
    trial = Trial(tmp_path, make_config(0.3, attempts=rungs), generators=12)
    calls = []
    submit = trial.pools[0].submit

    def look(actor, method, requests, guidance, **more):
        calls.append({rung.guidance for rung in more["job"].rungs} | {guidance})
        submit(actor, method, requests, guidance, **more)

    trial.pools[0].submit = look
    trial.run()
    assert all(len(guidances) == 1 for guidances in calls)
    assert set.union(*calls) == {7.5, 9.0, 3.0}
    assert trial.schedule.speculation.used > 0


# ---- a generator that makes smaller batches ------------------------------------------------------


def test_a_generator_that_ran_out_of_memory_gets_smaller_batches_and_rows_say_so(tmp_path):
    class Halved(SimulatedGenerator):
        def begin(self, requests, guidance):
            self.batch_size = 2 if len(requests) > 2 or self.batch_size == 2 else self.batch_size
            return super().begin(requests, guidance)

    trial = Trial(tmp_path, make_config(1.0), generators=1)
    trial.pools[0].worker = generator_of(4, Halved)
    sizes = []
    submit = trial.pools[0].submit
    trial.pools[0].submit = lambda *told, **more: (sizes.append(len(told[2])), submit(*told, **more))
    trial.run()
    assert sizes[:2] == [4, 4]  # the second one was handed out before the first came back
    assert set(sizes[2:-1]) == {2}
    assert {row["batch_size"] for row in trial.rows()} == {2}


# ---- a full disk ---------------------------------------------------------------------------------


class FullDisk:
    """Refuses to write for some time."""

    def __init__(self, trial, monkeypatch, until_s):
        self.refused = 0
        for name in ("publish", "create"):
            real = getattr(type(trial.storage), name)

            def write(storage, path, data, real=real):
                if trial.engine.now_s < until_s:
                    self.refused += 1
                    raise DiskFullError(f"cannot write {path}: no space left on device")
                return real(storage, path, data)

            monkeypatch.setattr(type(trial.storage), name, write)


def test_a_run_waits_while_the_disk_is_full_and_goes_on_when_there_is_room(tmp_path, monkeypatch, reference):
    trial = Trial(tmp_path, make_config())
    disk = FullDisk(trial, monkeypatch, until_s=100.0)
    state = trial.run()
    assert disk.refused > 2
    assert trial.engine.now_s > 100
    assert trial.accepted() == reference(0.5)
    assert [note for note in trial.notes if "no space left" in note or "space again" in note][::2] == [
        note for note in trial.notes if "waiting up to 600 s for space (output.disk_full_wait_s)" in note
    ]
    assert trial.notes.count("there is space again") >= 1
    assert trial.closed_and_sound(state)


def test_a_run_does_not_wait_for_room_for_ever(tmp_path, monkeypatch):
    trial = Trial(tmp_path, make_config(output={"disk_full_wait_s": 60}))
    disk = FullDisk(trial, monkeypatch, until_s=1e9)
    with pytest.raises(DiskFullError):
        trial.run()
    assert 60 < trial.engine.now_s < 200
    assert disk.refused < 40
    monkeypatch.undo()
    assert [path for path in trial.storage.list("") if path.endswith(".tmp")] == []


# ---- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stop_commits_what_was_accepted_and_makes_nothing_new(tmp_path, signals):
    trial = Trial(tmp_path, make_config(), generators=3)
    for _ in range(8):
        trial.driver.step()
    for _ in range(signals):
        trial.stop(2)
    made = trial.schedule.candidates
    with pytest.raises(InterruptedRun):
        trial.run()
    assert trial.schedule.candidates >= made
    assert len(trial.schedule.accepted) == len(trial.accepted()) < trial.schedule.wanted
    assert np.isfinite(trial.engine.now_s)


def test_a_run_stops_once_a_class_has_collapsed_with_everything_accepted_so_far_committed(tmp_path):
    noise = np.random.default_rng(0).standard_normal((30, EMBEDDING_DIM))
    watch = CollapseWatch.over(("cat", (20 + row).astype("<f2").tobytes()) for row in noise)
    trial = Trial(tmp_path, make_config(target={"per_class": 80}), generators=3, collapse=watch)
    assert trial.run() == "interrupted"
    assert trial.driver.collapsed.startswith("class cat has collapsed: recall ")
    assert f"stopping: {trial.driver.collapsed} (attempts.stop_when_collapsed)" in trial.notes
    cats = [name for name in trial.accepted() if name.startswith("cat/")]
    assert 20 <= len(cats) < 80
    assert len(trial.accepted()) == len(trial.schedule.accepted)
