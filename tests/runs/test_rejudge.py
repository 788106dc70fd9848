"""Judging again from the rows alone: what changes, what is committed, and what the next run makes of it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from actors.run import run
from balancer import open_manifest
from balancer.cells import Candidate, Cell
from balancer.cli import main
from balancer.config.schema import Config
from balancer.errors import ConfigError, FencedError, StorageError, UsageError
from balancer.manifest import check_run, read_log, read_run
from balancer.manifest.layout import LOG_DIR
from balancer.manifest.rows import revoked
from balancer.manifest.rules import Rules, as_settings
from balancer.runs.rejudge import apply, new_verdicts, read_measurement, read_nearest, rejudge
from balancer.runs.resume import check_unchanged, effective_config
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.schedule import Schedule
from balancer.storage import open_storage
from balancer.verification.verdict import criteria_for, judge
from tests.manifest_samples import (
    CONFIG,
    MemoryStorage,
    at,
    image_bytes,
    real,
    rejected,
    row,
    run_info,
    start,
)
from tests.whole import test_run

dataset, make_config = test_run.dataset, test_run.make_config  # fixtures
accepted_ids = test_run.accepted_ids

CELL = Cell("basic", (("lighting", "dim"),))
CELLS = {CELL.key: CELL}
SLOT = f"{CELL.key}/0000"
ONE, TWO, THREE = (f"{CELL.key}/{index:04d}" for index in range(3))
MODELS = {
    "generator": {"model": "embedded", "revision": None},
    "verifier": {"model": "embedded", "revision": None, "embedding_dim": 4},
}


def config(threshold: float = 0.6, **sections: Any) -> Config:
    changed = CONFIG["verification"] | {"threshold": threshold} | sections.pop("verification", {})
    return Config.model_validate(CONFIG | {"verification": changed} | sections)


def made(attempt: int, score: float, status: str = "rejected", **changes: Any) -> dict[str, Any]:
    """A candidate of the one slot; only accepted ones have an image, unless `changes` say so."""
    kind = row if status == "accepted" else rejected
    values = {"scores": {"class": 1.0, "lighting": score}, "score": score, "status": status}
    nothing_known = dict.fromkeys(
        "reason unsafe pixel_sha256 nearest_id nearest_distance nearest_similarity review unjudged".split()
    )
    return nothing_known | kind(SLOT, attempt) | values | changes


def kept(attempt: int, score: float, reason: str = "lighting", **changes: Any) -> dict[str, Any]:
    """A candidate that was accepted and then revoked."""
    return revoked(made(attempt, score, "accepted"), reason) | changes


def after(
    rows: list[dict[str, Any]], judged_by: Config | None = None, there: bool = True
) -> dict[int, tuple[str, str | None]]:
    """Status and reason of the attempts that changed."""
    pixels = {row["id"]: row["pixel_sha256"] for row in rows}
    found = new_verdicts(
        rows, CELLS, judged_by or config(), lambda row: read_nearest(row, pixels), lambda path: there
    )
    return {change.candidate.attempt: (change.status, change.reason) for change in found}


# ---- the verdicts of a slot ----------------------------------------------------------------------


def test_an_image_below_the_new_threshold_is_revoked_for_its_weakest_property():
    assert after([made(1, 0.65, "accepted")], config(0.7)) == {1: ("rejected", "lighting")}


def test_an_image_that_still_passes_stays():
    assert after([made(1, 0.3), made(2, 0.75, "accepted")], config(0.7)) == {}


def test_a_revoked_image_that_passes_again_is_restored_from_its_file():
    assert after([kept(1, 0.65)]) == {1: ("accepted", None)}


def test_a_revoked_image_whose_file_is_gone_is_made_again():
    assert after([kept(1, 0.65)], there=False) == {1: ("void", None)}


def test_the_lowest_attempt_that_passes_by_now_is_made_again():
    assert after([made(1, 0.3), made(2, 0.55), made(3, 0.5)], config(0.5)) == {2: ("void", None)}


def test_an_accepted_image_stays_though_a_lower_attempt_without_image_passes_by_now():
    assert after([made(1, 0.55), made(2, 0.75, "accepted")], config(0.5)) == {}


def test_an_image_that_was_kept_is_restored_though_a_lower_attempt_without_image_passes_by_now():
    assert after([made(1, 0.55), kept(2, 0.65)], config(0.5)) == {2: ("accepted", None)}


def test_the_lowest_passing_attempt_whose_image_was_kept_takes_the_place_of_a_higher_one():
    rows = [kept(1, 0.65), made(2, 0.75, "accepted")]
    assert after(rows) == {1: ("accepted", None), 2: ("rejected", "superseded")}


def test_a_void_candidate_that_fails_again_is_rejected_again():
    assert after([made(1, 0.55, "void", reason=None)]) == {1: ("rejected", "lighting")}


def test_a_void_candidate_stays_void_while_it_passes():
    assert after([made(1, 0.55, "void", reason=None)], config(0.5)) == {}


def test_each_attempt_is_held_to_the_threshold_of_its_rung():
    rungs = [{"threshold": 0.8}, {"threshold": 0.5}]
    by_rung = config(attempts={"max": 2, "rungs": rungs, "fallback": {"threshold": 0.3}})
    assert after([made(1, 0.7, "accepted")], by_rung) == {1: ("rejected", "lighting")}
    assert after([made(1, 0.7), made(2, 0.7)], by_rung) == {2: ("void", None)}
    assert after([made(1, 0.35), made(2, 0.35), made(3, 0.35)], by_rung) == {3: ("void", None)}


FLAWS = [
    ("overexposed", {"brightness": 0.9}, {"brightness": (0.02, 0.8)}),
    ("underexposed", {"brightness": 0.1}, {"brightness": (0.2, 0.8)}),
    ("flagged", {"unsafe": 0.4}, {"safety": {"model": "m", "max_unsafe": 0.3}}),
    (
        "near_copy",
        {"nearest_id": "real/a.png", "nearest_distance": 8, "nearest_similarity": 0.97},
        {"copies": {"max_distance": 8, "min_similarity": 0.95}},
    ),
]


@pytest.mark.parametrize(("reason", "numbers", "limits"), FLAWS)
def test_every_limit_is_judged_by_the_number_in_the_row(reason, numbers, limits):
    accepted = made(1, 0.75, "accepted", **numbers)
    assert after([accepted]) == {}
    assert after([accepted], config(verification=limits)) == {1: ("rejected", reason)}
    assert after([kept(1, 0.75, reason, **numbers)], config(verification=limits)) == {}
    assert after([kept(1, 0.75, reason, **numbers)]) == {1: ("accepted", None)}


def test_the_brightness_of_a_facet_value_is_judged():
    facets = json.loads(json.dumps(CONFIG["facets"]))
    facets["lighting"]["values"]["dim"]["brightness"] = [0.0, 0.4]
    assert after([made(1, 0.75, "accepted")], config(facets=facets)) == {1: ("rejected", "overexposed")}


def test_a_property_that_is_not_judged_any_more_rejects_nothing():
    unjudged = config(verification={"unjudged": ("lighting",)})
    assert after([kept(1, 0.1)], unjudged) == {1: ("accepted", None)}


@pytest.mark.parametrize(
    ("nearest_id", "reason"), [("real/a.png", "overexposed"), ("holdout/a.png", "duplicate")]
)
def test_a_duplicate_stays_one_whatever_the_limits(nearest_id, reason):
    same = {"nearest_id": nearest_id, "nearest_distance": 0, "nearest_similarity": 0.99, "pixel_sha256": "5"}
    loose = config(verification={"copies": {"max_distance": 0, "min_similarity": 1.0}})
    original = made(9, 0.9, "accepted", id="real/a.png", slot=TWO, pixel_sha256="5")
    assert after([original, kept(1, 0.75, reason, **same)], loose) == {}


def test_a_near_copy_of_another_candidate_is_restored_only_by_the_limits_on_copies():
    copied = {"nearest_id": f"{TWO}-1", "nearest_distance": 4, "nearest_similarity": 0.99}
    assert after([kept(1, 0.75, "near_copy", **copied)], config(0.3)) == {}
    loose = config(verification={"copies": {"max_distance": 3, "min_similarity": 0.98}})
    assert after([kept(1, 0.75, "near_copy", **copied)], loose) == {1: ("accepted", None)}


@pytest.mark.parametrize("score", [0.1, 0.6, 0.7, 0.9, float("nan")])
def test_the_same_rules_give_the_same_verdict_to_the_last_bit(score):
    storage = MemoryStorage()
    criteria = criteria_for(CELL, score, config())
    log = start(storage)
    log.commit([made(1, score, "accepted", brightness=0.3, unsafe=0.1)])
    (stored,) = log.table().to_pylist()
    verdict = judge(read_measurement(stored, CELL), CELL, criteria)
    assert (verdict.accepted, verdict.scores["class"]) == (score == score, 1.0)


# ---- what rows say of the rules they are judged by ------------------------------------------------


def told(storage: Any) -> dict[str, tuple[Any, ...]]:
    """Of each row: reason, score, threshold, unjudged."""
    rows = read_log(storage).table.to_pylist()
    return {row["id"]: (row["reason"], row["score"], row["threshold"], row["unjudged"]) for row in rows}


def judged(storage: Any, *settings: str, minutes: float = 60) -> Any:
    found = apply(storage, settings, now=lambda: at(minutes))
    assert check_run(storage).problems == ()
    return found


def test_every_judged_row_has_the_threshold_it_was_last_judged_by():
    storage = sample_run(row(ONE), rejected(TWO), row(TWO, 2), real("a.png"))
    for minutes, limit in ((60, 0.7), (61, 0.9), (62, 0.65)):
        judged(storage, f"verification.threshold={limit}", minutes=minutes)
        limits = {row_id: row[2] for row_id, row in told(storage).items()}
        assert limits == {f"{ONE}-1": limit, f"{TWO}-1": limit, f"{TWO}-2": limit, "real/a.png": None}


def test_rows_brought_up_to_date_are_no_changed_verdicts():
    storage = sample_run(row(ONE), rejected(TWO))
    found = judged(storage, "verification.threshold=0.7")
    assert (len(found.changes), found.updated, len(found.rewritten)) == (0, 2, 2)
    found = judged(storage, "verification.threshold=0.8", minutes=61)
    assert (len(found.changes), found.updated) == (1, 1)


def test_rows_that_tell_of_the_rules_already_are_not_written_again():
    storage = sample_run(row(ONE), rejected(TWO))
    judged(storage, "verification.threshold=0.7")
    assert rejudge(storage, ["verification.brightness=[0.1, 0.9]"]).rewritten == ()


def test_rows_of_other_limits_stay_as_they_are_if_no_rule_changes():
    storage = sample_run(row(ONE, threshold=0.7), rejected(TWO, threshold=0.4, reason="class"))
    files = dict(storage.files)
    assert not apply(storage, ["verification.threshold=0.6"], now=lambda: at(60)).pending
    assert storage.files == files


def test_a_raised_threshold_makes_a_fallback_of_a_rung_that_has_its_own():
    rungs = [{"threshold": 0.7}]
    storage = sample_run(row(ONE), config=CONFIG | {"attempts": {"max": 1, "rungs": rungs, "fallback": None}})
    for minutes, limit, fallback in ((60, 0.65, False), (61, 0.72, True)):
        judged(storage, f"verification.threshold={limit}", minutes=minutes)
        (one,) = read_log(storage).table.to_pylist()
        assert (one["threshold"], one["fallback"]) == (0.7, fallback)


DARK_LIGHTING = {"class": 0.3, "lighting": 0.2}


def test_no_row_is_rejected_for_a_property_that_is_not_judged():
    storage = sample_run(rejected(ONE, scores=DARK_LIGHTING, score=0.2))
    judged(storage, "verification.unjudged=[lighting]")
    assert told(storage) == {f"{ONE}-1": ("class", 0.3, 0.6, ["lighting"])}


def test_a_candidate_that_passes_by_now_beside_the_image_of_its_slot_is_superseded():
    storage = sample_run(rejected(ONE), row(ONE, 2, unjudged=[]))
    found = judged(storage, "verification.unjudged=[lighting, class]")
    both = ["lighting", "class"]
    assert told(storage) == {
        f"{ONE}-1": ("superseded", None, 0.6, both),
        f"{ONE}-2": (None, None, 0.6, both),
    }
    assert (len(found.changes), found.updated) == (0, 2)


def test_a_superseded_candidate_that_fails_again_is_rejected_for_what_it_lacks():
    storage = sample_run(rejected(ONE), row(ONE, 2, unjudged=[]))
    judged(storage, "verification.unjudged=[lighting, class]")
    judged(storage, "verification.unjudged=[]", minutes=61)
    assert told(storage) == {f"{ONE}-1": ("lighting", 0.25, 0.6, []), f"{ONE}-2": (None, 0.75, 0.6, [])}


def test_the_higher_of_two_candidates_that_pass_without_an_image_is_superseded():
    storage = sample_run(rejected(ONE), rejected(ONE, 2))
    judged(storage, "verification.threshold=0.2")
    rows = read_log(storage).table.to_pylist()
    assert [(row["status"], row["reason"]) for row in rows] == [("void", None), ("rejected", "superseded")]


def test_a_duplicate_of_a_hold_out_image_keeps_the_reason_that_alone_says_so():
    copy = {"nearest_id": "holdout/a.png", "nearest_distance": 0, "nearest_similarity": 1.0}
    storage = sample_run(rejected(ONE, reason="duplicate", scores={"class": 1.0, "lighting": 1.0}, **copy))
    judged(storage, "verification.brightness=[0.6, 1]")
    loose = ["verification.brightness=[0, 1]", "verification.copies={max_distance: 0, min_similarity: 1}"]
    judged(storage, *loose, minutes=61)
    assert told(storage)[f"{ONE}-1"][0] == "duplicate"


def test_a_score_that_is_no_number_is_no_reason_to_write_a_row_again():
    nan = float("nan")
    storage = sample_run(rejected(ONE, scores={"class": nan, "lighting": 0.9}, reason="class", score=nan))
    judged(storage, "verification.threshold=0.7")
    assert rejudge(storage, ["verification.brightness=[0.1, 0.9]"]).rewritten == ()


# ---- properties ----------------------------------------------------------------------------------

SCORES = st.lists(st.lists(st.integers(0, 10), min_size=4, max_size=4), min_size=1, max_size=4)
THRESHOLDS = st.integers(1, 10)


class SimulatedRun:
    """Rows of a run in which the score of each attempt is known beforehand, in tenths."""

    def __init__(self, scores: list[list[int]]) -> None:
        self.scores = scores
        self.rows: dict[Candidate, dict[str, Any]] = {}
        self.files: set[str] = set()

    def fill(self, threshold: int) -> None:
        """What `balancer run` does: climb on wherever a slot is open."""
        history = [
            Outcome(candidate, self.rows[candidate]["reason"], self.rows[candidate]["status"] == "void")
            for candidate in sorted(self.rows)
        ]
        schedule = Schedule([(CELL, len(self.scores), 0)], attempts=4, history=history)
        while not schedule.done:
            for candidate in schedule.next_batch(3):
                score = self.scores[candidate.slot.index][candidate.attempt - 1]
                passes = score >= threshold
                status = "accepted" if passes else "rejected"
                judged: dict[str, Any] = {"threshold": threshold / 10, "fallback": False}
                slot = judged | {"id": candidate.id, "slot": candidate.slot.key, "file_name": None}
                self.rows[candidate] = made(candidate.attempt, score / 10, status) | slot
                if passes:
                    self.rows[candidate]["file_name"] = candidate.id
                    self.files.add(candidate.id)
                schedule.judged(Outcome(candidate, self.rows[candidate]["reason"]))
                if passes:
                    schedule.accept(candidate)

    def rejudge(self, threshold: int) -> int:
        judged_by = config(threshold / 10, attempts={"max": 4, "fallback": None})
        found = new_verdicts(
            self.rows.values(), CELLS, judged_by, lambda row: None, self.files.__contains__, other_rules=True
        )
        for change in found:
            file = {"file_name": None} if change.status == "void" else {}
            limits = {"threshold": change.rung and change.rung.threshold, "fallback": False}
            self.rows[change.candidate] |= change.as_columns() | limits | {"score": change.score} | file
        return sum(change.is_new_verdict for change in found)

    def untrue(self, threshold: int) -> list[dict[str, Any]]:
        """Rows that name another limit, or a reason that does not hold."""
        return [
            row
            for row in self.rows.values()
            if row["status"] != "void"
            and (
                row["threshold"] != threshold / 10
                or (row["reason"] == "lighting") != (row["scores"]["lighting"] < threshold / 10)
            )
        ]

    @property
    def accepted(self) -> dict[int, int]:
        return {
            candidate.slot.index: candidate.attempt
            for candidate, row in sorted(self.rows.items())
            if row["status"] == "accepted"
        }

    def lowest_passing(self, threshold: int) -> dict[int, int]:
        passing = [
            [attempt for attempt, score in enumerate(of_slot, start=1) if score >= threshold]
            for of_slot in self.scores
        ]
        return {index: attempts[0] for index, attempts in enumerate(passing) if attempts}


@given(scores=SCORES, threshold=THRESHOLDS)
def test_under_the_rules_of_the_run_nothing_changes(scores, threshold):
    run = SimulatedRun(scores)
    run.fill(threshold)
    assert run.rejudge(threshold) == 0


@given(scores=SCORES, thresholds=st.lists(THRESHOLDS, min_size=1, max_size=4), filled=st.booleans())
def test_judging_again_ends_and_leaves_a_slot_one_image_at_most(scores, thresholds, filled):
    run = SimulatedRun(scores)
    run.fill(thresholds[0])
    for threshold in thresholds:
        run.rejudge(threshold)
        statuses = [(c.slot, row["status"]) for c, row in run.rows.items() if row["status"] == "accepted"]
        assert len(statuses) == len(run.accepted)
        assert all(scores[index][attempt - 1] >= threshold for index, attempt in run.accepted.items())
        assert run.untrue(threshold) == []
        assert run.rejudge(threshold) == 0
        if filled:
            run.fill(threshold)
            assert run.accepted.keys() == run.lowest_passing(threshold).keys()
            assert run.rejudge(threshold) == 0


@given(scores=SCORES, thresholds=st.lists(THRESHOLDS, min_size=2, max_size=4).map(sorted))
def test_raising_the_threshold_ends_with_the_set_of_a_run_that_began_with_it(scores, thresholds):
    run = SimulatedRun(scores)
    for threshold in thresholds:
        run.rejudge(threshold)
        run.fill(threshold)
    assert run.accepted == run.lowest_passing(thresholds[-1])
    first = SimulatedRun(scores)
    first.fill(thresholds[0])
    run.rejudge(thresholds[0])  # and back: all images that a run with the first threshold had were kept
    assert run.accepted == first.accepted


# ---- settings ------------------------------------------------------------------------------------


def sample_run(*rows: dict[str, Any], **changes: Any) -> MemoryStorage:
    """A closed run in memory, with the images of its rows."""
    storage = MemoryStorage()
    log = start(storage, **changes)
    log.commit(rows)
    for one in rows:
        if one["file_name"] is not None:
            storage.files[one["file_name"]] = image_bytes(one["file_name"][len("images/") : -len(".png")])
    log.close("short")
    return storage


@pytest.mark.parametrize(
    "setting",
    [
        "seed=3",
        "generation.steps=5",
        "attempts.max=4",
        "attempts.fallback=null",
        "attempts.rungs=[{threshold: 0.4}]",
        "verification.model=other",
        "verification.safety={model: m}",
        "classes.basic.prompts=[one]",
        "target.per_class=4",
        "budget.max_candidates=9",
        "facets.lighting.values.dim.share=0.5",
    ],
)
def test_what_rows_do_not_tell_is_refused_by_name(setting):
    settings = [setting]
    if "share" in setting:
        settings.append("facets.lighting.values.harsh.share=0.5")
    with pytest.raises(UsageError, match="cannot be judged from the stored numbers") as caught:
        rejudge(sample_run(row(ONE)), settings)
    assert setting.partition("=")[0] in caught.value.message
    assert "verification.threshold" in caught.value.hint


@pytest.mark.parametrize(
    ("setting", "overrides"),
    [
        ("verification.threshold=0.7", {"verification": {"threshold": 0.7}}),
        ("verification.brightness=[0.1, 0.9]", {"verification": {"brightness": [0.1, 0.9]}}),
        ("verification.copies.max_distance=2", {"verification": {"copies": {"max_distance": 2}}}),
        ("verification.unjudged=[lighting]", {"verification": {"unjudged": ["lighting"]}}),
        ("attempts.fallback.threshold=0.4", {"attempts": {"fallback": {"threshold": 0.4}}}),
        (
            "facets.lighting.values.dim.brightness=[0, 0.5]",
            {"facets": {"lighting": {"values": {"dim": {"brightness": [0.0, 0.5]}}}}},
        ),
        ("verification.threshold=0.6", {}),
    ],
)
def test_the_settings_that_changed_are_recorded(setting, overrides):
    storage = sample_run(row(ONE))
    assert rejudge(storage, [setting]).rules == Rules(overrides)
    apply(storage, [setting], now=lambda: at(60))
    assert read_log(storage).rules == Rules(overrides)


def test_the_thresholds_of_rungs_can_change_and_nothing_else_of_them():
    rungs = [{"threshold": 0.8}, {"guidance": 2.0}]
    storage = sample_run(config=CONFIG | {"attempts": {"max": 2, "rungs": rungs, "fallback": None}})
    changed = "[{threshold: 0.7}, {guidance: 2.0, threshold: 0.5}]"
    found = rejudge(storage, [f"attempts.rungs={changed}"])
    assert [rung["threshold"] for rung in found.rules.overrides["attempts"]["rungs"]] == [0.7, 0.5]
    with pytest.raises(UsageError, match=r"attempts\.rungs\.1\.guidance"):
        rejudge(storage, ["attempts.rungs=[{threshold: 0.8}, {guidance: 3.0}]"])


@pytest.mark.parametrize("setting", ["verification.threshold=2", "verification.treshold=0.7", "threshold"])
def test_a_setting_that_makes_no_sense_is_a_config_error(setting):
    with pytest.raises(ConfigError, match="--set"):
        rejudge(sample_run(row(ONE)), [setting])


# ---- committing ----------------------------------------------------------------------------------

RAISED = ["verification.threshold=0.8"]


def statuses(storage: Any) -> dict[str, str]:
    columns = read_log(storage).table.select(["id", "status"]).to_pydict()
    return dict(zip(columns["id"], columns["status"], strict=True))


def test_looking_writes_nothing():
    storage = sample_run(row(ONE))
    files = dict(storage.files)
    assert len(rejudge(storage, RAISED).changes) == 1
    assert storage.files == files


def test_what_was_found_is_committed_and_the_log_is_closed_again():
    storage = sample_run(row(ONE), row(TWO) | {"scores": {"class": 0.9, "lighting": 0.9}}, real("a.png"))
    found = apply(storage, RAISED, now=lambda: at(60))
    assert statuses(storage) == {f"{ONE}-1": "rejected", f"{TWO}-1": "accepted", "real/a.png": "accepted"}
    view = read_log(storage)
    assert (view.state, view.rules) == ("interrupted", Rules({"verification": {"threshold": 0.8}}))
    assert (found.pending, rejudge(storage).pending) == (True, False)
    (changed,) = (one for one in view.table.to_pylist() if one["status"] == "rejected")
    assert (changed["reason"], changed["score"], changed["threshold"]) == ("class", 0.75, 0.8)
    assert (changed["review"], changed["file_name"]) == (False, f"images/{ONE}-1.png")
    assert check_run(storage).problems == ()


def test_the_cells_tell_what_changes():
    flawless = {"scores": {"class": 0.9, "lighting": 0.9}}
    storage = sample_run(row(ONE), row(TWO) | flawless, rejected(THREE))
    (basic, burnt) = rejudge(storage, RAISED).cells
    assert (basic.accepted, basic.revoked, basic.restored, basic.made_again, basic.open) == (2, 1, 0, 0, 2)
    assert (burnt.accepted, burnt.open) == (0, 2)
    apply(storage, RAISED, now=lambda: at(60))
    (basic, _) = rejudge(storage, ["verification.threshold=0.2"]).cells
    assert (basic.accepted, basic.revoked, basic.restored, basic.made_again, basic.open) == (1, 0, 1, 1, 1)


def test_a_void_row_names_no_image_and_is_sound():
    storage = sample_run(rejected(ONE))
    apply(storage, ["verification.threshold=0.2"], now=lambda: at(60))
    assert statuses(storage) == {f"{ONE}-1": "void"}
    assert check_run(storage).problems == ()
    start(storage).commit([row(ONE)])
    storage.files[f"images/{ONE}-1.png"] = image_bytes(f"{ONE}-1")
    assert statuses(storage) == {f"{ONE}-1": "accepted"}
    assert check_run(storage).problems == ()


def test_rules_are_recorded_even_if_no_verdict_changes():
    storage = sample_run(row(ONE))
    assert apply(storage, ["verification.threshold=0.61"], now=lambda: at(60)).changes == ()
    assert read_log(storage).rules == Rules({"verification": {"threshold": 0.61}})


def test_nothing_to_change_leaves_the_log_alone():
    storage = sample_run(row(ONE))
    files = dict(storage.files)
    assert not apply(storage, [], now=lambda: at(60)).pending
    assert storage.files == files


def test_a_run_with_every_slot_settled_is_closed_as_such():
    short = [rejected(THREE, attempt) for attempt in (1, 2, 3, 4)]
    burnt = [row(f"burnt/dim/severe/{index:04d}") for index in range(2)]
    storage = sample_run(row(ONE), row(TWO), *short, *burnt)
    apply(storage, ["verification.threshold=0.65"], now=lambda: at(60))
    assert read_log(storage).state == "short"


def test_changes_add_up_and_can_be_taken_back():
    storage = sample_run(row(ONE))
    apply(storage, ["verification.threshold=0.7"], now=lambda: at(60))
    apply(storage, ["verification.brightness=[0.6, 1]"], now=lambda: at(61))
    both = {"verification": {"threshold": 0.7, "brightness": [0.6, 1.0]}}
    assert (read_log(storage).rules, statuses(storage)) == (Rules(both), {f"{ONE}-1": "rejected"})
    apply(storage, ["verification.brightness=[0.02, 0.98]"], now=lambda: at(62))
    assert statuses(storage) == {f"{ONE}-1": "accepted"}


def test_a_run_that_is_going_on_is_left_alone():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    with pytest.raises(UsageError, match="the run is in progress"):
        apply(storage, RAISED, now=lambda: at(1))
    log.commit([row(TWO)])  # it was not fenced
    assert len(rejudge(storage, RAISED).changes) == 2


def test_a_driver_that_stopped_without_a_word_is_fenced():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    apply(storage, RAISED, now=lambda: at(10))
    with pytest.raises(FencedError):
        log.commit([row(TWO)])


def many_slots(count: int) -> MemoryStorage:
    slots = [f"{CELL.key}/{index:04d}" for index in range(count)]
    first = [rejected(slot, 1) for slot in slots]
    second = [row(slot, 2) for slot in slots]
    plan = [{**run_info().plan[0], "quota": count}]
    return sample_run(*first, *second, plan=plan)


class DiesAt(MemoryStorage):
    """Dies for good at the create with that number, from 1."""

    def __init__(self, files: dict[str, bytes], create: int) -> None:
        super().__init__(files=files)
        self.left = create

    def create(self, path: str, data: bytes) -> bool:
        self.left -= 1
        if self.left <= 0:
            raise StorageError("the disk is gone")
        return super().create(path, data)


@pytest.mark.parametrize("fragments", range(1, 6))
def test_a_change_that_was_stopped_half_way_is_completed_by_the_same_command(fragments, monkeypatch):
    monkeypatch.setattr("balancer.runs.rejudge.COMMIT_ROWS", 2)
    whole, broken = many_slots(6), many_slots(6)
    apply(whole, RAISED, now=lambda: at(60))
    with pytest.raises(StorageError):
        apply(DiesAt(broken.files, fragments), RAISED, now=lambda: at(60))
    view = read_log(broken)
    if 2 < fragments < 5:
        assert not view.rules.complete
        check_unchanged(config(0.8), MODELS, read_run(broken), False, view.rules)  # `run` completes it
    apply(broken, RAISED, now=lambda: at(120))
    assert statuses(broken) == statuses(whole)
    assert read_log(broken).rules == Rules({"verification": {"threshold": 0.8}})
    assert check_run(broken).problems == ()


def test_the_verdicts_of_a_slot_are_committed_together(monkeypatch):
    monkeypatch.setattr("balancer.runs.rejudge.COMMIT_ROWS", 1)
    storage = sample_run(row(ONE, scores={"class": 0.75, "lighting": 0.65}), rejected(TWO))
    apply(storage, ["verification.threshold=0.7"], now=lambda: at(60))
    start(storage).commit([row(ONE, 2, scores={"class": 0.75, "lighting": 0.75})])
    storage.files[f"images/{ONE}-2.png"] = image_bytes(f"{ONE}-2")
    before = {path for path in storage.files if path.startswith(LOG_DIR)}
    apply(storage, ["verification.threshold=0.6"], now=lambda: at(120))
    assert statuses(storage) == {f"{ONE}-1": "accepted", f"{TWO}-1": "rejected", f"{ONE}-2": "rejected"}
    written = {path for path in storage.files if path.startswith(LOG_DIR)} - before
    assert len(written) == 4  # open, the verdicts of one slot, the new limit of another one, close
    assert check_run(storage).problems == ()


def alike(slot: str, phash: str, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """An image that looks like others with a hash near its own."""
    told = {"phash": phash, "pixel_sha256": f"{slot}-{attempt}", "embedding": b"\0\x3c" * 4}
    return row(slot, attempt) | {"scores": {"class": 0.75, "lighting": 0.75}} | told | changes


A_HASH, ALMOST_THE_SAME = "ffffffff00000000", "ffffffff00000003"
TWO_SLOTS = [{**run_info().plan[0], "quota": 2}]


def test_images_that_are_restored_are_compared_with_the_others_once_all_slots_are_filled():
    there, hidden = alike(ONE, A_HASH), revoked(alike(TWO, ALMOST_THE_SAME), "class")
    storage = sample_run(there, plan=TWO_SLOTS)
    log = start(storage)
    log.commit([alike(TWO, ALMOST_THE_SAME)])
    storage.files[f"images/{TWO}-1.png"] = image_bytes(f"{TWO}-1")
    log.commit_verdicts([hidden])
    log.close("interrupted")
    found = apply(storage, [], now=lambda: at(60))
    rows = {one["id"]: one for one in read_log(storage).table.to_pylist()}
    copied = rows[f"{TWO}-1"]
    assert (copied["status"], copied["reason"], copied["nearest_id"]) == ("rejected", "near_copy", f"{ONE}-1")
    assert (rows[f"{ONE}-1"]["status"], found.state) == ("accepted", "interrupted")
    assert not rejudge(storage).pending
    assert check_run(storage).problems == ()


def test_other_limits_on_copies_hold_for_the_accepted_images_among_themselves():
    storage = sample_run(alike(ONE, A_HASH), alike(TWO, "ffffffff000000ff"), plan=TWO_SLOTS)
    assert rejudge(storage, ["verification.threshold=0.5"]).changes == ()
    apply(storage, ["verification.copies.max_distance=8"], now=lambda: at(60))
    assert statuses(storage) == {f"{ONE}-1": "accepted", f"{TWO}-1": "rejected"}
    assert not rejudge(storage).pending
    apply(storage, ["verification.copies.max_distance=7"], now=lambda: at(61))
    assert statuses(storage) == {f"{ONE}-1": "accepted", f"{TWO}-1": "accepted"}


# ---- resuming -----------------------------------------------------------------------------------


def test_the_next_run_must_be_given_the_rules_of_the_log():
    storage = sample_run(row(ONE))
    apply(storage, RAISED, now=lambda: at(60))
    info, rules = read_run(storage), read_log(storage).rules
    check_unchanged(config(0.8), MODELS, info, False, rules)
    with pytest.raises(
        UsageError, match=r"judged again under other rules; .*verification\.threshold"
    ) as caught:
        check_unchanged(config(0.6), MODELS, info, False, rules)
    assert "--set verification.threshold=0.8" in caught.value.hint
    check_unchanged(config(0.6), MODELS, info, True, rules)
    assert effective_config(info, rules) == config(0.8)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A closed run on disk: one image at 0.75, and one slot whose first attempt reached 0.25."""
    storage = open_storage(tmp_path, create=True)
    log = start(storage)
    storage.publish(f"images/{ONE}-1.png", image_bytes(f"{ONE}-1"))
    log.commit([row(ONE), rejected(TWO)])
    log.close("interrupted")
    return tmp_path


