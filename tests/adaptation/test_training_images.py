"""Which images adapters are trained on, with which captions. No model: hashes are drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.weights.headers import MAX_HEADER_BYTES
from balancer.adaptation import record
from balancer.adaptation.images import MAX_CAPTIONS, combine, divide_images, find_training_images
from balancer.adaptation.plan import DATASET, left_out, plan_adapters
from balancer.adaptation.record import compare, describe, trained_on
from balancer.config.schema import Config, CopiesConfig
from balancer.dataset.audit import RealImage
from balancer.errors import UsageError

CLASSES = ("cat", "dog", "fox")
KNOWN = CLASSES[:2]
LIMITS = CopiesConfig()


def config(**sections: Any) -> Config:
    document = {
        "classes": {name: {"prompts": [f"a {name}", f"one {name}"]} for name in KNOWN},
        "facets": {
            "light": {
                "values": {
                    "day": {"prompts": ["by day"]},
                    "night": {"prompts": ["at night", "in the dark"]},
                }
            },
            "tail": {
                "classes": ["dog"],
                "values": {"up": {"prompts": ["tail up"]}, "down": {"prompts": ["tail down"]}},
            },
        },
        "target": {"per_class": 20},
    }
    return Config.model_validate(document | sections)


def image(name: str, class_name: str = "cat", phash: int = 0, pixels: str = "", **facets: str) -> RealImage:
    return RealImage(
        f"{class_name}/{name}.png", class_name, facets, 8, 8, 100, f"{name:0>64}"[-64:], f"{phash:016x}",
        pixels or f"pixels of {class_name}/{name}",
    )  # fmt: skip


def audit(images: list[RealImage]) -> Any:
    return SimpleNamespace(images=tuple(images), path=Path("dataset"))


def apart(count: int, class_name: str = "cat", **facets: str) -> list[RealImage]:
    """Images that have nothing to do with each other."""
    start = {"cat": 0, "dog": 500, "fox": 900}[class_name]
    return [
        image(str(number), class_name, 0x0123456789ABCDEF * (start + number + 1) % 2**64, **facets)
        for number in range(count)
    ]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[RealImage], list[RealImage], dict[str, str]]:
    """Images around a few pictures, so that many are near-duplicates, in splits and in a hold-out."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    images: list[RealImage] = []
    holdout: list[RealImage] = []
    splits = {}
    for number in range(draw(st.integers(1, 24))):
        phash = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=4, unique=True)):
            phash ^= 1 << bit
        pixels = draw(st.sampled_from(("", "", "same")))
        one = image(str(number), draw(st.sampled_from(CLASSES)), centres[0] if pixels else phash, pixels)
        place = draw(st.sampled_from(("train", "train", "train", "validation", "test", "holdout")))
        if place == "holdout":
            holdout.append(one)
        else:
            images.append(one)
            splits[one.file_name] = place
    return images, holdout, splits


@given(datasets(), st.sampled_from(("dataset", "class", "both")))
@settings(max_examples=200, deadline=None)
def test_no_adapter_is_trained_on_validation_test_or_hold_out_or_what_is_linked_to_one(dataset, scope):
    images, holdout, splits = dataset
    wanted = config(adaptation={"scope": scope, "min_images": 1})
    found = find_training_images(wanted, audit(images), audit(holdout), splits)
    linked = [*holdout, *(one for one in images if splits[one.file_name] != "train")]
    rest = [one for one in images if splits[one.file_name] == "train"]
    while more := [one for one in rest if any(is_alike(one, other) for other in linked)]:
        linked += more
        rest = [one for one in rest if one not in more]
    free = {one.file_name for one in rest if one.class_name in KNOWN}
    assert {one.file_name for one in found} <= free
    assert {one.picture for one in found} == {one.pixel_sha256 for one in rest if one.class_name in KNOWN}
    if found:
        for task in plan_adapters(wanted, found):
            assert {one.file_name for one in task.images} <= free
            assert {one.class_name for one in task.images} == set(task.classes)


