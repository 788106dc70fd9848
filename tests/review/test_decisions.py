from __future__ import annotations

import json
import math

import pytest

from balancer.errors import UsageError
from balancer.review.agreement import between_reviewers, cohens_kappa, within_reviewers
from balancer.review.decisions import (
    REJECT_REASONS,
    Decision,
    count_unreadable,
    first_words,
    from_details,
    last_words,
    majority,
    once_each,
    verdicts,
)
from tests.review.decided import decided, undone


def test_a_decision_survives_json():
    one = decided("a", "reject", reason="class")
    assert Decision.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_there_is_a_reason_for_each_of_the_keys_1_to_9():
    assert len(REJECT_REASONS) == 9


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"key": "a key"}, "key"),
        ({"key": ""}, "key"),
        ({"item": ""}, "item"),
        ({"item": 3}, "no text"),
        ({"by": "x" * 101}, "reviewer"),
        ({"by": "two\nlines"}, "reviewer"),
        ({"answer": "perhaps"}, "answer"),
        ({"queue": "basic"}, "queue"),
        ({"seconds": math.nan}, "time"),
        ({"seconds": -1}, "time"),
        ({"seconds": True}, "time"),
        ({"reason": "ugly"}, "reason"),
        ({"answer": "undo"}, "undo"),
        ({"undoes": "key-1"}, "undo"),
        ({"decided_at": decided("a").decided_at.replace(tzinfo=None)}, "time zone"),
    ],
)
def test_what_no_page_can_have_sent_is_no_decision(changes, wrong):
    with pytest.raises(UsageError, match=wrong):
        decided(**({"item": "a"} | changes))


def test_a_forged_log_gives_no_decision_and_no_error():
    good = decided("a")
    odd = [{}, None, 7, good.as_dict() | {"seconds": "long"}, good.as_dict() | {"more": 1}, good.as_dict()]
    assert from_details([{"decisions": odd}, {"decisions": "none"}, None]) == [good]
    assert count_unreadable({"decisions": odd}) == 5


def test_the_same_key_counts_once():
    one, other = decided("a"), decided("b")
    assert once_each([one, other, one]) == [one, other]


def test_the_last_word_of_each_reviewer_stands():
    said = [decided("a", "reject"), decided("a", "accept"), decided("a", "reject", by="bob")]
    assert {name: word.answer for name, word in last_words(said)["a"].items()} == {
        "ann": "accept",
        "bob": "reject",
    }


def test_the_first_word_counts_for_estimates():
    said = [decided("a", "reject"), decided("a", "accept")]
    assert first_words(said)["a"]["ann"].answer == "reject"


def test_what_is_undone_was_never_said():
    wrong = decided("a", "reject")
    assert last_words([wrong, undone(wrong)]) == {}
    right = decided("a", "accept")
    assert verdicts(first_words([wrong, undone(wrong), right])) == {"a": "accept"}


def test_nobody_can_take_back_what_somebody_else_said():
    hers = decided("a", "reject")
    assert verdicts(last_words([hers, undone(hers, by="bob")])) == {"a": "reject"}


def test_the_order_of_files_does_not_matter_but_that_of_answers():
    early, late = decided("a", "reject"), decided("a", "accept")
    assert verdicts(last_words([late, early])) == {"a": "accept"}


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [("ar", "tie"), ("arr", "reject"), ("aar", "accept"), ("r", "reject"), ("", "tie")],
)
def test_the_majority_decides_and_a_tie_does_not(answers, verdict):
    words = {
        str(number): decided("a", "accept" if answer == "a" else "reject", by=str(number))
        for number, answer in enumerate(answers)
    }
    assert majority(words) == verdict


def test_kappa_is_that_of_a_textbook():
    # Cohen's kappa of 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no is 0.4.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs).kappa == pytest.approx(0.4)
    assert cohens_kappa(pairs).agreed == 35


def test_kappa_is_nothing_where_it_says_nothing():
    assert cohens_kappa([]).kappa is None
    assert cohens_kappa([("y", "y")] * 9).kappa is None


def test_repeats_give_agreement_within_and_shared_images_between_reviewers():
    said = [
        decided("a", "accept"),
        decided("a", "accept"),
        decided("b", "reject"),
        decided("b", "accept"),
        decided("b", "reject", by="bob"),
        decided("c", "accept", by="bob", queue="correct"),
        decided("c", "accept", queue="correct"),
    ]
    assert {name: (found.pairs, found.agreed) for name, found in within_reviewers(said).items()} == {
        "ann": (2, 1)
    }
    assert {names: (found.pairs, found.agreed) for names, found in between_reviewers(said).items()} == {
        ("ann", "bob"): (1, 1)
    }