def command(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["rejudge", *map(str, arguments)])


def test_the_command_shows_what_would_change(folder):
    shown = command(folder, "--set", "verification.threshold=0.8")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        "1 verdict would change under verification.threshold=0.8",
        "  cell              accepted  revoked  restored  made again  open",
        "  basic/dim                1        1         0           0     3",
        "  burnt/dim/severe         0        0         0           0     2",
        "  all cells                1        1         0           0     5",
    ]
    assert shown.stderr.splitlines() == [
        "--apply also updates the threshold, score, reason or unjudged of 1 other row",
        "nothing was changed; add --apply to commit this",
    ]


def test_the_command_prints_one_object(folder):
    printed = json.loads(command(folder, "--set", "verification.threshold=0.2", "--json").stdout)
    assert printed["overrides"] == {"verification": {"threshold": 0.2}}
    assert {name: printed[name] for name in ("applied", "accepted", "made_again", "open")} == {
        "applied": False, "accepted": 1, "made_again": 1, "open": 4,
    }  # fmt: skip
    assert printed["cells"][0] == {
        "class": "basic", "lighting": "dim", "burn_level": None,
        "accepted": 1, "revoked": 0, "restored": 0, "made_again": 1, "open": 2,
    }  # fmt: skip


def test_the_command_applies_and_says_how_to_go_on(folder):
    applied = command(folder, "--set", "verification.threshold=0.8", "--apply")
    assert applied.exit_code == 0, applied.output
    assert "1 verdict changed under verification.threshold=0.8" in applied.stdout
    assert f"`balancer run CONFIG --out {folder} --set verification.threshold=0.8`" in applied.stderr
    assert "nothing to change" in command(folder, "--apply").stderr
    assert CliRunner().invoke(main, ["fsck", str(folder)]).exit_code == 0


