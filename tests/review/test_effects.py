from __future__ import annotations

import pytest

from balancer.review.effects import applied_to, find_effects
from tests.manifest_samples import real, rejected, row, void

ONE, TWO = "basic/dim/0000", "basic/dim/0001"
PROPERTIES = {"class", "lighting", "burn_level"}


def effects(rows, verdicts, filled=(), pixels=()):
    found = find_effects(rows, verdicts, set(filled), PROPERTIES, dict.fromkeys(pixels))
    return {effect.id: effect.kind for effect in found}


def accepted(slot=ONE, attempt=1, reviewed=None, **changes):
    return row(slot, attempt, reviewed=reviewed, **changes)


def refused(slot=ONE, attempt=1, reason="lighting", reviewed=None, **changes):
    return rejected(slot, attempt, reason, reviewed=reviewed, **changes)


def out(slot=ONE, attempt=1, **changes):
    """Accepted by the verifier, rejected by people."""
    return row(slot, attempt, status="rejected", reason="reviewed", reviewed="rejected", **changes)


@pytest.mark.parametrize(
    ("row", "verdict", "kind"),
    [
        (accepted(), "reject", "revoked"),
        (accepted(), "accept", "kept"),
        (accepted(), "tie", None),
        (accepted(reviewed="accepted"), "accept", None),
        (accepted(reviewed="accepted"), "tie", "kept"),
        (accepted(reviewed="accepted"), None, "kept"),
        (accepted(reviewed="accepted", score=0.3), "tie", "withdrawn"),
        (accepted(reviewed="accepted", score=0.3), "accept", None),
        (out(), "reject", None),
        (out(), "accept", "restored"),
        (out(), "tie", "restored"),
        (out(), None, "restored"),
        (out(score=0.3), "tie", None),
        (refused(), "reject", None),
        (refused(), "accept", "no image"),
        (refused(reason="blank"), "accept", None),
        (refused(reason="near_copy"), "accept", None),
        (void(ONE), "accept", None),
        (real("a.png"), "reject", None),
    ],
)
def test_what_people_say_of_a_row_has_one_effect(row, verdict, kind):
    verdicts = {} if verdict is None else {row["id"]: verdict}
    assert effects([row], verdicts) == ({} if kind is None else {row["id"]: kind})


def test_a_rejected_candidate_comes_in_where_its_pixels_were_kept_and_its_slot_is_empty():
    wanted = refused()
    assert effects([wanted], {wanted["id"]: "accept"}, pixels=[wanted["id"]]) == {wanted["id"]: "restored"}
    assert effects([wanted], {wanted["id"]: "accept"}, filled=[ONE], pixels=[wanted["id"]]) == {
        wanted["id"]: "too late"
    }


def test_who_leaves_makes_room_for_another_at_once():
    both = [refused(attempt=1), accepted(attempt=2)]
    verdicts = {f"{ONE}-1": "accept", f"{ONE}-2": "reject"}
    assert effects(both, verdicts, filled=[ONE], pixels=[f"{ONE}-1"]) == {
        f"{ONE}-1": "restored",
        f"{ONE}-2": "revoked",
    }


def test_of_two_that_people_want_in_the_lower_attempt_fills_the_slot():
    both = [refused(attempt=2), refused(attempt=1)]
    verdicts = dict.fromkeys((one["id"] for one in both), "accept")
    assert effects(both, verdicts, pixels=verdicts) == {f"{ONE}-1": "restored", f"{ONE}-2": "too late"}


def test_rows_of_earlier_versions_say_only_what_people_rejected():
    old, old_rejected = row(ONE), rejected(TWO)
    assert effects([old], {old["id"]: "accept"}) == {}
    assert effects([old], {old["id"]: "reject"}) == {old["id"]: "revoked"}
    assert effects([old_rejected], {old_rejected["id"]: "accept"}, pixels=[old_rejected["id"]]) == {}
    (effect,) = find_effects([old], {old["id"]: "reject"}, set(), PROPERTIES, {})
    assert applied_to(old, effect) == old | {"status": "rejected", "reason": "reviewed"}


def changed(before, verdict, pixels=(), file=None):
    (effect,) = find_effects([before], {before["id"]: verdict}, set(), PROPERTIES, dict.fromkeys(pixels))
    return applied_to(before, effect, file)


def test_the_same_verdicts_twice_do_nothing():
    for before in (accepted(), out(), accepted(reviewed="accepted", score=0.3)):
        for verdict in ("accept", "reject", "tie"):
            if effects([before], {before["id"]: verdict}):
                after = changed(before, verdict)
                assert effects([after], {before["id"]: verdict}) == {}


def test_a_revoked_row_keeps_its_image_and_its_place_in_the_sample():
    after = changed(accepted(review=True), "reject")
    assert after["status"], after["reason"] == ("rejected", "reviewed")
    assert after["reviewed"] == "rejected"
    assert after["review"]
    assert after["file_name"] is not None


def test_a_restored_row_names_its_image_and_is_marked():
    file = {"file_name": "images/a.png", "sha256": "0" * 64, "num_bytes": 7}
    after = changed(refused(), "accept", pixels=[f"{ONE}-1"], file=file)
    assert (after["status"], after["reason"], after["reviewed"]) == ("accepted", None, "accepted")
    assert {name: after[name] for name in file} == file


def test_whoever_is_no_longer_wanted_by_people_has_the_verifiers_reason_again():
    before = refused() | {"status": "accepted", "reason": None, "reviewed": "accepted"}
    assert changed(before, "tie")["reason"] == "lighting"
