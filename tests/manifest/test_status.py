from __future__ import annotations

import json
import os
from typing import Any

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.manifest import image_check, read_status
from balancer.manifest.rows import revoked
from balancer.report import render_report
from balancer.storage import open_storage
from tests.manifest_samples import (
    CONFIG,
    MemoryStorage,
    at,
    image_bytes,
    planned,
    real,
    rejected,
    row,
    run_info,
    start,
    void,
)

KEYS = (
    "run_id state wanted accepted short open candidates rejected_by_reason success_rate acceptance eta_s "
    "given_up short_cells remedies candidates_per_image candidates_per_image_basis seconds_per_image "
    "seconds_per_image_basis cost_per_image cost_per_image_basis simulated unjudged unproven overrides "
    "revision revisions images review current"
).split()
ONE, TWO, THREE = (f"basic/dim/{index:04d}" for index in range(3))


def status_after(*rows: dict[str, Any], minutes: float = 1, **changes: Any) -> dict[str, Any]:
    """The status of a run that was opened at noon and committed these rows then, some minutes later."""
    storage = MemoryStorage()
    start(storage, **changes).commit(rows)
    return read_status(storage, at(minutes))


def test_the_keys_are_those_of_the_contract():
    assert list(status_after()) == KEYS


def test_a_run_that_has_just_begun_knows_little():
    status = status_after()
    assert (status["run_id"], status["state"], status["wanted"]) == ("run-1", "running", 5)
    assert (status["accepted"], status["candidates"], status["rejected_by_reason"]) == (0, 0, {})
    assert (status["success_rate"], status["acceptance"], status["eta_s"]) == (None, None, None)


def test_real_images_are_not_counted():
    status = status_after(real("a.png"), real("b.png"), row(ONE))
    assert (status["accepted"], status["candidates"]) == (1, 1)


def test_reasons_stand_in_the_order_of_their_number():
    status = status_after(
        rejected(ONE, 1, "class"), rejected(ONE, 2, "lighting"), rejected(TWO, 1, "lighting"), row(ONE, 3)
    )
    assert list(status["rejected_by_reason"].items()) == [("lighting", 2), ("class", 1)]
    assert status["acceptance"] == pytest.approx(0.25)


def test_a_slot_is_short_when_it_has_no_attempt_left():
    three = [rejected(ONE, attempt) for attempt in (1, 2, 3)]
    assert status_after(*three)["short"] == 0  # the fallback is still to come
    assert status_after(*three, rejected(ONE, 4))["short"] == 1
    without_fallback = CONFIG | {"attempts": {"max": 3, "fallback": None}}
    assert status_after(*three, config=without_fallback)["short"] == 1


def test_a_slot_that_was_filled_at_last_is_not_short():
    status = status_after(*(rejected(ONE, attempt) for attempt in (1, 2, 3)), row(ONE, 4))
    assert (status["short"], status["accepted"], status["success_rate"]) == (0, 1, 1.0)


@pytest.mark.parametrize(
    "rows", [[], [row(ONE)], [rejected(TWO, attempt) for attempt in (1, 2, 3, 4)], [rejected(ONE), row(TWO)]]
)
def test_what_is_wanted_is_accepted_short_or_open(rows):
    status = status_after(*rows)
    assert status["wanted"] == status["accepted"] + status["short"] + status["open"]


def test_verdicts_that_changed_count_as_they_are_now():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE), row(TWO), *(rejected(THREE, attempt) for attempt in (1, 2, 3, 4))])
    log.commit_verdicts([revoked(row(ONE), "near_copy"), void(THREE, 2)])
    status = read_status(storage, at(1))
    assert (status["accepted"], status["short"], status["candidates"]) == (1, 0, 5)
    assert status["rejected_by_reason"] == {"lighting": 3, "near_copy": 1}


