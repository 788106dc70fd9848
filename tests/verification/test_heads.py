from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from balancer.verification.head_fitting import (
    FOLDS,
    FittedHead,
    _evenly,
    candidates,
    fit_head,
    no_head,
    words_loss,
)
from balancer.verification.heads import (
    MAX_VALUES,
    HeadProof,
    better,
    log_softmax,
    read_head,
    to_bytes,
)
from balancer.verification.small_pictures import EDGES, THUMBNAIL, picture_features

VALUES = ("hole", "stain", "crease", "fine")
RIGHT, WRONG = 6.0, 0.0


def images(count, seed=0, words=WRONG, values=4, apart=4.0):
    """Features that tell the values apart in kind `final` only, labels, and scores of words that are as good
    as `words` says."""
    random = np.random.default_rng((seed, 1))
    labels = np.arange(count) % values
    centres = np.random.default_rng(5).normal(0, apart / np.sqrt(20), (values, 20))
    features = {
        "final": centres[labels] + random.normal(0, 1, (count, 20)),
        "block1.moments": random.normal(0, 1, (count, 100)),
    }
    scores = random.normal(0, 1, (count, values)) + words * np.eye(values)[labels]
    return features, labels, log_softmax(scores)


def fit(features, labels, zero_shot, groups=None, values=VALUES, min_examples=5):
    groups = np.arange(len(labels)) if groups is None else groups
    return fit_head(features, labels, groups, zero_shot, values, min_examples)


@functools.cache
def fitted(words=WRONG) -> FittedHead:
    return fit(*images(60, words=words))


@functools.cache
def fitted_on_three() -> FittedHead:
    """The last value has two examples only."""
    features, labels, zero_shot = images(60)
    rows = np.flatnonzero((labels < 3) | (np.cumsum(labels == 3) <= 2))
    return fit({kind: each[rows] for kind, each in features.items()}, labels[rows], zero_shot[rows])


def accuracy(scores, labels) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


# ---- what a head says --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fitted, fitted_on_three])
def test_probabilities_sum_to_1(make):
    features, _, zero_shot = images(100, 1)
    likely = np.exp(make().head.log_probabilities(features, zero_shot))
    assert likely.sum(axis=1) == pytest.approx(np.ones(100))
    assert np.exp(make().log_probabilities).sum(axis=1) == pytest.approx(1.0)


def test_a_value_without_enough_examples_keeps_the_score_of_the_words():
    head = fitted_on_three().head
    features, _, zero_shot = images(100, 1)
    assert head.learned == (0, 1, 2)
    words = log_softmax(zero_shot / head.words_temperature)
    assert np.array_equal(head.log_probabilities(features, zero_shot)[:, 3], words[:, 3])


def test_values_with_examples_share_what_the_words_give_to_them_together():
    head = fitted_on_three().head
    features, labels, zero_shot = images(300, 1)
    scores = head.log_probabilities(features, zero_shot)
    learned = labels < 3
    assert accuracy(scores[learned, :3], labels[learned]) > 0.85
    assert accuracy(zero_shot[learned, :3], labels[learned]) < 0.45


def test_a_head_tells_apart_what_words_do_not():
    features, labels, zero_shot = images(400, 1)
    assert accuracy(fitted().head.log_probabilities(features, zero_shot), labels) > 0.85
    assert better(fitted().proof)
    assert fitted().proof.mean_words_auc < 0.6
    assert fitted().proof.mean_auc > 0.95


def test_out_of_fold_figures_are_those_of_new_images():
    features, labels, zero_shot = images(2000, 1)
    scores = fitted().head.log_probabilities(features, zero_shot)
    loss = -scores[np.arange(2000), labels].mean()
    assert fitted().proof.loss == pytest.approx(loss, abs=0.15)


def test_where_words_are_right_no_head_is_taken():
    fit_with_right_words = fitted(RIGHT)
    assert fit_with_right_words.proof.mean_words_auc > 0.99
    assert not better(fit_with_right_words.proof)


def test_where_words_are_right_a_head_is_as_good():
    features, labels, zero_shot = images(2000, 1, words=RIGHT)
    scores = fitted(RIGHT).head.log_probabilities(features, zero_shot)
    assert accuracy(scores, labels) > accuracy(zero_shot, labels) - 0.005


def test_a_head_uses_the_features_that_tell_the_values_apart():
    assert fitted().head.kinds == ("final",)