# ---- whole runs, with simulated actors ------------------------------------------------------------


class DyingStorage:
    """The run folder on a disk that is gone after some creates."""

    def __init__(self, root: Path, creates: int) -> None:
        self._disk, self._left = open_storage(root, create=False), creates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def create(self, path: str, data: bytes) -> bool:
        self._left -= 1
        if self._left < 0:
            raise StorageError("the disk is gone")
        return self._disk.create(path, data)


def synthetic(out: Path, status: str = "accepted") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        open_manifest(out).to_table(filter="source = 'synthetic'", status=status).to_pylist()  # type: ignore[arg-type]
    )
    return found


def later() -> datetime.datetime:
    """When a driver that died just now is taken for gone."""
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("stopped", [False, True])
def test_after_the_threshold_was_raised_a_run_ends_as_one_that_began_with_it(
    make_config, tmp_path, monkeypatch, stopped
):
    usual = make_config(attempts={"max": 4})
    strict = make_config(attempts={"max": 4}, verification={"threshold": 0.95})
    out, storage = tmp_path / "run", open_storage(tmp_path / "run", create=True)
    run(usual, out)
    before = accepted_ids(out)
    if stopped:
        monkeypatch.setattr("balancer.runs.rejudge.COMMIT_ROWS", 1)
        with pytest.raises(StorageError):
            apply(DyingStorage(out, 4), ["verification.threshold=0.95"])
    apply(storage, ["verification.threshold=0.95"], now=later)
    kept_images = set(accepted_ids(out))
    assert kept_images < set(before)
    with pytest.raises(UsageError, match=r"verification\.threshold") as caught:
        run(usual, out)
    assert "--set verification.threshold=0.95" in caught.value.hint
    result = run(strict, out)
    assert result.wanted == result.accepted + result.short
    assert min(row["score"] for row in synthetic(out)) >= 0.95
    assert kept_images < set(accepted_ids(out))
    run(strict, tmp_path / "fresh")
    assert accepted_ids(out) == accepted_ids(tmp_path / "fresh")
    assert check_run(storage).problems == ()
    assert not rejudge(storage).pending


