"""Which real images candidates are made from. No model: hashes and embeddings are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.cells import Candidate, Cell, Slot
from balancer.conditioning.eligible import make_pool, without_measuring
from balancer.conditioning.pool import LEAST_CHOICE, ParentPool
from balancer.config.schema import Config
from balancer.dataset.audit import RealImage
from balancer.dataset.near_duplicates import KnownImage
from balancer.verification.verdict import is_near_copy

CLASSES = ("cat", "dog", "fox")
DAY, NIGHT = Cell("cat", (("light", "day"),)), Cell("cat", (("light", "night"),))


def config(**sections: Any) -> Config:
    document = {
        "seed": 3,
        "classes": {name: {"prompts": [f"a {name}"]} for name in CLASSES[:2]},
        "facets": {"light": {"values": {"day": {"prompts": ["day"]}, "night": {"prompts": ["night"]}}}},
        "target": {"per_class": 20},
        "generation": {"conditioning": "image"},
    }
    return Config.model_validate(document | sections)


def image(name: str, class_name: str = "cat", phash: int = 0, pixels: str = "", **facets: str) -> RealImage:
    return RealImage(
        f"{class_name}/{name}.png", class_name, facets, 8, 8, 100, f"{name:0>64}"[-64:], f"{phash:016x}",
        pixels or f"pixels of {class_name}/{name}",
    )  # fmt: skip


def pool_of(images: list[RealImage], config: Config = config()) -> ParentPool:  # noqa: B008
    """Of images that have nothing to do with each other."""
    apart = [KnownImage(f"real/{one.file_name}", "0" * 16, one.pixel_sha256, b"") for one in images]
    hashed = [
        KnownImage(one.id, f"{0x0123456789ABCDEF * (number + 1) % 2**64:016x}", one.pixel_sha256)
        for number, one in enumerate(apart)
    ]
    return make_pool(config, images, hashed, {})


def candidates(cell: Cell, slots: int = 40, attempts: int = 3) -> Iterator[Candidate]:
    return (Candidate(Slot(cell, at), attempt) for at in range(slots) for attempt in range(1, attempts + 1))


def draws(pool: ParentPool, cell: Cell) -> list[str | None]:
    return [None if (one := pool.draw(each)) is None else one.id for each in candidates(cell)]


# ---- who may be one ------------------------------------------------------------------------------


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[RealImage], list[KnownImage], dict[str, str]]:
    """Images around a few pictures, so that many are near-duplicates, in splits and in a hold-out."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    images, known, splits = [], [], {}
    for number in range(draw(st.integers(1, 24))):
        phash = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=4, unique=True)):
            phash ^= 1 << bit
        angle = draw(st.sampled_from((0.0, 0.2, 0.4, 3.0)))
        vector = np.array([np.cos(angle), np.sin(angle)], "<f2").tobytes()
        pixels = draw(st.sampled_from(("", "", "same", "alike")))
        phash = {"same": centres[0], "alike": 2**63}.get(pixels, phash)  # the same pixels have the same hash
        one = image(str(number), draw(st.sampled_from(CLASSES)), phash, pixels)
        place = draw(st.sampled_from(("train", "train", "train", "validation", "test", "holdout")))
        name = f"{'holdout' if place == 'holdout' else 'real'}/{one.file_name}"
        known.append(KnownImage(name, one.phash, one.pixel_sha256, vector))
        if place != "holdout":
            images.append(one)
            splits[one.file_name] = place
    return images, known, splits


