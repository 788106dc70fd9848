"""People decide while a run goes on."""

from __future__ import annotations

import pytest

from balancer.errors import FencedError, StorageError
from balancer.manifest import ManifestLog, read_run
from balancer.manifest.rows import utc_now
from balancer.manifest.status import read_status
from balancer.review import pending, taking
from balancer.review.decisions import from_details
from tests.loop.test_driver import Trial, make_config
from tests.review.decided import decided

PATIENT = {"max": 12}


def trial_in(folder, per_class=15):
    config = make_config(0.9, attempts=PATIENT, target={"per_class": per_class})
    return Trial(folder, config, reviewed=True)


def first_wrong(accepted):
    return [decided(accepted[0], "reject")]


def decide(trial, after, choose):
    """As soon as so many images are accepted, people decide about some; returns what they will say."""
    said, run_id = [], read_run(trial.storage).run_id

    def look(snapshot):
        if not said and len(trial.accepted()) >= after:
            said.extend(choose(trial.accepted()))
            pending.save(trial.storage, run_id, said)

    trial.driver.on_progress = look
    return said


def three_wrong(accepted):
    return [decided(name, "reject") for name in accepted[:3]] + [decided(name) for name in accepted[3:6]]


@pytest.mark.parametrize("after", [3, 10])
def test_what_people_reject_meanwhile_is_made_again_and_the_run_ends_complete(after, tmp_path):
    trial = trial_in(tmp_path)
    said = decide(
        trial, after, lambda accepted: three_wrong(accepted) if after > 5 else first_wrong(accepted)
    )
    state = trial.run()
    assert state == "complete"
    rows = {row["id"]: row for row in trial.rows()}
    wrong = [one.item for one in said if one.answer == "reject"]
    assert wrong
    assert {rows[name]["reason"] for name in wrong} == {"reviewed"}
    assert len(trial.accepted()) == trial.schedule.wanted
    assert from_details(stamp.detail for stamp in trial.log.stamps) == said
    assert pending.list_pending(trial.storage) == []
    assert any("rejected, to be made again" in note for note in trial.notes)
    assert trial.closed_and_sound(state)
    assert read_status(trial.storage, utc_now())["review"]["rejected"] == len(wrong)


def test_a_run_that_nobody_reviews_accepts_the_same(tmp_path):
    trials = [trial_in(tmp_path / name) for name in ("one", "other")]
    trials[1].driver.reviewing = None
    for trial in trials:
        trial.run()
    assert trials[0].accepted() == trials[1].accepted()
    assert trials[0].log.stamps[-1].seq == trials[1].log.stamps[-1].seq


def test_a_bucket_that_does_not_answer_keeps_decisions_waiting_and_no_run_from_going_on(
    tmp_path, monkeypatch
):
    trial = trial_in(tmp_path, per_class=60)
    said = decide(trial, 3, first_wrong)
    usual, failed = taking.list_pending, []

    def failing(storage):
        if said and not failed:
            failed.append(storage)
            raise StorageError("no answer")
        return usual(storage)

    monkeypatch.setattr(taking, "list_pending", failing)
    assert trial.run() == "complete"
    assert failed
    assert any("what people decided waits" in note for note in trial.notes)
    assert from_details(stamp.detail for stamp in trial.log.stamps) == said


def test_a_driver_that_was_taken_over_takes_nothing_in(tmp_path):
    trial = trial_in(tmp_path)

    def take_over(accepted):
        info = read_run(trial.storage)
        ManifestLog.open(trial.storage, info.schema(), info.run_id)
        return first_wrong(accepted)

    decide(trial, 3, take_over)
    with pytest.raises(FencedError):
        trial.run()
    assert len(pending.list_pending(trial.storage)) == 1
