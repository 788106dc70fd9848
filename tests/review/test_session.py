"""What a person is asked, and what the numbers come to: on the reference run."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter

import pytest
from scipy import stats

from balancer import open_manifest
from balancer.errors import UsageError
from balancer.export import export
from balancer.manifest.log.view import read_log
from balancer.manifest.maintenance.fsck import fsck
from balancer.manifest.rows import utc_now
from balancer.manifest.status import read_status
from balancer.review import pending
from balancer.review.decisions import Decision
from balancer.review.importing import import_decisions
from balancer.review.session import ReviewSession, question
from balancer.review.summary import Summary
from balancer.review.words import describe_review
from balancer.storage import open_storage
from tests.manifest_samples import MemoryStorage, real, rejected, row, start


@pytest.fixture(scope="module")
def reviewed(reference_run, tmp_path_factory):
    """A copy of the reference run, of which ann is asked about the estimate sample."""
    folder = tmp_path_factory.mktemp("reviewed") / "run"
    shutil.copytree(reference_run, folder)
    session = ReviewSession.open(open_storage(folder, create=False), "ann", "estimate")
    return folder, session, session.items()


def answered(item, answer):
    return Decision(uuid.uuid4().hex, item.id, answer, "ann", "estimate", 1.0, utc_now())


def test_the_reference_run_is_reviewed_counted_and_reopened(reviewed):
    _, session, items = reviewed
    asked = Counter(item.id for item in items)
    sample = [item for item in asked if not item.startswith("real/")]
    assert len(sample) == 24
    assert "14 %" in session.progress().sentence.replace("14%", "14 %")
    wrong = set(sample[:3])
    for item in items:
        session.save([answered(item, "reject" if item.id in wrong else "accept")])
    assert session.items() == []
    assert session.progress().waiting == len(items)
    assert session.commit() == len(items)
    assert session.progress().waiting == 0
    status = read_status(session.storage, utc_now())
    review, exact = status["review"], stats.binomtest(3, 24).proportion_ci(0.95, method="exact")
    assert (review["sampled"], review["decided"], review["errors"]) == (24, 24, 3)
    assert review["error_rate"] == 3 / 24
    assert (review["low"], review["high"]) == pytest.approx((exact.low, exact.high))
    assert sum(part["decided"] for part in review["by_class"].values()) == 24
    assert review["within"]["ann"]["agreed"] == review["within"]["ann"]["pairs"] == 2
    assert review["known"] == {"shown": 2, "accepted": 2}
    assert (status["state"], status["accepted"], status["open"]) == ("interrupted", 241, 3)
    assert fsck(session.storage) == []
    lines = describe_review(Summary.from_dict(review))
    assert "label error of accepted images, by ann: 3 of 24 wrong: 12.5 % (2.7 % to 32.4 %)" in lines[0]


def test_every_image_that_is_asked_about_can_be_read_and_no_other(reviewed):
    _, session, items = reviewed
    for item in items[:5]:
        assert session.read_image(item.file_name)
        for name in item.real_examples:
            assert session.read_image(name)
    for name in ("run.json", "../run.json", "images/none.png"):
        with pytest.raises(UsageError):
            session.read_image(name)


def test_an_item_says_nothing_of_what_the_verifier_thinks(reviewed):
    assert set(reviewed[2][0].__slots__) == {
        "id",
        "class_name",
        "facets",
        "file_name",
        "question",
        "real_examples",
    }


def test_a_question_is_in_the_words_of_the_config():
    assert question("a burnt pizza", []) == "Is this a burnt pizza?"
    assert question("a burnt pizza", ["dim light", "charred spots"]) == (
        "Is this a burnt pizza: dim light, charred spots?"
    )


def small_run():
    storage = MemoryStorage()
    log = start(storage)
    rows = [
        row("basic/dim/0000", review=True, score=0.9),
        row("basic/dim/0001", score=0.7),
        row("basic/dim/0002", score=0.62),
        row("burnt/dim/severe/0000", score=0.8),
        rejected("burnt/dim/severe/0001", score=0.5),
    ]
    log.commit(rows)
    log.close("short")
    return storage


def asked(storage, queue, reviewer="ann"):
    return [item.id for item in ReviewSession.open(storage, reviewer, queue).items()]


def test_the_two_samples_are_never_mixed():
    storage = small_run()
    assert asked(storage, "estimate") == ["basic/dim/0000-1"]
    assert asked(storage, "correct") == ["basic/dim/0002-1", "basic/dim/0001-1", "burnt/dim/severe/0000-1"]
    assert asked(storage, "basic") == ["basic/dim/0002-1", "basic/dim/0001-1"]


def test_candidates_that_were_rejected_are_asked_about_where_they_can_come_in():
    storage = small_run()
    storage.replace("rejected/lighting/burnt/dim/severe/0001-1.png", b"pixels")
    assert "burnt/dim/severe/0001-1" in asked(storage, "correct")
    session = ReviewSession.open(storage, "ann", "burnt")
    item = next(item for item in session.items() if item.id == "burnt/dim/severe/0001-1")
    assert session.read_image(item.file_name) == b"pixels"


def test_real_images_are_mixed_in_only_if_the_question_does_not_tell_them():
    storage = MemoryStorage()
    log = start(storage)
    log.commit(
        [
            *(row(f"basic/dim/{number:04d}", review=True) for number in range(10)),
            real("told.png", "basic"),
            real("untold.png", "basic", lighting=None),
        ]
    )
    items = ReviewSession.open(storage, "ann", "estimate").items()
    assert [item.id for item in items if item.id.startswith("real/")] == ["real/told.png"]
    assert len({item.question for item in items}) == 1


def test_each_reviewer_decides_the_whole_sample_and_goes_on_where_they_were():
    storage = small_run()
    session = ReviewSession.open(storage, "ann", "estimate")
    session.save([answered(session.items()[0], "accept")])
    assert asked(storage, "estimate") == []
    assert asked(storage, "estimate", "bob") == ["basic/dim/0000-1"]


def test_an_undone_decision_is_asked_for_again():
    storage = small_run()
    session = ReviewSession.open(storage, "ann", "estimate")
    one = answered(session.items()[0], "reject")
    session.save([one])
    undo = Decision("undo-1", one.item, "undo", "ann", "estimate", 0.5, utc_now(), undoes=one.key)
    session.save([undo])
    assert [item.id for item in session.items()] == [one.item]
    session.commit()
    assert read_log(storage).table.to_pylist()[0]["status"] == "accepted"


def test_a_session_sees_what_others_decided_and_made_meanwhile():
    storage = small_run()
    session = ReviewSession.open(storage, "ann", "estimate")
    log = start(storage)
    log.commit([row("burnt/dim/severe/0001", 2, review=True)])
    session.refresh()
    assert session.progress().total == 2


@pytest.mark.parametrize("queue", ["", "burned", "Estimate"])
def test_a_queue_that_there_is_not_is_named_with_those_there_are(queue):
    with pytest.raises(UsageError, match="no queue"):
        asked(small_run(), queue)


def test_what_an_export_sends_to_label_studio_and_fiftyone_comes_back(reviewed, tmp_path):
    """Of an export, one label is changed; in FiftyOne nothing else is said."""
    folder, session, _ = reviewed
    manifest, where = open_manifest(folder), "class = 'burnt' and source = 'synthetic'"
    images = {}
    for form in ("labelstudio", "fiftyone"):
        images[form] = export(manifest, form, tmp_path / form, where).images
    tasks = json.loads((tmp_path / "labelstudio" / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [
            {"result": task["predictions"][0]["result"], "completed_by": {"email": "a@b.c"}}
        ]
    tasks[0]["annotations"][0]["result"][0]["value"]["choices"] = ["basic"]
    (tmp_path / "annotated.json").write_text(json.dumps(tasks))
    storage = copied(folder, tmp_path)
    found = import_decisions(storage, tmp_path / "annotated.json", "ann")
    assert (found.decisions, found.unknown) == (images["labelstudio"], 0)
    said = [one for one in pending.pending_decisions(storage, session.info.run_id) if one.reviewer == "a@b.c"]
    assert [one.item for one in said if one.answer == "reject"] == [tasks[0]["data"]["id"]]
    path = tmp_path / "fiftyone" / "samples.json"
    document = json.loads(path.read_text())
    document["samples"][1]["ground_truth"]["label"] = "basic"
    path.write_text(json.dumps(document))
    found = import_decisions(storage, tmp_path / "fiftyone", "bob")
    assert (found.decisions, found.undecided) == (1, images["fiftyone"] - 1)


def copied(folder, tmp_path):
    """The files that decisions need."""
    (tmp_path / "copy").mkdir()
    for name in ("run.json", "manifest"):
        kept = folder / name
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, tmp_path / "copy" / name)
    return open_storage(tmp_path / "copy", create=False)