def is_duplicate(one: KnownImage, other: KnownImage) -> bool:
    distance = (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()
    ours, theirs = (np.frombuffer(each.embedding or b"", "<f2").astype(float) for each in (one, other))
    cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
    return one.pixel_sha256 == other.pixel_sha256 or is_near_copy(_nearest(distance, cosine), 4, 0.95)


def _nearest(distance: int, cosine: float) -> Any:
    from balancer.verification.verdict import Nearest

    return Nearest("", distance, cosine)


@given(datasets(), st.sampled_from(("class", "dataset")))
@settings(max_examples=200, deadline=None)
def test_no_parent_is_of_validation_test_or_hold_out_or_linked_to_one(dataset, contexts):
    images, known, splits = dataset
    conditioned = config(generation={"conditioning": "image", "contexts": contexts})
    pool = make_pool(conditioned, images, known, splits)
    apart = [one for one in known if splits.get(one.id.removeprefix("real/")) != "train"]
    linked = {one.id for one in apart}
    while more := {one.id for one in known if one.id not in linked
                   and any(is_duplicate(one, other) for other in known if other.id in linked)}:  # fmt: skip
        linked |= more
    parents = {parent.id for parent in pool.parents}
    drawn = {name for cell in (DAY, Cell("dog")) for name in draws(pool, cell) if name}
    assert drawn <= parents
    assert not parents & linked
    assert {splits[name.removeprefix("real/")] for name in parents} <= {"train"}
    eligible = {one.id: one.pixel_sha256 for one in known if one.id not in linked}
    of_classes = {f"real/{one.file_name}" for one in images if one.class_name in CLASSES[:2]}
    assert {eligible[name] for name in parents} == {eligible[name] for name in eligible.keys() & of_classes}


def test_without_a_verifier_the_hash_alone_links_images():
    train, alike, other = image("1", phash=0), image("2", phash=1), image("3", phash=2**64 - 1)
    known = without_measuring([train, other], [alike])
    pool = make_pool(config(), [train, other], known, {})
    assert [parent.id for parent in pool.parents] == ["real/cat/3.png"]


# ---- who is drawn --------------------------------------------------------------------------------

MANY = [image(str(number), name) for name in CLASSES[:2] for number in range(10)]


def test_every_candidate_has_a_parent_of_its_class_and_all_are_used_about_evenly():
    used = Counter(draws(pool_of(MANY), DAY))
    assert used.keys() == {f"real/cat/{number}.png" for number in range(10)}
    assert max(used.values()) <= 30  # of 120 draws among ten


def test_with_contexts_of_the_dataset_parents_come_from_any_class():
    anywhere = config(generation={"conditioning": "image", "contexts": "dataset"})
    assert {name.split("/")[1] for name in draws(pool_of(MANY, anywhere), DAY) if name} == {"cat", "dog"}
    only_dogs = pool_of(MANY[10:], anywhere)
    assert only_dogs.is_conditioned(DAY)


def test_a_class_without_real_images_stays_text_only():
    pool = pool_of(MANY[10:])
    assert (pool.is_conditioned(DAY), pool.is_conditioned(Cell("dog"))) == (False, True)
    assert set(draws(pool, DAY)) == {None}


def test_the_order_of_images_and_of_draws_changes_nothing():
    usual = draws(pool_of(MANY), DAY)
    backwards = pool_of(MANY[::-1])
    reverse = {each.id: backwards.draw(each) for each in reversed([*candidates(DAY)])}
    assert [one.id if (one := reverse[each.id]) else None for each in candidates(DAY)] == usual


def test_another_seed_slot_or_attempt_draws_anew():
    usual = draws(pool_of(MANY), DAY)
    assert len({*usual[:3], *usual[3:6]}) > 1
    assert draws(pool_of(MANY, config(seed=4)), DAY) != usual


def test_an_image_that_joins_or_leaves_changes_its_own_draws_only():
    before, gone = draws(pool_of(MANY), DAY), "real/cat/0.png"
    after = draws(pool_of(MANY[1:]), DAY)
    assert all(one == other for one, other in zip(before, after, strict=True) if one != gone)
    assert gone in before


def test_images_that_match_the_facets_of_a_cell_are_preferred():
    lit = [image(f"{light}{number}", light=light) for light in ("day", "night") for number in range(6)]
    unknown = [image(f"unknown{number}") for number in range(6)]
    pool = pool_of([*lit, *unknown])
    assert {name.split("/")[-1][:3] for name in draws(pool, DAY) if name} == {"day"}
    assert {name.split("/")[-1][:5] for name in draws(pool, NIGHT) if name} == {"night"}
    only_nights = pool_of([one for one in [*lit, *unknown] if "day" not in one.file_name])
    assert {name.split("/")[-1][:3] for name in draws(only_nights, DAY) if name} == {"unk"}


def test_where_few_match_others_are_drawn_too():
    pool = pool_of([image("day", light="day"), *(image(str(number)) for number in range(10))])
    assert len(set(draws(pool, DAY))) > LEAST_CHOICE


def test_a_picture_in_two_files_is_drawn_no_more_often():
    twice = [image("1", pixels="same"), image("2", pixels="same"), image("3")]
    assert [parent.id for parent in pool_of(twice).parents] == ["real/cat/1.png", "real/cat/3.png"]


def test_the_description_changes_with_the_pool_and_not_with_its_order():
    described = pool_of(MANY).describe()
    assert (described["count"], described["by_class"]) == (20, {"cat": 10, "dog": 10})
    assert pool_of(MANY[::-1]).describe() == described
    assert pool_of(MANY[1:]).describe()["sha256"] != described["sha256"]
