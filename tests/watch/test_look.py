"""What the live page shows, from the files of a run alone."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from balancer.errors import ManifestError
from balancer.manifest import create_run, read_log
from balancer.manifest.layout import fragment_path
from balancer.manifest.status import SILENT_AFTER_S, read_status
from balancer.review import pending
from balancer.storage import LocalStorage
from balancer.watch.following import LogFollower
from balancer.watch.look import COLUMNS, look_at
from balancer.watch.server import LiveRun
from tests.manifest_samples import NOON, at, rejected, row, run_info, start
from tests.review.decided import decided
from tests.review.small_run import picture
from tests.web.asking import get


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def slots(count, minute=0.0):
    return [
        row(f"basic/dim/{index:04d}", score=0.9, generated_at=at(minute + index / 60))
        for index in range(count)
    ]


def live(storage, minutes=0.0):
    run = LiveRun.of(storage)
    run.now = lambda: at(minutes)
    return run


def shown(storage, minutes=0.0):
    return json.loads(live(storage, minutes).current())


def test_a_log_that_grows_is_read_on_from_where_the_last_look_ended(storage, monkeypatch):
    log = start(storage)
    log.commit(slots(2))
    follower = LogFollower(storage, COLUMNS)
    follower.read()
    log.commit([rejected("burnt/dim/severe/0000")])
    fetched = []
    read = LocalStorage.read
    monkeypatch.setattr(
        LocalStorage, "read", lambda self, path, *limit: (fetched.append(path), read(self, path, *limit))[1]
    )
    _, view = follower.read()
    assert view.table.equals(read_log(storage, COLUMNS).table)
    assert fetched.count(fragment_path(1)) == 1  # by read_log, not by the follower


def test_later_verdicts_replace_rows_that_were_seen_before(storage):
    log = start(storage)
    log.commit(slots(2))
    follower = LogFollower(storage, COLUMNS)
    follower.read()
    log.commit_verdicts([rejected("basic/dim/0000", reason="lighting")], {"overrides": {}})
    _, view = follower.read()
    assert sorted(view.table["status"].to_pylist()) == ["accepted", "rejected"]


def test_a_run_that_was_begun_anew_in_its_folder_is_read_anew(storage, tmp_path):
    start(storage).commit(slots(2))
    follower = LogFollower(storage, COLUMNS)
    follower.read()
    for path in storage.list(""):
        storage.delete(path)
    start(storage, run_id="run-2")
    info, view = follower.read()
    assert (info.run_id, view.table.num_rows) == ("run-2", 0)


def test_it_counts_by_class_cell_reason_and_time(storage):
    log = start(storage, now=lambda: at(2))
    log.commit([*slots(2), rejected("burnt/dim/severe/0000", generated_at=at(2))])
    told = shown(storage, 2.5)
    assert (told["wanted"], told["accepted"], told["open"], told["candidates"]) == (5, 2, 3, 3)
    assert told["rejected"] == {"lighting": 1}
    by_class = {one["name"]: (one["accepted"], one["wanted"]) for one in told["classes"]}
    assert by_class == {"burnt": (0, 2), "basic": (2, 3)}
    cells = {(row["class"], *row["values"]): row["cells"] for row in told["cells"]["rows"]}
    assert [cell for row in cells.values() for cell in row if cell] == [[2, 3, 2], [0, 2, 1]]
    over_time = {part["name"]: part["counts"] for part in told["timeline"]["parts"]}
    assert {name: sum(counts) for name, counts in over_time.items()} == {"accepted": 2, "lighting": 1}
    assert over_time["lighting"][-1] == 1


def test_the_last_images_come_first_with_their_scores(storage):
    log = start(storage)
    log.commit([*slots(3), rejected("burnt/dim/severe/0000", generated_at=at(1))])
    told = shown(storage)
    assert [one["at"][14:19] for one in told["last_accepted"]] == ["00:02", "00:01", "00:00"]
    [one] = told["last_rejected"]
    assert (one["cell"], one["reason"], one["score"], one["threshold"]) == (
        "burnt/dim/severe",
        "lighting",
        0.25,
        0.6,
    )


def test_the_image_of_a_rejected_candidate_is_shown_if_it_was_kept(storage):
    start(storage).commit([rejected("burnt/dim/severe/0000")])
    run = live(storage)
    [one] = json.loads(run.current())["last_rejected"]
    assert get(run.app(), f"images/{one['image']}/160").status == 404
    storage.publish("rejected/lighting/burnt/dim/severe/0000-1.png", picture("a"))
    assert get(run.app(), f"images/{one['image']}/160").status == 200


def test_a_driver_that_fell_silent_is_said_to_be_gone(storage):
    start(storage).commit(slots(1))
    assert shown(storage, SILENT_AFTER_S / 60 - 0.1)["state"] == "running"
    told = shown(storage, SILENT_AFTER_S / 60 + 0.1)
    assert (told["state"], told["eta_s"], told["last_commit"]) == (
        "stopped",
        None,
        "2026-03-01T12:00:00.000+00:00",
    )


@pytest.mark.parametrize("state", ["complete", "failed", "interrupted"])
def test_a_driver_that_said_how_it_ended_is_believed(storage, state):
    start(storage).close(state)
    assert shown(storage)["state"] == state


def test_a_run_without_a_commit_has_not_begun(storage):
    create_run(storage, run_info())
    told = shown(storage)
    assert (told["state"], told["timeline"], told["last_accepted"]) == ("not begun", None, [])


def test_pace_and_time_left_are_those_of_the_last_minutes(storage):
    start(storage, now=lambda: NOON).commit(slots(2))
    told = shown(storage, 1.0)
    assert (told["accepted_per_min"], told["eta_s"]) == (2.0, 90.0)


def test_nothing_new_is_the_same_text(storage):
    start(storage).commit(slots(1))
    run = live(storage)
    run.clock = iter(range(0, 1000, 10)).__next__
    first = run.current()
    run.now = lambda: at(0.5)
    assert run._looked() == first.replace('"accepted_per_min": 0.0', '"accepted_per_min": 2.0').replace(
        '"eta_s": null', '"eta_s": 120.0'
    )


def test_a_long_run_is_looked_at_less_often(storage, monkeypatch):
    start(storage)
    run, looks = live(storage), []
    run.clock = iter([100.0, 104.0, 139.0, 141.0, 141.5, 141.6]).__next__
    monkeypatch.setattr(LiveRun, "_looked", lambda self: looks.append(1) or "{}")
    for _ in range(4):
        run.current()
    assert len(looks) == 2  # the first took 4 s, so the next comes 40 s after it began


def test_what_cannot_be_read_is_said_and_the_page_stays(storage):
    log = start(storage)
    log.commit(slots(1))
    run = live(storage)
    path = fragment_path(2)
    whole = storage.read(path)
    storage.replace(path, whole[:-20] + b"0" * 20)
    told = json.loads(run.current())
    assert path in told["error"]
    storage.replace(path, whole)
    assert json.loads(run._looked())["accepted"] == 1


def test_a_damaged_run_ends_the_command_before_it_serves(storage):
    start(storage).commit(slots(1))
    storage.replace(fragment_path(1), b"nothing")
    with pytest.raises(ManifestError):
        LiveRun.of(storage).look()


def test_lines_of_the_run_log_are_shown_but_its_progress_only_once(storage):
    start(storage).commit(slots(1))
    lines = ["12:00 begun", "warning: \x1b[31mred", *(f"accepted {n}/5 (0%) candidates 1" for n in range(3))]
    storage.replace("run.log", "".join(f"2026-03-01 12:00:00Z {line}\n" for line in lines).encode())
    told = shown(storage)
    assert [line[21:] for line in told["lines"]] == ["12:00 begun", "warning: \\x1b[31mred"]
    assert told["progress_line"].endswith("accepted 2/5 (0%) candidates 1")


def test_what_people_found_out_is_told_in_words(storage):
    start(storage).commit([{**one, "review": True} for one in slots(2)])
    assert "2 images are marked for review" in shown(storage)["review"][0]
    pending.save(storage, "run-1", [decided("basic/dim/0000-1", "reject")])
    assert "by ann: 1 of 1 wrong" in shown(storage)["review"][0]


def test_numbers_that_json_lacks_are_left_out(storage):
    start(storage).commit([row("basic/dim/0000", score=float("nan"))])
    [one] = shown(storage)["last_accepted"]
    assert one["score"] is None


def test_the_look_is_that_of_status(storage):
    log = start(storage)
    log.commit([*slots(3), rejected("burnt/dim/severe/0000"), rejected("burnt/dim/severe/0000", 2)])
    info, view = LogFollower(storage, COLUMNS).read()
    look, status = look_at(storage, info, view, at(1)), read_status(storage, at(1))
    for name in ("wanted", "accepted", "short", "candidates", "eta_s", "rejected_by_reason"):
        assert getattr(look.snapshot, name) == status[name], name
    assert look.state == status["state"]


def test_the_moments_are_utc(storage):
    start(storage, now=lambda: NOON.astimezone(dt.timezone(dt.timedelta(hours=5)))).commit(slots(1))
    assert shown(storage)["last_commit"] == "2026-03-01T12:00:00.000+00:00"
