"""What the page of a review is told, and what it may say."""

from __future__ import annotations

import json
import shutil

import pytest

from balancer.errors import StorageError
from balancer.manifest import read_log
from balancer.review.decisions import REJECT_REASONS, from_details
from balancer.review.server import ReviewPages
from balancer.review.session import ReviewSession
from balancer.storage import LocalStorage
from balancer.web.answers import MAX_BODY_BYTES
from tests.review.small_run import HOSTILE, make_run
from tests.web.asking import FROM_OWN, TOKEN, ask, get, post


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_run(LocalStorage(folder), images=20, class_name=HOSTILE).close("complete")
    return folder


@pytest.fixture
def storage(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return LocalStorage(tmp_path / "run")


@pytest.fixture
def pages(storage):
    return ReviewPages.of(ReviewSession.open(storage, "ann", "estimate"))


def decision(asked, number=0, **changes):
    values = {"key": f"key-{number}", "item": asked["item"], "answer": "accept", "seconds": 1.25}
    return {**values, **changes}


def test_no_answer_tells_which_images_are_real_or_how_they_scored(pages):
    listed = get(pages.app(), "items").json
    assert len(listed["items"]) == 24  # 2 known images and 2 repeats with the 20 of the sample
    assert {name for item in listed["items"] for name in item} == {"item", "image", "question", "examples"}
    told = json.dumps(listed)
    assert not [word for word in ("real", "score", "-1", ".png", "prompt", "accepted") if word in told]
    assert get(pages.app(), f"images/{listed['items'][0]['image']}").headers["content-type"] == "image/png"


def test_a_hostile_name_of_a_class_is_text(storage):
    pages = ReviewPages.of(ReviewSession.open(storage, "<b>ann", HOSTILE))
    page = get(pages.app(), "").body.decode()
    assert "<img src=x" not in page
    assert "<b>ann" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;amp;" in page


def test_the_page_loads_its_own_files_only_and_has_no_program_in_it(pages):
    page = get(pages.app(), "").body.decode()
    assert "://" not in page
    assert "style=" not in page
    assert " on" + "click" not in page
    assert page.count("<script") == page.count('<script type="module" src="review.js"></script>') == 1
    for name in ("page.css", "review.css", "review.js", "outbox.js", "icon.svg"):
        assert get(pages.app(), name).status == 200


def test_an_answer_is_durable_when_the_page_hears_of_it(pages, storage):
    item = get(pages.app(), "items").json["items"][0]
    told = post(pages.app(), "decisions", {"decisions": [decision(item, answer="reject", reason="text")]})
    assert told.json["saved"] == ["key-0"]
    again = ReviewSession.open(storage, "ann", "estimate")  # as after a crash: nothing was committed
    [saved] = again.standing().values()
    assert (saved.answer, saved.reason, saved.queue, saved.seconds) == ("reject", "text", "estimate", 1.25)


def test_an_answer_that_cannot_be_saved_is_not_said_to_be(pages, monkeypatch):
    item = get(pages.app(), "items").json["items"][0]

    def full(self, decisions):
        raise StorageError("no space left")

    monkeypatch.setattr(ReviewSession, "save", full)
    told = post(pages.app(), "decisions", {"decisions": [decision(item)]})
    assert (told.status, told.json) == (503, {"error": "The server cannot save: no space left."})
    assert pages.saved == 0


def test_an_answer_that_is_sent_twice_counts_once(pages, storage):
    item = get(pages.app(), "items").json["items"][0]
    for _ in range(2):
        assert post(pages.app(), "decisions", {"decisions": [decision(item)]}).json["saved"] == ["key-0"]
    pages.commit_saved()
    assert get(pages.app(), "items").json["progress"]["decided"] == 1


def test_an_undo_in_the_same_breath_takes_the_answer_back(pages):
    item = get(pages.app(), "items").json["items"][0]
    undo = decision(item, 1, answer="undo", undoes="key-0")
    told = post(pages.app(), "decisions", {"decisions": [decision(item), undo]})
    assert told.json["progress"]["decided"] == 0


def test_what_another_server_asked_is_understood_by_the_next_one(pages, storage):
    """A browser kept the answer while the server was started anew."""
    items = get(pages.app(), "items").json["items"]
    post(pages.app(), "decisions", {"decisions": [decision(items[0])]})
    following = ReviewPages.of(ReviewSession.open(storage, "ann", "estimate"))
    sent = [decision(items[0]), decision(items[1], 1)]
    assert post(following.app(), "decisions", {"decisions": sent}).json["saved"] == ["key-0", "key-1"]


WRONG = {
    "another image": {"item": "0" * 24},
    "no image": {"item": None},
    "a path": {"item": "../run.json"},
    "no answer": {"answer": "maybe"},
    "no reason that there is": {"reason": "ugly"},
    "an undo of nothing": {"answer": "undo"},
    "a key that is none": {"key": "../../x"},
    "no number": {"seconds": "1"},
    "no finite number": {"seconds": float("inf")},
}


def test_what_the_page_does_not_send_is_refused_without_harm_to_the_rest(pages):
    items = get(pages.app(), "items").json["items"]
    wrong = [
        decision(items[0], **{"key": f"w{number}", **change}) for number, change in enumerate(WRONG.values())
    ]
    told = post(pages.app(), "decisions", {"decisions": [7, *wrong, decision(items[1], 1)]}).json
    assert told["saved"] == ["key-1"]
    assert len(told["refused"]) == 1 + len(WRONG)


def test_a_body_that_is_no_list_of_decisions_is_refused(pages):
    bodies = (b"", b"{", b"[]", b'{"decisions": 1}', b'{"decisions": [' + b"0," * 500 + b"0]}", b"[" * 9999)
    for body in bodies:
        assert ask(pages.app(), f"/{TOKEN}/decisions", "POST", FROM_OWN, body).status == 400


def test_a_large_body_is_not_read_to_its_end(pages):
    answer = ask(pages.app(), f"/{TOKEN}/decisions", "POST", FROM_OWN, b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status, str(MAX_BODY_BYTES) in answer.body.decode()) == (400, True)


def test_a_form_of_another_page_has_the_wrong_type(pages):
    headers = {**FROM_OWN, "content-type": "text/plain"}
    assert ask(pages.app(), f"/{TOKEN}/decisions", "POST", headers, b'{"decisions": []}').status == 400


def test_answers_go_into_the_log_when_the_reviewer_pauses(pages, storage):
    item = get(pages.app(), "items").json["items"][0]
    post(pages.app(), "decisions", {"decisions": [decision(item)]})

    def in_log():
        return len(from_details(stamp.detail for stamp in read_log(storage, ["id"]).stamps))

    pages.tick()
    assert in_log() == 0
    for _ in range(5):
        pages.tick()
    assert in_log() == 1
    assert pages.session.progress().waiting == 0


def test_each_reason_has_a_key(pages):
    page = get(pages.app(), "").body.decode()
    keys = [
        f'data-reason="{reason}" aria-keyshortcuts="{key}"' for key, reason in enumerate(REJECT_REASONS, 1)
    ]
    assert len(keys) == 9
    assert [key for key in keys if key not in page] == []
