"""The gate itself, on numbers whose answer is known: the scenarios of `scripts/bench.py gate`, small."""

from __future__ import annotations

import json

import numpy as np
import pytest

from actors.evaluation.recipe import recipe_of
from balancer.config.evaluation import EncoderConfig, EvaluationConfig
from benchmarking import gate
from benchmarking.gate_images import Images, near_copies
from benchmarking.gate_scenarios import (
    WRONG,
    Added,
    confused_labels,
    held_back,
    nothing,
    one_poisoned,
    something_else,
    subset,
    wrong_labels,
)
from benchmarking.gate_scenarios import (
    near_copies as add_near_copies,
)
from benchmarking.gate_trial import HeldOut

CLASSES = ("a", "b", "c", "d")
SETTINGS = EvaluationConfig(
    encoder=EncoderConfig(model="numbers"), steps=60, batch_size=16, seeds=5, real_shares=(0.5,)
)


@pytest.fixture(scope="module")
def images():
    """Directions of four classes with noise, in which few examples leave much to learn."""
    random = np.random.default_rng(0)
    centres = 1.2 * np.eye(4, 12)

    def seen(labels, changes):
        numbers = centres[labels][:, None] + 0.5 * random.standard_normal((len(labels), changes + 1, 12))
        return (numbers / np.linalg.norm(numbers, axis=2, keepdims=True)).astype(np.float32)

    labels, test_labels = np.repeat(np.arange(4), 700), np.repeat(np.arange(4), 200)
    real = seen(labels, 1)
    return Images(
        CLASSES,
        real,
        labels,
        foreign=-seen(labels, 1),
        foreign_labels=labels,
        test=seen(test_labels, 0),
        test_labels=test_labels,
        copy=lambda places, random: real[places],
    )


@pytest.fixture
def own(images):
    return subset(images, fewest=7, imbalance=10, filled=70, random=np.random.default_rng(1))


@pytest.fixture(scope="module")
def results(images, tmp_path_factory):
    """Two repetitions of two scenarios."""
    work = tmp_path_factory.mktemp("gate")
    recipe = recipe_of(SETTINGS, CLASSES, None)
    chosen = {"held_back": held_back(1.0), "wrong_labels": all_wrong}
    arguments = images, SETTINGS, recipe, 2, work
    found = gate.measure(*arguments, chosen=chosen, imbalances=(10,))
    assert gate.measure(*arguments, chosen=dict.fromkeys(chosen, never), imbalances=(10,)) == found
    return found


def never(images, own, random):
    raise AssertionError("this repetition has ended already")


def all_wrong(images, own, random):
    """Images of the next class, under the label of each."""
    good = held_back(1.0)(images, own, random)
    return Added(good.embedded, (good.labels + 1) % len(CLASSES))


def test_real_images_are_added_and_wrong_labels_are_not(results):
    for result in results[10]:
        assert result["trials"]["held_back"]["decision"] == "add"
        assert result["trials"]["held_back"]["true_gain"] > SETTINGS.margin
        assert result["trials"]["wrong_labels"]["decision"] == "do_not_add"
        assert result["trials"]["wrong_labels"]["true_gain"] < 0


def test_the_figures_count_what_was_decided(results):
    found = json.loads(json.dumps(gate.figures(results, SETTINGS.margin)))
    of = found["imbalances"]["10"]["scenarios"]
    assert of["held_back"]["decisions"] == {"add": 2, "do_not_add": 0, "cannot_tell": 0}
    assert of["wrong_labels"]["decisions"] == {"add": 0, "do_not_add": 2, "cannot_tell": 0}
    assert found["false_add"]["no_gain"] | {"high": 0} == {
        "trials": 2, "add": 0, "share": 0.0, "low": 0.0, "high": 0
    }  # fmt: skip
    assert sum(step["trials"] for step in found["power_curve"]) == 2


def test_a_subset_has_a_long_tail_and_is_filled_up(images, own):
    counts = np.bincount(images.labels[own.places])
    assert (counts.min(), counts.max()) == (7, 70)
    assert (counts + own.missing == 70).all()
    assert counts[own.poisoned] < 20
    for label, others in enumerate(own.others):
        assert (images.labels[others] == label).all()
        assert not np.isin(others, own.places).any()


@pytest.mark.parametrize(
    "add", [held_back(1.0), wrong_labels, confused_labels, add_near_copies, something_else, one_poisoned]
)
def test_a_scenario_adds_the_labels_that_are_missing(images, own, add):
    added = add(images, own, np.random.default_rng(0))
    assert len(added.embedded) == len(added.labels)
    assert np.bincount(added.labels, minlength=4).tolist() == list(own.missing)


def shown(images, added):
    """The true class of each added image, by its numbers."""
    true = {each.tobytes(): label for each, label in zip(images.real, images.labels, strict=True)}
    return np.array([true[each.tobytes()] for each in added.embedded])


def test_images_added_for_the_wrong_labels_and_the_poisoned_class_show_others(images, own):
    for add in (wrong_labels, confused_labels):
        added = add(images, own, np.random.default_rng(0))
        wrong = shown(images, added) != added.labels
        assert wrong.mean() == pytest.approx(WRONG, abs=0.02)
    added = one_poisoned(images, own, np.random.default_rng(0))
    assert ((shown(images, added) != added.labels) == (added.labels == own.poisoned)).all()
    assert len(np.unique(added.embedded, axis=0)) == len(added.embedded)


def test_nothing_adds_each_training_image_once(images, own):
    added = nothing(images, own, np.random.default_rng(0))
    assert (added.embedded == images.real[own.places]).all()


def test_held_out_images_choose_or_test(images):
    drawn = HeldOut.drawn(images.test_labels, 100, np.random.default_rng(0))
    assert np.bincount(images.test_labels[drawn.validation]).tolist() == [25] * 4
    assert np.bincount(images.test_labels[drawn.test]).tolist() == [75] * 4
    assert not np.isin(drawn.validation, drawn.test).any()


def test_near_copies_differ_by_little():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 3, 28, 28)).astype(np.uint8)
    copies = near_copies(pixels, random)
    apart = np.abs(copies.astype(int) - pixels)
    assert (apart.mean(axis=(1, 2, 3)) > 0).all()
    assert apart.mean() < 10
