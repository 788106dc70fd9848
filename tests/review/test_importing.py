from __future__ import annotations

import json

import pytest

from balancer.errors import UsageError
from balancer.manifest.log.view import read_log
from balancer.review import pending
from balancer.review.importing import import_decisions
from balancer.review.turn import commit_waiting
from tests.manifest_samples import MemoryStorage, row, start

ONE, TWO, THREE = "basic/dim/0000-1", "burnt/dim/severe/0000-1", "burnt/dim/severe/0001-1"


@pytest.fixture
def storage():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(name.removesuffix("-1")) for name in (ONE, TWO, THREE)])
    log.close("complete")
    return storage


def task(item, choices, **annotation):
    """As Label Studio exports a task that `balancer export` sent."""
    result = [
        {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}}
        for name, value in choices.items()
    ]
    usual = {"completed_by": 3, "lead_time": 4.5, "created_at": "2026-03-01T12:00:00.000000Z"}
    return {
        "id": 1,
        "data": {"id": item, "image": "x"},
        "annotations": [usual | {"result": result} | annotation],
    }


def sample(item, label="burnt", level="severe", tags=(), label_tags=()):
    """As FiftyOne writes a sample."""
    return {
        "balancer_id": item,
        "tags": ["train", "synthetic", *tags],
        "ground_truth": {"_cls": "Classification", "label": label, "tags": list(label_tags)},
        "lighting": {"_cls": "Classification", "label": "dim", "tags": []},
        "burn_level": {"_cls": "Classification", "label": level, "tags": []} if level else None,
    }


def imported(storage, tmp_path, document, reviewer="ann"):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(document))
    found = import_decisions(storage, path, reviewer)
    said = {
        decision.item: (decision.answer, decision.reason)
        for decision in pending.pending_decisions(storage, "run-1")
    }
    return found, said


RIGHT = {"class": "burnt", "lighting": "dim", "burn_level": "severe"}


def test_label_studio_accepts_by_the_labels_that_were_asked_for_and_rejects_by_others(storage, tmp_path):
    tasks = [
        task(ONE, {"class": "burnt", "lighting": "dim"}),
        task(TWO, RIGHT),
        task(THREE, RIGHT | {"burn_level": "slight"}),
        task("burnt/dim/severe/0009-1", RIGHT),
        task(TWO, {}),
        task(TWO, RIGHT, was_cancelled=True),
    ]
    found, said = imported(storage, tmp_path, tasks)
    assert said == {ONE: ("reject", "class"), TWO: ("accept", None), THREE: ("reject", "property")}
    assert (found.decisions, found.unknown, found.undecided) == (3, 1, 1)
    one = pending.pending_decisions(storage, "run-1")[0]
    assert (one.reviewer, one.queue, one.seconds) == ("user 3", "correct", 4.5)
    commit_waiting(storage)
    rows = {one["id"]: one["reason"] for one in read_log(storage).table.to_pylist()}
    assert rows == {ONE: "reviewed", TWO: None, THREE: "reviewed"}


def test_fiftyone_decides_by_tags_and_by_changed_labels_and_not_by_silence(storage, tmp_path):
    samples = [
        sample(ONE, "basic", None, label_tags=["reject"]),
        sample(TWO),
        sample(THREE, level="moderate"),
    ]
    found, said = imported(storage, tmp_path, {"samples": samples})
    assert said == {ONE: ("reject", None), THREE: ("reject", "property")}
    assert found.undecided == 1
    again = [sample(TWO, tags=["accept"]), sample(THREE, tags=["accept", "reject"])]
    assert imported(storage, tmp_path, {"samples": again})[1][TWO] == ("accept", None)


def test_the_same_file_again_changes_nothing_and_another_answer_does(storage, tmp_path):
    assert imported(storage, tmp_path, [task(TWO, RIGHT)])[0].decisions == 1
    commit_waiting(storage)
    again = imported(storage, tmp_path, [task(TWO, RIGHT)])[0]
    assert (again.decisions, again.unchanged) == (0, 1)
    wrong = [task(TWO, RIGHT | {"class": "basic"}, created_at="2026-03-01T13:00:00Z")]
    assert imported(storage, tmp_path, wrong)[0].decisions == 1
    commit_waiting(storage)
    right = [task(TWO, RIGHT, created_at="2026-03-01T14:00:00Z")]
    assert imported(storage, tmp_path, right)[0].decisions == 1
    commit_waiting(storage)
    assert {one["id"]: one["status"] for one in read_log(storage).table.to_pylist()}[TWO] == "accepted"


@pytest.mark.parametrize(
    "content",
    ["", "{", "7", "{}", '{"samples": {}}', '[{"data": {}}]', '[{"data": {"id": "x"}, "annotations": [7]}]'],
)
def test_a_file_of_anything_else_is_one_line_and_saves_nothing(storage, tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="--import"):
        import_decisions(storage, path, "ann")
    assert pending.list_pending(storage) == []


def test_a_file_that_is_not_there_is_named(storage, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        import_decisions(storage, tmp_path / "nowhere.json", "ann")
