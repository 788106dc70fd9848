from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.schema import CopiesConfig
from balancer.dataset.near_duplicates import (
    KnownImage,
    NearDuplicateIndex,
    find_near_duplicates,
    find_near_duplicates_across,
    group_near_duplicates,
    hash_numbers,
    near_any,
)
from balancer.verification.verdict import Nearest, is_near_copy

LIMITS = CopiesConfig(max_distance=6, min_similarity=0.95)
DIRECTIONS = [0.0, 10.0, 40.0, 90.0]
"""Degrees; the first two are within the limit of each other (cosine 0.985), no other two are."""


def direction(degrees: float) -> bytes:
    """An embedding of two numbers; not a unit vector, as rounding leaves none."""
    angle = math.radians(degrees)
    return np.array([3 * math.cos(angle), 3 * math.sin(angle)], "<f2").tobytes()


def image(name: str, phash: int = 0, degrees: float | None = 0.0, pixels: str | None = None) -> KnownImage:
    embedding = None if degrees is None else direction(degrees)
    return KnownImage(name, f"{phash:016x}", name if pixels is None else pixels, embedding)


def bits(count: int) -> int:
    """A hash that differs from 0 in so many bits."""
    return (1 << count) - 1


def nearest(known: Sequence[KnownImage], picture: KnownImage, limits: CopiesConfig = LIMITS) -> Nearest:
    found = NearDuplicateIndex(known, limits).nearest(picture)
    assert found is not None
    return found


PICTURE = image("candidate")


def test_where_nothing_is_known_nothing_is_near():
    assert NearDuplicateIndex([], LIMITS).nearest(PICTURE) is None


def test_the_nearest_besides_one_is_another_image_and_that_one_can_be_compared_alone():
    same, other = KnownImage("same", PICTURE.phash, PICTURE.pixel_sha256), KnownImage("other", "f" * 16, "p")
    index = NearDuplicateIndex([same, other], LIMITS)
    nearest = index.nearest(PICTURE, besides="same")
    assert nearest is not None
    assert (nearest.id, nearest.same_pixels) == ("other", False)
    assert NearDuplicateIndex([same], LIMITS).nearest(PICTURE, besides="same") is None
    twin = KnownImage("twin", PICTURE.phash, PICTURE.pixel_sha256)
    assert (
        getattr(NearDuplicateIndex([same, twin], LIMITS).nearest(PICTURE, besides="same"), "id", "") == "twin"
    )
    compared = index.compare(PICTURE, "same")
    assert (compared.id, compared.distance, compared.same_pixels) == ("same", 0, True)
    assert index.compare(PICTURE, "other").same_pixels is False


def test_the_least_distance_of_hashes_is_nearest():
    known = [image("far", bits(9), 0), image("near", bits(8), 40), image("farther", bits(64), 0)]
    found = nearest(known, PICTURE)
    assert (found.id, found.distance, found.same_pixels) == ("near", 8, False)
    assert found.similarity == pytest.approx(math.cos(math.radians(40)), abs=1e-3)


def test_of_equal_distances_the_most_similar_is_nearest():
    known = [image("other", bits(8), 90), image("alike", bits(8) << 20, 10), image("apart", bits(8), 40)]
    assert nearest(known, PICTURE).id == "alike"


def test_of_equal_distances_and_similarities_the_first_is_nearest():
    assert nearest([image("first", bits(8)), image("second", bits(8))], PICTURE).id == "first"


def test_an_image_within_both_limits_comes_before_one_with_a_nearer_hash_alone():
    known = [image("hash only", bits(1), 40), image("both", bits(5), 10)]
    assert nearest(known, PICTURE).id == "both"


def test_the_same_pixels_come_before_everything():
    known = [image("equal", 0, 0), image("same", bits(40), 90, pixels="candidate")]
    found = nearest(known, PICTURE)
    assert (found.id, found.distance, found.same_pixels) == ("same", 40, True)


def test_pixels_that_are_not_known_are_not_the_same():
    assert not nearest([image("reference", pixels="")], image("candidate", pixels="")).same_pixels


