"""Rungs, wordings and cells that are given up, in runs with simulated actors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.cluster.pool import Pool
from actors.loop.examples import EXAMPLES_OF_A_CELL
from actors.run import Reporter, run
from balancer.config.schema import Config
from balancer.manifest import read_status
from balancer.manifest.rows import utc_now
from balancer.run_manifest import open_manifest
from balancer.storage import open_storage

WANTED = 40

RUNGS = [
    {},
    {"next_wording": False, "strengthen": True, "guidance": 9},
    {"strengthen": True, "guidance": 9, "fallback_prompts": True, "threshold": 0.5},
]


@pytest.fixture
def make_config(tmp_path, here):
    (tmp_path / "dataset" / "cat").mkdir(parents=True)

    def make(acceptance=0.5, wanted=WANTED, **sections):
        base = {
            "seed": 5,
            "dataset": {"path": str(tmp_path / "dataset")},
            "classes": {"cat": {"prompts": ["a cat", "one cat"], "fallback_prompts": ["plainly a cat"]}},
            "facets": {"light": {"values": {"day": {"prompts": ["day", "noon"]}}}},
            "target": {"per_class": wanted},
            "generation": {"width": 64, "height": 64, "batch_size": 4},
            "actors": {"kind": "simulated", "generators": 2},
            "planning": {"acceptance": acceptance},
            "output": {"commit_seconds": 0.01},
        }
        return Config.model_validate(base | sections)

    return make


def passing_at(rates):
    """Let class wordings pass at rates of their own."""
    return lambda usual: replace(usual, verifier=replace(usual.verifier, pass_rates=rates))


def rows_of(out):
    """Judged candidates by id."""
    table = open_manifest(out).to_table(status="all", filter="source = 'synthetic'")
    return {row["id"]: row for row in table.to_pylist()}


def test_the_rows_say_what_each_rung_changed(make_config, tmp_path):
    run(make_config(attempts={"max": 3, "rungs": RUNGS}), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    for row in rows.values():
        before = rows.get(f"{row['slot']}-{row['attempt'] - 1}")
        strengthened = [f"strengthen {before['reason']}"] if before else []
        # The class has one fallback prompt, so that there is no second wording of it to add.
        again = [change for change in strengthened if change != "strengthen class"]
        expected = {
            1: ([], 7.5, 0.6, False),
            2: ([*strengthened, "guidance 9"], 9, 0.6, False),
            3: (
                ["wording 2", *again, "guidance 9", "fallback prompts", "threshold 0.5"],
                9,
                0.5,
                True,
            ),
        }[row["attempt"]]
        if row["attempt"] == 2 and strengthened == ["strengthen light"]:
            assert row["prompt"].split(", ")[:2] in (["day", "noon"], ["noon", "day"])
        assert (row["changes"], row["guidance"], row["threshold"], row["fallback"]) == expected
    assert {row["attempt"] for row in rows.values()} == {1, 2, 3}
    assert {row["wording"] for row in rows.values()} == {0, 1, 2}


def test_a_call_of_the_generator_has_one_guidance_and_that_of_its_rows(make_config, tmp_path, monkeypatch):
    calls = []
    submit = Pool.submit

    def look(pool, actor, method, *arguments, job, **settings):
        if method == "begin":
            calls.append((job.candidates, arguments[1]))
        return submit(pool, actor, method, *arguments, job=job, **settings)

    monkeypatch.setattr(Pool, "submit", look)
    run(make_config(attempts={"max": 3, "rungs": RUNGS}), tmp_path / "run")
    asked = {candidate.id: guidance for candidates, guidance in calls for candidate in candidates}
    rows = rows_of(tmp_path / "run")
    assert {id: asked[id] for id in rows} == {id: row["guidance"] for id, row in rows.items()}
    assert set(asked.values()) == {7.5, 9.0}


def test_a_run_that_was_cut_off_asks_for_the_same_images_as_one_that_was_not(make_config, tmp_path):
    attempts = {"max": 3, "rungs": RUNGS}
    run(make_config(attempts=attempts), tmp_path / "whole")
    for most in (9, 25, 40):
        run(make_config(attempts=attempts, budget={"max_candidates": most}), tmp_path / "cut")
    run(make_config(attempts=attempts), tmp_path / "cut")
    whole, cut = (
        {id: (row["prompt"], row["changes"], row["status"]) for id, row in rows_of(tmp_path / name).items()}
        for name in ("whole", "cut")
    )
    assert cut == whole


def test_a_cell_of_which_nothing_passes_is_given_up_and_the_run_ends_short(make_config, tmp_path):
    out, notes = tmp_path / "run", []
    config = make_config(acceptance=1e-9, wanted=90, attempts={"max": 99, "give_up_below": 0.05})
    result = run(config, out, reporter=Reporter(note=notes.append))
    assert (result.state, result.accepted, result.short) == ("short", 0, 90)
    assert result.candidates < 59 + 3 * 2 * 2 * 4  # 59 failures tell; the rest was under way
    [(cell, tally)] = result.given_up.items()
    assert (cell, tally.accepted, tally.candidates) == ("cat/day", 0, result.candidates)
    assert sum("cat/day is given up: 0 of" in note for note in notes) == 1
    listed = f"cat/day: 90, given up: 0 of {result.candidates} candidates passed"
    assert sum(listed in note for note in notes) == 1
    status = read_status(open_storage(out, create=False), utc_now())
    assert (status["state"], status["short"]) == ("short", 90)
    assert status["given_up"] == {"cat/day": {"accepted": 0, "candidates": result.candidates}}
    assert run(config, out) == result


def test_of_a_cell_in_which_nothing_passes_examples_of_its_own_are_kept(make_config, tmp_path):
    few = {"commit_seconds": 0.01, "rejected_per_reason": 1}
    attempts = {"max": 99, "give_up_below": 0.05}
    run(make_config(acceptance=1e-9, wanted=90, attempts=attempts, output=few), tmp_path / "run")
    kept = open_storage(tmp_path / "run", create=False).list("rejected")
    reasons = {row["reason"] for row in rows_of(tmp_path / "run").values()}
    assert len(kept) == len(reasons) + EXAMPLES_OF_A_CELL
    none = {"commit_seconds": 0.01, "rejected_per_reason": 0}
    run(make_config(acceptance=1e-9, wanted=90, attempts=attempts, output=none), tmp_path / "none")
    assert open_storage(tmp_path / "none", create=False).list("rejected") == []


def test_a_lower_floor_takes_a_cell_up_again(make_config, tmp_path):
    hopeless, patient = ({"max": 2, "give_up_below": floor} for floor in (0.05, 0))
    first = run(make_config(acceptance=1e-9, wanted=90, attempts=hopeless), tmp_path / "run")
    config = make_config(acceptance=1e-9, wanted=90, attempts=patient)
    second = run(config, tmp_path / "run")
    assert first.candidates < second.candidates == 180
    assert second.given_up == {}


def test_adaptive_prefers_the_wording_that_passes_and_remembers_it_after_a_restart(make_config, tmp_path):
    rates = passing_at({0: 0.0, 1: 1.0})
    out, notes = tmp_path / "run", []
    attempts = {"max": 9, "adaptive": True}
    actors_ = {"kind": "simulated", "generators": 1}
    budget = {"max_candidates": 40}
    run(make_config(wanted=60, attempts=attempts, actors=actors_, budget=budget), out, change_workers=rates)
    first = rows_of(out)
    run(
        make_config(wanted=60, attempts=attempts, actors=actors_),
        out,
        reporter=Reporter(note=notes.append),
        change_workers=rates,
    )
    second = [row for id, row in rows_of(out).items() if id not in first]
    assert {row["wording"] for row in first.values()} == {0, 1}
    assert len(second) >= 20
    assert {row["wording"] for row in second} == {1}
    assert sum("attempts.adaptive" in note for note in notes) == 1