@pytest.mark.usefixtures("here")
def test_after_the_threshold_was_lowered_what_was_not_kept_is_made_again(make_config, tmp_path):
    sections: dict[str, Any] = {"attempts": {"max": 1}, "planning": {"acceptance": 0.3}}
    out, storage = tmp_path / "run", open_storage(tmp_path / "run", create=True)
    run(make_config(**sections), out)
    before, seeds = accepted_ids(out), {row["id"]: row["seed"] for row in synthetic(out, "all")}
    apply(storage, ["verification.threshold=0.1"])
    void = {row["id"] for row in synthetic(out, "void")}
    assert void
    assert accepted_ids(out) == before
    result = run(make_config(**sections, verification={"threshold": 0.1}), out)
    assert (set(accepted_ids(out)), result.short) == ({*before, *void}, result.wanted - len({*before, *void}))
    assert {row["id"]: row["seed"] for row in synthetic(out, "all")} == seeds
    assert synthetic(out, "void") == []
    assert check_run(storage).problems == ()


# ---- resuming a run under other limits -------------------------------------------------------


def test_a_run_goes_on_under_another_threshold_but_not_under_another_seed():
    info = run_info(config=config().model_dump(mode="json"))
    check_unchanged(config(0.7), MODELS, info, False)
    with pytest.raises(UsageError, match=r"another config; changed: seed$"):
        check_unchanged(config(0.7, seed=3), MODELS, info, False)


def test_a_setting_of_a_name_with_a_dot_is_told_in_quotes():
    overrides = {"facets": {"v1.0": {"values": {"a": {"brightness": [0, 1]}}}}}
    assert list(as_settings(overrides)) == ['facets."v1.0".values.a.brightness=[0, 1]']