@pytest.mark.parametrize(("known", "seen"), [(None, 0.0), (0.0, None), (None, None)])
def test_without_an_embedding_the_hash_decides(known: float | None, seen: float | None):
    others = [image("other", bits(30), 90)]
    found = nearest([image("bare", bits(6), known), *others], image("candidate", 0, seen))
    assert (found.id, found.distance, found.similarity) == ("bare", 6, 1.0)
    assert NearDuplicateIndex([], LIMITS).is_duplicate(found)


def test_an_embedding_that_is_no_number_is_similar_to_nothing():
    broken = KnownImage("candidate", "0" * 16, "candidate", np.array([np.nan, 1], "<f2").tobytes())
    found = nearest([image("reference")], broken)
    assert math.isnan(found.similarity)
    assert not NearDuplicateIndex([], LIMITS).is_duplicate(found)


def test_a_similarity_is_never_above_1():
    assert max(nearest([image("reference", 0, turn)], image("candidate", 0, turn)).similarity
               for turn in range(360)) <= 1  # fmt: skip


hashes = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 3, bits(6), bits(7), bits(63), bits(64)])
pictures = st.builds(
    image,
    st.just("candidate"),
    hashes,
    st.sampled_from([None, *DIRECTIONS]),
    st.sampled_from(["", "a", "b", "candidate"]),
)
limits = st.builds(
    CopiesConfig,
    max_distance=st.sampled_from([0, 1, 6, 20, 63, 64]),
    min_similarity=st.sampled_from([-1, 0.95]),
)


def named(several: Sequence[KnownImage]) -> list[KnownImage]:
    return [
        KnownImage(f"image {number}", one.phash, one.pixel_sha256, one.embedding)
        for number, one in enumerate(several)
    ]


def is_copy_of(one: KnownImage, other: KnownImage, within: CopiesConfig) -> bool:
    """What the index must find, pair by pair."""
    if one.pixel_sha256 and one.pixel_sha256 == other.pixel_sha256:
        return True
    found = nearest([other], one, within)
    return is_near_copy(found, within.max_distance, within.min_similarity)


@given(known=st.lists(pictures, min_size=1, max_size=12).map(named), picture=pictures, within=limits)
def test_a_picture_is_a_copy_if_any_known_image_says_so(known, picture, within):
    index = NearDuplicateIndex(known, within)
    found = index.nearest(picture)
    assert found is not None
    assert index.is_duplicate(found) == any(is_copy_of(picture, one, within) for one in known)
    by_id = {one.id: one for one in known}
    assert found.distance == (int(by_id[found.id].phash, 16) ^ int(picture.phash, 16)).bit_count()


# ---- among themselves ------------------------------------------------------------------------


def test_of_images_like_each_other_the_first_is_kept():
    series = [image("a", 0), image("b", bits(3)), image("c", bits(30)), image("d", bits(2))]
    found = find_near_duplicates(series, LIMITS)
    assert {name: (near.id, near.distance) for name, near in found.items()} == {"b": ("a", 3), "d": ("a", 2)}


def test_a_copy_condemns_nothing_itself():
    chain = [image("a", 0), image("b", bits(5)), image("c", bits(10)), image("d", bits(15))]
    assert {name: near.id for name, near in find_near_duplicates(chain, LIMITS).items()} == {
        "b": "a",
        "d": "c",
    }


def test_the_same_pixels_again_are_a_duplicate():
    found = find_near_duplicates([image("a", 0, 0, "p"), image("b", bits(40), 90, "p")], LIMITS)
    assert found["b"].same_pixels


def test_images_alike_by_hash_or_by_embedding_only_are_both_kept():
    assert find_near_duplicates([image("a", 0, 0), image("b", 0, 40), image("c", bits(30), 0)], LIMITS) == {}


def test_no_images_have_no_copies():
    assert find_near_duplicates([], LIMITS) == {}


def test_a_chain_of_near_duplicates_is_one_group():
    chain = [image("a", bits(0)), image("apart", bits(60)), image("b", bits(5)), image("c", bits(10))]
    first, apart, *others = group_near_duplicates(chain, LIMITS).tolist()
    assert {first, *others} == {first} != {apart}


