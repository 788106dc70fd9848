"""Which properties a head judges, and what is said of it."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from balancer.config.schema import Config
from balancer.errors import UsageError
from balancer.manifest.runfile import check_heads
from balancer.verification.head_choice import (
    HeadResult,
    Heads,
    LabelledImages,
    choose_heads,
    refuse_lacking_heads,
    summarise_heads,
)
from balancer.verification.heads import log_softmax

VALUES = {"class": ("hole", "stain", "fine"), "light": ("day", "night")}
COUNT, HELD_OUT = 72, 18


def make_config(**verification) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": "x"},
            "classes": {name: {"prompts": [name]} for name in VALUES["class"]},
            "facets": {"light": {"values": {name: {"prompts": [name]} for name in VALUES["light"]}}},
            "target": {"per_class": 30},
            "verification": verification,
        }
    )


def labels_of(name):
    return np.arange(COUNT) // (1 if name == "class" else 3) % len(VALUES[name])


def make_images(right=("light",)) -> LabelledImages:
    """Words are right for some properties, and know nothing of the others; the last images are held out."""
    random = np.random.default_rng(0)
    labels = {name: labels_of(name) for name in VALUES}
    return LabelledImages(
        values=VALUES,
        labels=labels,
        words={
            name: log_softmax(
                random.normal(0, 1, (COUNT, len(values)))
                + (20.0 if name in right else 0.0) * np.eye(len(values))[labels[name]]
            )
            for name, values in VALUES.items()
        },
        groups=np.arange(COUNT),
        may_fit=np.arange(COUNT) < COUNT - HELD_OUT,
    )


def features(seed=0):
    """They tell class and light apart."""
    random = np.random.default_rng((seed, 1))
    centres = [
        np.random.default_rng(number).normal(0, 1.5, (len(VALUES[name]), 12))
        for number, name in enumerate(VALUES)
    ]
    place = sum(each[labels_of(name)] for each, name in zip(centres, VALUES, strict=True))
    return {"final": (place + random.normal(0, 1, (COUNT, 12))).astype(np.float32)}


def never_looked_at():
    pytest.fail("it was looked at")


def choose(images=None, look=features, try_all=False, **verification) -> Heads:
    return choose_heads(images or make_images(), look, make_config(**verification), try_all=try_all)


@functools.cache
def chosen() -> Heads:
    return choose()


def test_a_head_judges_what_words_do_not_tell_and_words_the_rest():
    results = chosen().results
    assert {name: result.taken for name, result in results.items()} == {"class": True, "light": False}
    assert results["class"].proof.mean_auc > 0.9 > 0.7 > results["class"].proof.mean_words_auc
    assert results["class"].why.startswith("better than the words alone: log loss 0.")
    assert results["light"].why == "the words are right: log loss 0.00"


def test_examples_are_those_that_may_be_fitted_on():
    assert chosen().results["class"].examples == {"hole": 18, "stain": 18, "fine": 18}
    assert chosen().results["light"].examples == {"day": 27, "night": 27}


def test_where_words_are_right_nobody_looks():
    heads = choose(make_images(right=VALUES), never_looked_at)
    assert not heads.files


def test_no_head_is_fitted_where_none_is_wanted():
    heads = choose(look=never_looked_at, heads="never")
    assert {result.why for result in heads.results.values()} == {"verification.heads is never"}
    refuse_lacking_heads(heads, make_config(heads="never"))


def test_what_is_not_judged_needs_no_head():
    heads = choose(look=never_looked_at, unjudged=["class", "light"], heads="always")
    assert {result.why for result in heads.results.values()} == {"verification.unjudged names it"}


def test_always_takes_a_head_wherever_there_are_examples():
    heads = choose(heads="always")
    assert heads.files.keys() == VALUES.keys()
    assert heads.results["light"].why.startswith("not better than the words alone by enough")
    only = choose(heads="always", min_examples=20)
    assert only.files.keys() == {"light"}
    assert "a head needs two values with 20 different images each" in only.results["class"].why
    refuse_lacking_heads(only, make_config(heads="always"))


def test_always_without_enough_examples_of_anything_is_an_error():
    config = make_config(heads="always", min_examples=40)
    heads = choose(look=never_looked_at, heads="always", min_examples=40)
    with pytest.raises(UsageError, match=r"no head:\n  class: a head needs .* 40 .*\n  light: ") as raised:
        refuse_lacking_heads(heads, config)
    assert "verification.min_examples" in raised.value.hint
    refuse_lacking_heads(heads, make_config(min_examples=40))


def test_for_the_figures_heads_are_fitted_that_are_not_taken():
    heads = choose(try_all=True, unjudged=["class"])
    assert not heads.files
    assert all(result.proof is not None for result in heads.results.values())


def test_images_that_are_kept_apart_change_no_head():
    changed = features()
    changed["final"][-HELD_OUT:] += 5.0
    assert choose(look=lambda: changed).files == chosen().files


def test_what_is_kept_apart_is_judged_by_the_head_and_the_rest_out_of_fold():
    [head] = chosen().load(VALUES).values()
    images, judged = make_images(), chosen().judged["class"]
    by_head = head.log_probabilities(features(), images.words["class"])
    apart = ~images.may_fit
    assert np.array_equal(judged[apart], by_head[apart])
    assert not np.isclose(judged[~apart], by_head[~apart]).all(axis=1).any()
    assert (judged.argmax(axis=1) == images.labels["class"]).mean() > 0.8


def test_choosing_is_deterministic():
    again = choose()
    assert again.files == chosen().files
    assert again.as_dict() == chosen().as_dict()


def test_results_are_what_run_json_may_hold():
    document = json.loads(json.dumps(chosen().as_dict()))
    check_heads(document)
    assert {name: HeadResult.from_dict(one) for name, one in document.items()} == chosen().results


@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": None},
        {"sha256": "../x"},
        {"taken": False},
        {"out_of_fold": None},
        {"out_of_fold": {}},
        {"bytes": -1},
        {"features": "final"},
        {"examples": {"hole": "many"}},
    ],
)
def test_what_run_json_may_not_hold_is_refused(changed):
    document = chosen().as_dict()
    with pytest.raises(ValueError, match="validation error"):
        check_heads(document | {"class": document["class"] | changed})


def test_one_line_says_what_judges_each_property():
    line = summarise_heads(chosen().results)
    assert line.startswith("heads: class is judged by words and 54 labelled images (log loss 0.")
    assert line.endswith("; light by words alone (the words are right: log loss 0.00)")