def test_common_values_are_not_likelier_than_rare_ones():
    """An image that tells nothing: a run fills up the rare values, so it must not start against them."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [90, 10])
    features, zero_shot = {"final": random.normal(0, 1, (100, 5))}, np.full((100, 2), np.log(0.5))
    head = fit(features, labels, zero_shot, values=("common", "rare")).head
    likely = np.exp(head.log_probabilities({"final": np.zeros((1, 5))}, zero_shot[:1]))
    assert likely[0, 1] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("words", [(100, 3), (99, 4)])
def test_scores_of_other_values_or_images_are_refused(words):
    features, _, _ = images(100)
    with pytest.raises(ValueError, match="expected"):
        fitted().head.log_probabilities(features, np.zeros(words))


@pytest.mark.parametrize("features", [{}, {"final": np.zeros((1, 19))}, {"final": np.zeros((2, 20))}])
def test_features_that_a_head_was_not_fitted_on_are_refused(features):
    with pytest.raises(ValueError, match="20 numbers an image of kind final"):
        fitted().head.log_probabilities(features, np.zeros((1, 4)))


def test_an_image_with_nan_gets_no_probability():
    features, _, zero_shot = images(2, 1)
    features["final"][0, 0] = np.nan
    first, second = fitted().head.log_probabilities(features, zero_shot)
    assert np.isnan(first).all()
    assert np.isfinite(second).all()


# ---- out of fold -------------------------------------------------------------------------------


def test_labels_that_nothing_tells_are_not_told_out_of_fold():
    """The best of several candidates always seems better than chance; not to images that chose nothing."""
    aucs = []
    for seed in range(8):
        random = np.random.default_rng((seed, 2))
        features = {kind: random.normal(0, 1, (40, 60)) for kind in ("final", THUMBNAIL, "block1.moments")}
        proof = fit(features, np.arange(40) % 2, np.full((40, 2), np.log(0.5)), values=("a", "b")).proof
        assert not better(proof)
        aucs.append(proof.mean_auc)
    assert 0.4 < np.mean(aucs) < 0.6


def test_near_duplicates_never_sit_in_two_folds():
    random = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(16), 4), np.repeat(np.arange(16) % 2, 4)
    features = {"final": random.normal(0, 1, (16, 30))[groups] + random.normal(0, 0.01, (64, 30))}
    words = np.full((64, 2), np.log(0.5))
    together = fit(features, labels, words, groups, values=("a", "b")).proof
    apart = fit(features, labels, words, values=("a", "b")).proof
    assert apart.mean_auc > 0.95  # copies of themselves tell
    assert together.mean_auc < 0.75


def test_an_image_changes_nothing_for_the_others_of_its_fold():
    """Whatever is done to it: scaling, choice, fit and calibration are without it."""
    features, labels, zero_shot = images(40)
    before = fit(features, labels, zero_shot).log_probabilities
    features["final"][7] *= 50.0
    features["block1.moments"][7] += 9.0
    zero_shot[7] = log_softmax(np.array([[30.0, 0.0, -30.0, 5.0]]))
    after = fit(features, labels, zero_shot).log_probabilities
    same = (before == after).all(axis=1)
    assert same.sum() == 40 // FOLDS - 1
    assert not same[7]


def test_fitting_is_deterministic():
    again = fit(*images(60))
    assert to_bytes(again.head) == to_bytes(fitted().head)
    assert again.proof == fitted().proof


def test_numbers_of_groups_are_names():
    features, labels, zero_shot = images(40)
    groups = np.arange(40) // 2 * 2 % 37
    spread = fit(features, labels, zero_shot, groups * 1_000_003)
    assert np.array_equal(
        spread.log_probabilities, fit(features, labels, zero_shot, groups).log_probabilities
    )


def test_features_that_are_all_the_same_can_be_fitted():
    _, labels, zero_shot = images(40, words=2.0)
    found = fit({"final": np.ones((40, 5))}, labels, zero_shot)
    assert np.isfinite(found.log_probabilities).all()
    assert not better(found.proof)


def test_a_part_of_the_images_has_all_values_and_no_near_duplicates_if_it_can():
    labels, groups = np.repeat([0, 1, 2], [50, 20, 6]), np.arange(76) // 2
    part = _evenly(labels, groups)[:9]
    assert sorted(labels[part]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({*groups[part]}) == 9
    assert sorted(_evenly(labels, groups)) == [*range(76)]


# ---- enough examples ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "min_examples", "problem"),
    [
        ((5, 5, 0), 5, ""),
        ((3, 3, 0), 1, ""),
        ((9, 4, 0), 5, "two values with 5 different images each; there are 9 a, 4 b"),
        ((9, 2, 0), 1, "two values with 3 different images each; there are 9 a, 2 b"),
        ((0, 0, 0), 5, "there are none"),
    ],
)
def test_two_values_need_enough_examples(counts, min_examples, problem):
    labels = np.repeat([0, 1, 2], counts)
    found = no_head(labels, np.arange(len(labels)), "abc", min_examples)
    assert problem in found
    assert bool(problem) == bool(found)


def test_near_duplicates_count_as_one_example():
    labels, groups = np.repeat([0, 1], 6), np.append(np.arange(6), [6, 6, 6, 6, 7, 8])
    assert "there are 6 a, 3 b" in no_head(labels, groups, "ab", 4)
    assert not no_head(labels, groups, "ab", 3)


def test_more_values_than_a_head_can_judge_are_refused():
    many = [str(number) for number in range(MAX_VALUES + 1)]
    assert f"at most {MAX_VALUES}" in no_head(np.arange(len(many)), np.arange(len(many)), many, 1)


def test_a_head_without_enough_examples_cannot_be_fitted():
    features, labels, zero_shot = images(8)
    with pytest.raises(ValueError, match="two values with 5 different images"):
        fit(features, labels, zero_shot)


@pytest.mark.parametrize("words", [RIGHT, WRONG])
def test_what_the_words_lose_is_known_without_a_head(words):
    _, labels, zero_shot = images(60, words=words)
    loss = words_loss(labels, np.arange(60), zero_shot, VALUES, 5)
    assert loss == fitted(words).proof.words_loss


# ---- better ------------------------------------------------------------------------------------


PROOF = HeadProof(
    values=("a", "b"),
    examples=(20, 20),
    folds=5,
    words_auc=(0.6, 0.7),
    auc=(0.9, None),
    words_loss=0.7,
    loss=0.6,
    gain_error=0.02,
    words_error=0.1,
    error=0.02,
)


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"loss": 0.66}, False),  # a gain below the margin
        ({"gain_error": 0.06}, False),  # or within two standard errors
        ({"auc": (0.6, 0.6)}, False),
        ({"loss": 0.8}, False),
        ({"loss": float("nan")}, False),
    ],
)
def test_a_head_is_taken_if_it_is_better_by_a_margin(changed, taken):
    assert better(replace(PROOF, **changed), margin=0.05) == taken


def test_a_proof_has_words_and_head_side_by_side():
    document = PROOF.as_dict()
    assert document["values"]["a"] == {"examples": 20, "words_auc": 0.6, "auc": 0.9}
    assert document["log_loss"] == {"words": 0.7, "head": 0.6, "gain_error": 0.02}
    assert HeadProof.from_dict(json.loads(json.dumps(document))) == PROOF


# ---- features ----------------------------------------------------------------------------------


def test_a_thumbnail_has_the_means_of_the_parts_of_an_image():
    image = np.zeros((1, 32, 64, 3))
    image[0, 2:4, 4:8, 1] = 1.0  # part 1, 1
    image[0, 4, 0:4, 1] = 0.5
    [thumbnail] = picture_features(image)[THUMBNAIL].reshape(1, 3, 16, 16)
    expected = np.zeros((3, 16, 16))
    expected[1, 1, 1], expected[1, 2, 0] = 1.0, 0.25
    assert thumbnail == pytest.approx(expected)


@pytest.mark.parametrize("size", [(7, 16), (28, 28), (33, 200)])
def test_small_pictures_are_made_at_any_size(size):
    image = np.random.default_rng(0).normal(0, 1, (2, *size, 3))
    made = picture_features(image)
    assert made[THUMBNAIL].reshape(2, 3, -1).mean(axis=2) == pytest.approx(image.mean(axis=(1, 2)))
    assert {kind: each.shape for kind, each in made.items()} == {THUMBNAIL: (2, 768), EDGES: (2, 512)}


@pytest.mark.parametrize(("turned", "direction"), [(0, 0), (1, 4)])
def test_edges_tell_direction_and_place(turned, direction):
    """An upright edge in the left quarter; turned, one that lies, in the lower quarter."""
    image = np.zeros((64, 64))
    image[:, 12:] = 1.0
    [edges] = picture_features(np.rot90(image, turned)[None, ..., None].repeat(3, axis=3))[EDGES]
    by_direction = edges.reshape(8, 8, 8)
    assert by_direction.sum(axis=(1, 2)).argmax() == direction
    across = np.rot90(by_direction[direction], -turned)
    assert across.sum(axis=0).argmax() == 1


def test_an_edge_from_light_to_dark_is_one_from_dark_to_light():
    image = np.random.default_rng(0).uniform(0, 1, (1, 40, 40, 3))
    bright, dark = (picture_features(each)[EDGES] for each in (image, 1.0 - image))
    assert bright == pytest.approx(dark)


def test_features_of_a_picture_do_not_depend_on_the_others():
    images = np.random.default_rng(0).normal(0, 1, (5, 48, 48, 3))
    for kind, numbers in picture_features(images).items():
        assert np.array_equal(picture_features(images[2:3])[kind][0], numbers[2])


def test_kinds_that_there_are_not_are_not_tried():
    assert candidates(["final", "sharpness"]) == [("final",)]
    assert (THUMBNAIL, EDGES) in candidates([THUMBNAIL, EDGES])


def test_every_kind_is_tried_alone():
    kinds = ["final", THUMBNAIL, EDGES, "block1.moments", "block1.grid", "block2.moments", "block2.grid"]
    assert {(kind,) for kind in kinds} < {*candidates(kinds)}


# ---- as a file ---------------------------------------------------------------------------------


def read(data: bytes, values=VALUES):
    return read_head(data, hashlib.sha256(data).hexdigest(), values)


def test_a_head_that_was_written_judges_the_same():
    features, _, zero_shot = images(30, 1)
    for made in (fitted(), fitted_on_three()):
        again = read(to_bytes(made.head))
        assert again.values == made.head.values
        assert again.learned == made.head.learned
        judged = again.log_probabilities(features, zero_shot)
        assert judged == pytest.approx(made.head.log_probabilities(features, zero_shot), abs=1e-5)
        assert to_bytes(again) == to_bytes(made.head)


def test_a_head_of_another_hash_is_refused():
    with pytest.raises(ValueError, match="its content is not what its name says"):
        read_head(to_bytes(fitted().head), "0" * 64, VALUES)


@pytest.mark.parametrize("values", ["abc", [str(number) for number in range(MAX_VALUES + 1)]])
def test_a_head_of_other_values_is_refused(values):
    with pytest.raises(ValueError, match="position"):
        read(to_bytes(fitted().head), values)


@pytest.mark.parametrize(
    "changed",
    [
        {"learned": np.array([0])},
        {"learned": np.array([0, 1, 2])},
        {"learned": np.array([0, 1, 2, 4])},
        {"learned": np.array([0, 1, 2, -1])},
        {"learned": np.array([1, 0, 2, 3])},
        {"learned": np.array([0.0, 1.0, 2.0, 3.0])},
        {"learned": np.array([[0, 1, 2, 3]])},
        {"learned": None},
        {"weights/final": None},
        {"weights/other": np.zeros((3, 4))},
        {"weights/final": np.zeros((20, 3))},
        {"weights/final": np.zeros(4)},
        {"weights/final": np.zeros((0, 4))},
        {"weights/final": np.zeros((20, 4), int)},
        {"weights/final": np.full((20, 4), np.nan)},
        {"weights/final": np.full((20, 4), 1e10)},
        {"intercepts": np.zeros(3)},
        {"intercepts": np.array([0.0, 0.0, 0.0, np.inf])},
        {"intercepts": np.zeros(4, bool)},
        {"intercepts": None},
        {"numbers": np.array([0.0, 1.0, 0.02])},
        {"numbers": np.array([1.0, np.nan, 0.02])},
        {"numbers": np.array([1.0, 1.0, -1.0])},
        {"numbers": np.array([1.0, 1.0])},
        {"numbers": None},
    ],
)
def test_what_is_no_head_is_refused(changed):
    arrays = load(to_bytes(fitted().head)) | changed
    with pytest.raises(ValueError, match=r"expected|is not between|no head|unpack"):
        read(save({name: array for name, array in arrays.items() if array is not None}))


@pytest.mark.parametrize("data", [b"", b"{", b"x" * 100])
def test_what_is_no_file_of_tensors_is_refused(data):
    with pytest.raises(ValueError, match="no head"):
        read(data)


def test_more_weights_than_a_head_has_are_refused(monkeypatch):
    monkeypatch.setattr("balancer.verification.heads.MAX_NUMBERS", 79)
    with pytest.raises(ValueError, match="more than 79 weights"):
        read(to_bytes(fitted().head))