def test_the_success_rate_is_over_settled_slots():
    short = [rejected(ONE, attempt) for attempt in (1, 2, 3, 4)]
    status = status_after(*short, row(TWO), row(THREE), rejected("burnt/dim/severe/0000"))
    assert status["success_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("state", ["complete", "short", "interrupted", "failed", "budget"])
def test_the_state_is_what_the_last_driver_said(state):
    storage = MemoryStorage()
    start(storage).close(state)
    assert read_status(storage, at(0))["state"] == state
    assert read_status(storage, at(10_000))["eta_s"] is None


def test_a_driver_that_is_silent_for_two_minutes_has_stopped():
    assert status_after(row(ONE), minutes=1.99)["state"] == "running"
    assert status_after(row(ONE), minutes=2)["state"] == "stopped"


def test_a_run_that_goes_on_is_running_again():
    storage = MemoryStorage()
    start(storage).close("budget")
    start(storage, now=lambda: at(60))
    assert read_status(storage, at(61))["state"] == "running"


def test_the_time_left_follows_from_the_last_minutes():
    """Ten images wanted, four made in two minutes: six to go, half a minute each."""
    made = [row(f"basic/dim/{index:04d}", generated_at=at(index / 2)) for index in range(4)]
    storage = MemoryStorage()
    times = iter([at(0), at(2)])
    start(storage, now=lambda: next(times), plan=[planned("basic/dim", 10)]).commit(made)
    assert read_status(storage, at(2))["eta_s"] == pytest.approx(180)


def test_what_was_made_long_ago_or_by_an_earlier_driver_says_nothing_of_the_pace():
    storage = MemoryStorage()
    start(storage).commit([row(ONE), row(TWO)])
    times = iter([at(100), at(110)])
    start(storage, now=lambda: next(times)).commit([row(THREE, generated_at=at(108))])
    assert read_status(storage, at(110))["eta_s"] == pytest.approx(2 * 300)  # one in five minutes, two to go


def test_a_stopped_run_has_no_time_left():
    assert status_after(row(ONE), minutes=60)["eta_s"] is None


def test_a_run_whose_slots_are_settled_has_no_time_to_go():
    rows = [row(f"basic/dim/{index:04d}") for index in range(3)]
    rows += [row(f"burnt/dim/severe/{index:04d}") for index in range(2)]
    assert status_after(*rows)["eta_s"] == 0


FEW_PASS = CONFIG | {"attempts": {"max": 9, "give_up_below": 0.5}}
FIVE_FAILURES = [rejected(ONE, attempt) for attempt in range(1, 6)]


def test_a_cell_of_which_too_few_pass_is_given_up_and_its_open_slots_are_short():
    status = status_after(*FIVE_FAILURES, config=FEW_PASS)
    assert status["given_up"] == {"basic/dim": {"accepted": 0, "candidates": 5}}
    assert status["short"] == 3
    assert status["success_rate"] == 0


def test_a_cell_that_may_still_reach_the_floor_is_not_given_up():
    status = status_after(*FIVE_FAILURES[:4], config=FEW_PASS)
    assert (status["given_up"], status["short"]) == ({}, 0)


def test_a_cell_that_is_full_is_not_given_up_however_long_it_took():
    config = CONFIG | {"attempts": {"max": 99, "give_up_below": 0.5}}
    filled = [row(slot, 90) for slot in (ONE, TWO, THREE)]
    failed = [rejected(slot, attempt) for slot in (ONE, TWO, THREE) for attempt in range(1, 9)]
    assert status_after(*filled, *failed, config=config)["given_up"] == {}


def test_a_given_up_cell_that_has_images_is_short_of_the_others():
    rows = [row(TWO), *(rejected(ONE, attempt) for attempt in range(1, 14))]
    status = status_after(*rows, config=CONFIG | {"attempts": {"max": 99, "give_up_below": 0.5}})
    assert (status["accepted"], status["short"]) == (1, 2)


PLANNING = {"acceptance": 0.5, "seconds_per_candidate": 9, "cost_per_generator_hour": 3600}


def test_what_an_image_takes_follows_from_assumptions_at_first():
    status = status_after(config=CONFIG | {"planning": PLANNING})
    assert (status["candidates_per_image"], status["seconds_per_image"]) == (2, 18)
    assert status["cost_per_image"] == 18
    assert "planning.acceptance" in status["candidates_per_image_basis"]


def test_what_an_image_takes_is_measured_as_soon_as_there_is_something_to_measure():
    status = status_after(row(ONE), *(rejected(TWO, attempt) for attempt in (1, 2, 3)))
    assert status["candidates_per_image"] == 4
    assert "measured by this run" in status["candidates_per_image_basis"]
    assert status["seconds_per_image"] is None


def test_the_command_prints_one_object_or_a_table(tmp_path):
    log = start(open_storage(tmp_path, create=False))
    log.commit([row(ONE), rejected(TWO)])
    log.close("interrupted")
    printed = CliRunner().invoke(main, ["status", str(tmp_path), "--json"])
    assert list(json.loads(printed.stdout)) == [*KEYS, "diversity"]
    table = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert table.exit_code == 0
    assert "run run-1: interrupted" in table.stdout
    assert "rejected: lighting" in table.stdout
    assert "candidates per image  2         50% of candidates pass (measured by this run)" in table.stdout


def test_the_command_cuts_long_reasons_and_counts_many_as_one(tmp_path):
    log = start(open_storage(tmp_path, create=False))
    reasons = ["x" * 100_000, *(f"reason {number}" for number in range(60))]
    rows = [rejected(ONE, number, reason, seed=number) for number, reason in enumerate(reasons, start=1)]
    log.commit(rows)
    printed = CliRunner().invoke(main, ["status", str(tmp_path)]).stdout
    assert max(map(len, printed.splitlines())) < 1000
    assert "11 other reasons" in printed
    assert "11 other reasons" not in CliRunner().invoke(main, ["status", str(tmp_path), "--all"]).stdout


def test_the_command_lists_the_cells_that_are_given_up(tmp_path):
    start(open_storage(tmp_path, create=False), config=FEW_PASS).commit(FIVE_FAILURES)
    lines = CliRunner().invoke(main, ["status", str(tmp_path)]).stdout.splitlines()
    heading = lines.index("given up: too few candidates pass (attempts.give_up_below)")
    assert lines[heading + 2].split() == ["basic/dim", "5", "0"]


def test_the_plan_decides_what_is_wanted():
    assert status_after(plan=[planned("basic/dim", 40), planned("basic/harsh", 2)])["wanted"] == 42
    assert run_info(plan=[]).wanted == 0


# ---- the images -----------------------------------------------------------------------------------


def stored(*slots: str) -> MemoryStorage:
    """A complete run with the images of these slots."""
    storage = MemoryStorage()
    log = start(storage)
    for slot in slots:
        storage.publish(f"images/{slot}-1.png", image_bytes(f"{slot}-1"))
    log.commit([row(slot) for slot in slots])
    log.close("complete")
    return storage


def images_of(storage: MemoryStorage) -> dict[str, Any]:
    found: dict[str, Any] = read_status(storage, at(1))["images"]
    return found


def test_images_that_are_there_with_their_size_are_counted():
    counts = {"named": 3, "looked_at": 3, "missing": 0, "other_size": 0, "example": None}
    assert images_of(stored(ONE, TWO, THREE)) == counts


def test_images_that_are_missing_empty_or_of_another_size_are_told():
    storage = stored(ONE, TWO, THREE)
    storage.delete(f"images/{ONE}-1.png")
    storage.replace(f"images/{TWO}-1.png", b"")
    storage.replace(f"images/{THREE}-1.png", image_bytes(f"{THREE}-12"))
    found = images_of(storage)
    assert (found["missing"], found["other_size"]) == (1, 2)
    assert found["example"] == f"images/{ONE}-1.png"


def test_the_images_of_rejected_candidates_are_not_looked_for():
    storage = stored(ONE)
    start(storage).commit_verdicts([revoked(row(ONE), "near_copy")])
    storage.delete(f"images/{ONE}-1.png")
    assert images_of(storage)["named"] == 0


def test_of_many_images_some_are_looked_at_spread_over_all(monkeypatch):
    monkeypatch.setattr(image_check, "LOOKED_AT", 10)
    slots = [f"basic/dim/{index:04d}" for index in range(100)]
    storage = stored(*slots)
    for slot in slots[50:]:
        storage.delete(f"images/{slot}-1.png")
    found = images_of(storage)
    assert (found["named"], found["looked_at"], found["missing"]) == (100, 10, 5)


@pytest.mark.parametrize("source", ["", "link", "folder", "pipe"])
def test_real_images_elsewhere_are_looked_at_there(tmp_path, source):
    image = tmp_path / "a.png"
    image.write_bytes(image_bytes("basic/dim/a.png-1"))
    config = CONFIG | {"output": {"real_images": "reference"}}
    storage = MemoryStorage()
    start(storage, config=config).commit([real("a.png", file_name=str(image))])
    assert images_of(storage)["missing"] == 0
    image.unlink()
    if source == "link":
        image.symlink_to(tmp_path / "nothing")
    elif source == "folder":
        image.mkdir()
    elif source == "pipe":
        os.mkfifo(image)
    assert images_of(storage)["missing"] == 1


@pytest.fixture
def without_images(tmp_path) -> str:
    storage = open_storage(tmp_path / "run", create=True)
    log = start(storage)
    log.commit([row(ONE), row(TWO)])
    log.close("complete")
    return str(tmp_path / "run")


@pytest.mark.parametrize(
    "line", ["status RUN", "report RUN", "export RUN parquet OUT", "export RUN arrow OUT"]
)
def test_a_command_that_speaks_of_images_warns_where_they_are_missing(without_images, tmp_path, line):
    words = [{"RUN": without_images, "OUT": str(tmp_path / "out")}.get(word, word) for word in line.split()]
    result = CliRunner().invoke(main, words)
    assert "warning: of 2 image files looked at, 2 are missing" in result.stderr


def test_the_report_says_that_images_are_missing(without_images):
    assert "2 are missing" in render_report(without_images)


def test_status_says_what_it_did_not_look_at(tmp_path):
    storage = open_storage(tmp_path, create=False)
    storage.publish(f"images/{ONE}-1.png", image_bytes(f"{ONE}-1"))
    start(storage).commit([row(ONE)])
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert "checked 1 of 1 image files: all exist and have the right size; `balancer fsck` also reads" in (
        result.stderr
    )