def is_alike(one: RealImage, other: RealImage) -> bool:
    return (
        one.pixel_sha256 == other.pixel_sha256
        or (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()
        <= config().verification.copies.max_distance
    )


def test_captions_say_the_class_and_the_facet_values_that_the_metadata_state():
    images = [image("1", light="night", tail="up"), image("2", "dog", 2**40 - 1, tail="up", light="dusk")]
    cat, dog = find_training_images(config(), audit(images), None, {})
    assert cat.captions == (
        "a cat, at night",
        "one cat, in the dark",
        "a cat, in the dark",
        "one cat, at night",
    )
    assert dog.captions == ("a dog, tail up", "one dog, tail up")
    plain = config(adaptation={"contexts": False})
    assert {one.captions[0] for one in find_training_images(plain, audit(images), None, {})} == {
        "a cat",
        "a dog",
    }


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_every_wording_is_in_some_caption_and_captions_are_few(counts):
    wordings = [tuple(f"{place}-{number}" for number in range(count)) for place, count in enumerate(counts)]
    captions = combine(wordings)
    assert len(set(captions)) == len(captions) <= MAX_CAPTIONS
    assert {part for caption in captions for part in caption.split(", ")} == {
        w for each in wordings for w in each
    }


def test_one_picture_in_several_files_counts_once():
    same = [image("1", pixels="same"), image("2", pixels="same")]
    assert len(find_training_images(config(), audit(same), None, {})) == 1


@pytest.mark.parametrize(
    ("scope", "names"),
    [("dataset", [DATASET]), ("class", ["class-cat"]), ("both", [DATASET, "class-cat"])],
)
def test_a_class_with_too_few_images_gets_no_adapter_of_its_own(scope, names):
    wanted = config(adaptation={"scope": scope})
    images = find_training_images(wanted, audit([*apart(4), *apart(3, "dog")]), None, {})
    tasks = plan_adapters(wanted, images)
    assert [task.name for task in tasks] == names
    assert left_out(wanted, tasks, images) == ({"dog": 3} if scope == "class" else {})


def test_steps_follow_from_epochs_unless_they_are_given():
    images = find_training_images(config(), audit(apart(12)), None, {})
    assert plan_adapters(config(), images)[0].steps == 300  # 200 epochs of 12 images, 8 at once
    assert plan_adapters(config(adaptation={"steps": 7}), images)[0].steps == 7


def test_too_few_images_for_any_adapter_is_one_clear_error():
    with pytest.raises(UsageError) as error:
        plan_adapters(config(), find_training_images(config(), audit(apart(3)), None, {}))
    assert error.value.message == (
        "no adapter can be trained: 3 training images at most, and adaptation.min_images is 4"
    )


def test_samples_show_a_class_in_contexts_of_the_others():
    """All cats are by day, all dogs at night; tails are for dogs only."""
    wanted = config()
    images = [*apart(4, light="day"), *apart(4, "dog", light="night", tail="up")]
    [task] = plan_adapters(wanted, find_training_images(wanted, audit(images), None, {}))
    prompts = {
        name: " | ".join(one.prompt for one in task.samples if one.class_name == name) for name in KNOWN
    }
    for name in KNOWN:
        assert "by day" in prompts[name]
        assert "at night" in prompts[name] or "in the dark" in prompts[name]
    assert "tail up" in prompts["dog"]
    assert "tail" not in prompts["cat"]
    assert len({one.seed for one in task.samples}) == len(task.samples)


def test_the_prior_without_a_weight_has_no_effect_and_is_refused():
    with pytest.raises(ValidationError, match="prior_images has no effect without prior_weight"):
        config(adaptation={"prior_images": 5})


# ---- staleness -----------------------------------------------------------------------------------


def test_what_an_adapter_was_trained_on_is_compared_with_what_there_is_now():
    wanted = config()
    before = [*apart(6), *apart(4, "dog")]
    images = find_training_images(wanted, audit(before), None, {})
    [task] = plan_adapters(wanted, images)
    identity = task.identity({"model": "embedded", "sha256": "0"}, {"torch": "2"})
    trained = trained_on(describe(task, identity))
    assert trained is not None
    assert str(compare(trained, images, (), LIMITS)) == ""
    more, fewer = [*before, *apart(8)[6:]], before[1:]
    for now, said in ((more, "2 training images more"), (fewer, "1 gone")):
        found = find_training_images(wanted, audit(now), None, {})
        assert str(compare(trained, found, divide_images(wanted, audit(now), None, {})[1], LIMITS)) == said
    held = {before[0].file_name: "test"}
    found = find_training_images(wanted, audit(before), None, held)
    stale = compare(trained, found, divide_images(wanted, audit(before), None, held)[1], LIMITS)
    assert stale.held_out == 1
    assert str(stale) == "1 in validation, test or hold-out by now, or like an image there"


def test_a_training_image_that_was_saved_again_into_the_hold_out_is_recognised():
    wanted, before = config(), apart(6)
    [task] = plan_adapters(wanted, find_training_images(wanted, audit(before), None, {}))
    trained = trained_on(describe(task, task.identity({"model": "embedded"}, {"torch": "2"})))
    assert trained is not None
    now, moved = audit(before[1:]), before[0]
    for changed_bits, held_out in ((0, 1), (3, 1), (2**16 - 1, 0)):
        again = replace(moved, pixel_sha256="others", phash=f"{int(moved.phash, 16) ^ changed_bits:016x}")
        held = divide_images(wanted, now, audit([again]), {})[1]
        found = find_training_images(wanted, now, audit([again]), {})
        assert compare(trained, found, held, LIMITS).held_out == held_out


def test_more_images_than_a_weights_file_can_name_are_refused_before_the_training(monkeypatch):
    [task] = plan_adapters(config(), find_training_images(config(), audit(apart(6)), None, {}))
    monkeypatch.setattr(record, "MAX_IMAGES", 5)
    with pytest.raises(UsageError, match="6 training images, and one adapter takes 5 at most"):
        describe(task, task.identity({}, {}))


def test_the_images_of_the_largest_adapter_fit_into_a_header_that_is_read(monkeypatch):
    [task] = plan_adapters(config(), find_training_images(config(), audit(apart(6)), None, {}))
    one, all_of_them = replace(task, images=task.images[:1]), task
    sizes = [
        len(json.dumps(describe(each, task.identity({}, {})))) for each in (one, all_of_them)
    ]  # escaped once more, as in the header
    assert (sizes[1] - sizes[0]) / 5 * record.MAX_IMAGES < MAX_HEADER_BYTES * 0.95


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "pictures": 5}'])
def test_metadata_of_something_else_are_none_of_ours(text):
    assert trained_on({"balancer_adapter": text}) is None
    assert trained_on({"lora_adapter_metadata": "{}"}) is None
