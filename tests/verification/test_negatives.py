from __future__ import annotations

import numpy as np
import pytest

from balancer.verification.negatives import NEGATIVES, domain_score, negatives_for


def test_the_score_is_the_share_of_the_classes_in_the_softmax():
    logits = np.log([[1.0, 2.0, 3.0, 4.0], [5.0, 0.5, 0.25, 0.25]])
    assert domain_score(logits[:, :2], logits[:, 2:]) == pytest.approx([0.3, 5.5 / 6.0])


def test_the_same_constant_on_all_logits_changes_nothing():
    logits = np.random.default_rng(0).normal(0.0, 3.0, (5, 9))
    plain = domain_score(logits[:, :4], logits[:, 4:])
    for constant in (-2e3, 2e3):
        shifted = logits + constant
        assert domain_score(shifted[:, :4], shifted[:, 4:]) == pytest.approx(plain)


def test_logits_far_apart_give_0_and_1_and_small_scores_keep_their_size():
    far = np.array([[-1e4], [1e4], [-300.0]])
    scores = domain_score(far, np.zeros((3, 1)))
    assert scores[:2].tolist() == [0.0, 1.0]
    assert scores[2] == pytest.approx(np.exp(-300.0))


def test_half_precision_is_computed_in_doubles():
    scores = domain_score(np.full((1, 2), 60.0, np.float16), np.full((1, 2), 60.0, np.float16))
    assert scores.dtype == np.float64
    assert scores.tolist() == [0.5]


@pytest.mark.parametrize("place", [(0, 0), (0, 3)])
def test_an_image_with_a_nan_scores_nan_and_leaves_its_neighbours_alone(place):
    logits = np.zeros((2, 5))
    logits[place] = np.nan
    scores = domain_score(logits[:, :2], logits[:, 2:])
    assert np.isnan(scores[0])
    assert scores[1] == pytest.approx(0.4)


def test_infinite_logits_on_both_sides_score_nan():
    assert np.isnan(domain_score(np.array([[np.inf]]), np.array([[np.inf]]))).all()


def test_without_negatives_everything_is_of_the_domain():
    assert domain_score(np.zeros((3, 2)), np.empty((3, 0))).tolist() == [1.0] * 3


def test_no_images_have_no_scores():
    assert domain_score(np.empty((0, 2)), np.empty((0, 3))).shape == (0,)


def test_negatives_are_a_few_dozen_short_wordings_each_named_once():
    assert 24 <= len(NEGATIVES) <= 60
    assert len({wording.casefold() for wording in NEGATIVES}) == len(NEGATIVES)
    assert all(wording == wording.strip() and 1 <= len(wording.split()) <= 6 for wording in NEGATIVES)


def test_a_negative_that_names_a_class_is_left_out():
    kept = negatives_for(["small Dogs on a street", "a photo of textile"])
    assert set(NEGATIVES) - set(kept) == {"a dog", "a street", "textile"}


def test_words_such_as_articles_leave_no_negative_out():
    assert negatives_for(["a picture of the moon in an image", ""]) == NEGATIVES


def test_other_negatives_can_be_given():
    assert negatives_for(["a cat"], ["a cat!", "a mouse"]) == ("a mouse",)
