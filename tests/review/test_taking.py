"""Decisions on their way into the log: whoever takes them in, and whatever is stopped on the way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from balancer.errors import FencedError, StorageError
from balancer.images import encode_image, perceptual_hash, pixel_sha256
from balancer.manifest.layout import PENDING_DIR, rejected_path
from balancer.manifest.log.view import read_log
from balancer.manifest.maintenance.fsck import check_run, fsck
from balancer.manifest.maintenance.gc import find_unneeded
from balancer.manifest.runfile import read_run
from balancer.manifest.status import read_status
from balancer.review import pending, taking
from balancer.review.decisions import from_details
from balancer.review.taking import take_in
from balancer.review.turn import LogInUseError, commit_waiting
from balancer.runs.rejudge import apply, rejudge
from tests.manifest_samples import MemoryStorage, at, image_bytes, real, rejected, row, run_info, start
from tests.review.decided import decided, undone

RUN = "run-1"
ONE, TWO, THREE = (f"basic/dim/000{index}" for index in range(3))
FOUR, FIVE = "burnt/dim/severe/0000", "burnt/dim/severe/0001"
SLOTS = (ONE, TWO, THREE, FOUR, FIVE)
PLAIN: dict[str, Any] = {"probabilities": None, "unjudged": []}


class KilledError(BaseException):
    """No cleanup knows it."""


def put(storage, one):
    if one["file_name"]:
        storage.publish(one["file_name"], image_bytes(one["id"]))
    return one


def begun(rows=None, state: Any = "complete", **changes):
    storage = MemoryStorage()
    log = start(storage, **changes)
    rows = [row(slot, review=True) for slot in SLOTS] if rows is None else rows
    log.commit([put(storage, one | {"unjudged": []}) for one in rows])
    if state is not None:
        log.close(state)
    return storage, log


def save(storage, *decisions):
    pending.save(storage, RUN, decisions)


def rows_of(storage):
    return {one["id"]: one for one in read_log(storage).table.to_pylist()}


def in_log(storage):
    return from_details(stamp.detail for stamp in read_log(storage, ()).stamps)


def waiting(storage):
    return pending.pending_decisions(storage, RUN)


def test_a_decision_and_what_it_does_are_one_commit_and_the_slot_is_open_again():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"), decided(f"{TWO}-1"))
    fragments = read_log(storage, ()).fragments
    assert commit_waiting(storage).decisions == 2
    assert read_log(storage, ()).fragments == fragments + 3  # open, verdicts, close
    rows = rows_of(storage)
    assert (rows[f"{ONE}-1"]["status"], rows[f"{ONE}-1"]["reason"]) == ("rejected", "reviewed")
    assert rows[f"{TWO}-1"]["reviewed"] == "accepted"
    status = read_status(storage, at(60))
    assert (status["state"], status["open"]) == ("interrupted", 1)
    assert waiting(storage) == []
    assert fsck(storage) == []


def test_the_error_rate_is_there_before_and_after_the_commit():
    storage, _ = begun()
    said = [decided(f"{slot}-1", "reject" if slot == FOUR else "accept") for slot in SLOTS]
    save(storage, *said)
    before = read_status(storage, at(60))["review"]
    commit_waiting(storage)
    after = read_status(storage, at(60))["review"]
    assert (before["waiting"], after["waiting"]) == (5, 0)
    for review in (before, after):
        assert (review["sampled"], review["decided"], review["errors"]) == (5, 5, 1)
        assert review["error_rate"] == pytest.approx(0.2)
        assert {name: one["errors"] for name, one in review["by_class"].items()} == {"basic": 0, "burnt": 1}
        assert review["by_facet"]["burn_level=severe"]["rate"] == 0.5
    assert (before["rejected"], after["rejected"]) == (0, 1)


def test_a_driver_that_holds_the_log_is_never_fenced():
    storage, log = begun(state=None)
    save(storage, decided(f"{ONE}-1", "reject"))
    for minutes in (1, 600):  # alive, and silent for long: perhaps it sleeps
        with pytest.raises(LogInUseError):
            commit_waiting(storage, now=lambda minutes=minutes: at(minutes))
    log.close("complete")
    assert commit_waiting(storage).decisions == 1


def test_a_driver_that_starts_meanwhile_is_not_fenced_either():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"))
    drivers = []
    storage.before_create = lambda: drivers.append(start(storage))
    with pytest.raises(LogInUseError):
        commit_waiting(storage)
    drivers[0].close("complete")
    assert len(waiting(storage)) == 1


def test_who_is_taken_over_leaves_decisions_waiting():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"))

    def take_over():
        storage.before_create = lambda: start(storage)

    storage.after_create = take_over
    with pytest.raises(FencedError):
        commit_waiting(storage)
    assert len(waiting(storage)) == 1
    assert in_log(storage) == []


def _takes_in(storage, who):
    if who == "server":
        commit_waiting(storage, now=lambda: at(1))
    else:
        take_in(storage, start(storage), read_run(storage), restoring=False)


@pytest.mark.parametrize("place", ["before the commit", "after the commit"])
@pytest.mark.parametrize("who", ["server", "driver"])
def test_nothing_is_lost_and_nothing_counts_twice_whoever_is_killed(place, who, monkeypatch):
    storage, _ = begun()
    said = [decided(f"{ONE}-1", "reject"), decided(f"{TWO}-1", "accept")]
    save(storage, *said)

    def killed(*_arguments, **_named):
        raise KilledError

    with monkeypatch.context() as patch:
        if place == "before the commit":
            patch.setattr("balancer.manifest.log.writer.ManifestLog.commit_verdicts", killed)
        else:
            patch.setattr(taking, "delete_pending", killed)
        with pytest.raises(KilledError):
            _takes_in(storage, who)
    if who == "driver":  # the next one takes them in
        log = start(storage)
        take_in(storage, log, read_run(storage), restoring=True)
        log.close("interrupted")
    else:
        with pytest.raises(LogInUseError):  # so soon after, another may still be at it
            commit_waiting(storage, now=lambda: at(1.5))
        commit_waiting(storage, now=lambda: at(10))
    assert waiting(storage) == []
    assert in_log(storage) == said
    review = read_status(storage, at(60))["review"]
    assert (review["decided"], review["errors"], review["rejected"]) == (2, 1, 1)
    assert fsck(storage) == []


def test_a_decision_that_is_saved_twice_counts_once():
    storage, _ = begun()
    one = decided(f"{ONE}-1", "reject")
    save(storage, one)
    save(storage, one)
    commit_waiting(storage)
    save(storage, one)
    commit_waiting(storage)
    assert in_log(storage) == [one]
    assert waiting(storage) == []


def test_people_can_change_their_minds_until_the_slot_is_filled():
    storage, _ = begun()
    hasty = decided(f"{ONE}-1", "reject")
    save(storage, hasty)
    commit_waiting(storage)
    assert read_status(storage, at(60))["state"] == "interrupted"
    save(storage, undone(hasty))
    assert commit_waiting(storage).ids("restored") == [f"{ONE}-1"]
    assert read_status(storage, at(60))["state"] == "complete"
    assert rows_of(storage)[f"{ONE}-1"]["status"] == "accepted"
    save(storage, again := decided(f"{ONE}-1", "reject"))
    commit_waiting(storage)
    log = start(storage)
    log.commit([put(storage, row(ONE, 2))])
    log.close("complete")
    save(storage, undone(again))
    assert commit_waiting(storage).ids("too late") == [f"{ONE}-1"]
    assert fsck(storage) == []


def test_a_tie_keeps_the_verifiers_verdict_and_is_listed():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"), decided(f"{ONE}-1", "accept", by="bob"))
    commit_waiting(storage)
    assert rows_of(storage)[f"{ONE}-1"]["status"] == "accepted"
    review = read_status(storage, at(60))["review"]
    assert (review["tied"], review["decided"]) == ((f"{ONE}-1",), 0)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)


def kept(storage, slot, seed=1, vector=(1.0, 0.0, 0.0, 0.0), **changes):
    """A candidate that the verifier rejected, with its pixels."""
    drawn = pixels(seed)
    looks = {"pixel_sha256": pixel_sha256(drawn), "phash": perceptual_hash(drawn)}
    storage.replace(rejected_path(f"{slot}-1", "lighting"), encode_image(drawn, {"id": "x"}))
    embedding = np.array(vector, "<f2").tobytes()
    extra = {"prompt": "a pizza", "model": "embedded", "unjudged": [], "embedding": embedding}
    return rejected(slot, **(looks | extra | changes))


def test_an_image_that_people_want_in_comes_in_marked_and_stays_whatever_is_judged_anew():
    storage, log = begun([row(TWO), row(THREE), row(FOUR), row(FIVE)], state=None)
    log.commit([kept(storage, ONE)])
    log.close("short")
    save(storage, decided(f"{ONE}-1", "accept", queue="correct"))
    assert commit_waiting(storage).ids("restored") == [f"{ONE}-1"]
    one = rows_of(storage)[f"{ONE}-1"]
    assert (one["status"], one["reviewed"], one["score"]) == ("accepted", "accepted", 0.25)
    assert one["file_name"].startswith("images/basic/dim/-/0000-1-")
    assert fsck(storage) == []
    assert read_status(storage, at(60))["state"] == "complete"
    apply(storage, ["verification.threshold=0.65"], now=lambda: at(60))
    assert rows_of(storage)[f"{ONE}-1"]["status"] == "accepted"
    assert fsck(storage) == []


@pytest.mark.parametrize("what", ["other pixels", "a copy of an accepted image", "no pixels"])
def test_an_image_stays_out_if_it_is_not_the_one_that_was_judged_or_a_copy(what):
    storage, log = begun([row(THREE), row(FOUR), row(FIVE)], state=None)
    wanted = kept(storage, ONE)
    copied = {name: wanted[name] for name in ("phash", "pixel_sha256", "embedding")}
    if what == "other pixels":
        wanted["pixel_sha256"] = "0" * 64
    elif what == "no pixels":
        storage.delete(rejected_path(f"{ONE}-1", "lighting"))
    log.commit([wanted, put(storage, row(TWO, **(copied if "copy" in what else {}), unjudged=[]))])
    log.close("short")
    save(storage, decided(f"{ONE}-1", "accept"))
    assert commit_waiting(storage).ids("no image") == [f"{ONE}-1"]
    assert not any(path.startswith("images/basic/dim/-/0000") for path in storage.list("images"))


def test_what_people_rejected_stays_out_whatever_is_judged_anew():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"))
    commit_waiting(storage)
    assert rejudge(storage, ["verification.threshold=0.1"]).changes == ()
    apply(storage, ["verification.threshold=0.1"], now=lambda: at(60))
    assert rows_of(storage)[f"{ONE}-1"]["reason"] == "reviewed"


def test_judging_anew_hears_people_first():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"))
    apply(storage, ["verification.threshold=0.1"], now=lambda: at(60))
    assert rows_of(storage)[f"{ONE}-1"]["reason"] == "reviewed"
    assert waiting(storage) == []


def test_real_images_are_decided_about_and_stay_as_they_are():
    storage, _ = begun([row(ONE), real("a.png")], state="interrupted")
    save(storage, decided("real/a.png", "reject"), decided(f"{ONE}-1"))
    commit_waiting(storage)
    assert rows_of(storage)["real/a.png"]["status"] == "accepted"
    assert read_status(storage, at(60))["review"]["known"] == {"shown": 1, "accepted": 0}


def test_a_run_of_an_earlier_version_hears_what_people_reject():
    storage, _ = begun(format=5)
    save(storage, decided(f"{ONE}-1", "reject"), decided(f"{TWO}-1"))
    commit_waiting(storage)
    assert "reviewed" not in read_log(storage).table.column_names
    assert rows_of(storage)[f"{ONE}-1"]["reason"] == "reviewed"
    assert read_status(storage, at(60))["review"]["errors"] == 1
    assert rejudge(storage, ["verification.threshold=0.1"]).changes == ()
    assert fsck(storage) == []


def test_a_damaged_file_of_decisions_stops_nobody_and_is_named():
    storage, _ = begun()
    save(storage, decided(f"{ONE}-1", "reject"))
    (good,) = storage.list(PENDING_DIR)
    document = json.loads(storage.read(good))
    document["decisions"][0]["answer"] = "accept"
    storage.files[f"{PENDING_DIR}/0-forged.json"] = json.dumps(document).encode()
    storage.files[f"{PENDING_DIR}/1-cut.json"] = storage.read(good)[:40]
    storage.files[f"{PENDING_DIR}/2-of-another.json"] = storage.read(good).replace(b"run-1", b"run-2")
    taken = commit_waiting(storage)
    assert (taken.decisions, len(taken.unreadable)) == (1, 3)
    notes = [note.path for note in check_run(storage).notes if note.rule == "waiting decisions can be read"]
    assert len(notes) == 3
    assert find_unneeded(storage) == []


def test_decisions_about_images_that_are_not_there_are_kept_and_do_nothing():
    storage, _ = begun()
    save(storage, decided("basic/dim/0000-9", "reject"))
    assert commit_waiting(storage).decisions == 1
    assert [problem.rule for problem in fsck(storage)] == ["decisions are on committed rows"]


def test_a_full_disk_leaves_nothing_that_counts(monkeypatch):
    storage, _ = begun()

    def full(path, data):
        raise StorageError("no space left")

    monkeypatch.setattr(storage, "create", full)
    with pytest.raises(StorageError):
        save(storage, decided(f"{ONE}-1"))
    assert waiting(storage) == []


def test_many_decisions_go_into_commits_of_bounded_size(monkeypatch):
    storage, _ = begun()
    monkeypatch.setattr(taking, "MOST_AT_ONCE", 2)
    monkeypatch.setattr(pending, "MOST_IN_A_FILE", 2)
    said = [decided(f"{slot}-1", "reject") for slot in SLOTS]
    save(storage, *said)
    assert len(storage.list(PENDING_DIR)) == 3
    assert commit_waiting(storage).decisions == 5
    details = [stamp.detail for stamp in read_log(storage, ()).stamps]
    assert [len(detail["decisions"]) for detail in details if "decisions" in (detail or {})] == [2, 2, 1]
    assert in_log(storage) == said


def test_a_cell_with_too_many_errors_for_sure_is_quarantined_until_all_of_it_is_decided():
    config = run_info().config | {"review": {"fraction": 1.0, "margin": None, "max_error": 0.1}}
    storage, _ = begun(config=config)
    save(storage, *(decided(f"{slot}-1", "reject") for slot in (ONE, TWO)))
    commit_waiting(storage)
    assert read_status(storage, at(60))["review"]["quarantined"] == ("basic/dim",)
    save(storage, decided(f"{THREE}-1"))
    commit_waiting(storage)
    assert read_status(storage, at(60))["review"]["quarantined"] == ()