def test_images_are_of_one_group_by_their_pixels_or_by_hash_and_embedding():
    images = [image("a", 0, 0, "p"), image("b", bits(40), 90, "p"), image("c", bits(40), 0, "q")]
    first, same, other = group_near_duplicates(images, LIMITS).tolist()
    assert first == same != other
    assert len({*group_near_duplicates([image("a", 0, 0), image("b", 0, 40)], LIMITS)}) == 2
    assert len(group_near_duplicates([], LIMITS)) == 0


@given(several=st.lists(pictures, max_size=14).map(named), within=limits)
def test_copies_are_those_found_by_comparing_every_pair_in_order(several, within):
    kept: list[KnownImage] = []
    copies: list[str] = []
    for one in several:
        if any(is_copy_of(one, other, within) for other in kept):
            copies.append(one.id)
        else:
            kept.append(one)
    found = find_near_duplicates(several, within)
    assert list(found) == copies
    assert {near.id for near in found.values()} <= {one.id for one in kept}


@given(seed=st.integers(0, 2**32), flips=st.integers(0, 6))
def test_no_pair_within_the_distance_slips_between_the_bands(seed: int, flips: int):
    random = np.random.default_rng(seed)
    base = int(random.integers(0, 2**64, dtype=np.uint64))
    other = base
    for bit in random.choice(64, flips, replace=False):
        other ^= 1 << int(bit)
    crowd = [image(f"other {i}", int(one), 90) for i, one in enumerate(random.integers(0, 2**63, 20))]
    found = find_near_duplicates([image("base", base), *crowd, image("copy", other)], LIMITS)
    assert (found["copy"].id, found["copy"].distance) == ("base", flips)


def test_a_set_without_its_copies_has_none():
    random = np.random.default_rng(3)
    several = [image(str(i), int(one)) for i, one in enumerate(random.integers(0, 2**12, 300))]
    copies = find_near_duplicates(several, LIMITS)
    assert 0 < len(copies) < 300
    assert find_near_duplicates([one for one in several if one.id not in copies], LIMITS) == {}


# ---- two sets of images ----------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2**12 - 1), max_size=12),
    st.lists(st.integers(0, 2**12 - 1), max_size=12),
    st.sampled_from([0, 1, 4, 63, 64]),
)
def test_near_hashes_of_two_sets_are_those_a_search_through_all_pairs_finds(ones, others, distance):
    spread = [[int("".join(bit * 5 for bit in f"{n:012b}"), 2) for n in of] for of in (ones, others)]
    near, other_near = near_any(*(np.array(of, np.uint64) for of in spread), distance)
    assert near.tolist() == [any((a ^ b).bit_count() <= distance for b in spread[1]) for a in spread[0]]
    assert other_near.tolist() == [any((a ^ b).bit_count() <= distance for a in spread[0]) for b in spread[1]]


def test_near_hashes_are_found_in_parts_too(monkeypatch):
    monkeypatch.setattr("balancer.dataset.near_duplicates.PAIRS_AT_ONCE", 3)
    ones, others = np.arange(20, dtype=np.uint64), np.arange(10, 30, dtype=np.uint64)
    near, other_near = near_any(ones, others, 0)
    assert (np.flatnonzero(near).tolist(), np.flatnonzero(other_near).tolist()) == (
        list(range(10, 20)),
        list(range(10)),
    )


def test_copies_across_two_sets_meet_both_limits():
    held_out = [image("held out", 0, 0), image("other", bits(40), 90)]
    images = [
        image("copy", bits(3), 10),
        image("hash only", bits(3), 40),
        image("embedding only", bits(20), 0),
        image("same pixels", 0, 0, pixels="held out"),
    ]
    found = find_near_duplicates_across(images, held_out, LIMITS)
    assert {name: (near.id, near.same_pixels) for name, near in found.items()} == {
        "copy": ("held out", False),
        "same pixels": ("held out", True),
    }


def test_hashes_as_text_become_numbers():
    texts = ["00000000000000ff", "ffffffffffffffff", "0000000000000000"]
    assert hash_numbers(texts).tolist() == [255, 2**64 - 1, 0]
    assert hash_numbers([]).tolist() == []
