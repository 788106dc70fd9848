from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.review.estimates import images_for_bound
from balancer.review.sampling import (
    allocate,
    as_shown,
    draw_sample,
    least_certain,
    still_to_decide,
    verified_images,
)
from tests.manifest_samples import real, rejected, row

ONE, TWO = "basic/dim/0000", "basic/dim/0001"


def images(count, cell="basic/dim", review=lambda number: number % 10 == 0):
    return [row(f"{cell}/{number:04d}", review=review(number)) for number in range(count)]


def test_the_marked_images_are_the_sample_and_stand_for_the_same_number_each():
    sample = draw_sample(images(50), "run", None)
    assert sorted(sample.ids) == [f"basic/dim/{number:04d}-1" for number in range(0, 50, 10)]
    assert set(sample.weights.values()) == {1.0}
    assert sample.population == 50


def test_an_image_that_people_rejected_stays_in_the_sample_and_what_fills_its_slot_does_not_come_in():
    rows = [
        rejected(ONE, 1, "reviewed", review=True),
        row(ONE, 2, review=True),
        rejected(TWO, 1),
        row(TWO, 2, review=True),
        real("a.png", review=False),
    ]
    assert [one["id"] for one in verified_images(rows)] == [f"{ONE}-1", f"{TWO}-2"]


def test_a_margin_draws_from_every_cell_in_proportion_and_says_how_many_each_stands_for():
    rows = [*images(900), *images(90, "burnt/dim/severe"), *images(2, "burnt/harsh/slight")]
    sample = draw_sample(rows, "run", 0.05)
    drawn = Counter(item.rpartition("/")[0] for item in sample.ids)
    assert set(drawn) == {"basic/dim", "burnt/dim/severe", "burnt/harsh/slight"}
    assert sum(drawn.values()) >= images_for_bound(0.05)
    assert sum(sample.weights.values()) == pytest.approx(992)
    assert sample.weights[next(item for item in sample.ids if "harsh" in item)] == 2.0


@settings(max_examples=25)
@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1), st.integers(1, 200))
def test_every_stratum_gets_one_and_none_more_than_it_has(populations, wanted):
    shares = allocate(populations, wanted)
    assert all(1 <= shares[name] <= size for name, size in populations.items())
    assert sum(shares.values()) >= min(wanted, sum(populations.values()))


def test_the_sample_does_not_depend_on_the_order_of_rows():
    rows = images(300)
    assert draw_sample(rows, "run", 0.1).ids == draw_sample(rows[::-1], "run", 0.1).ids
    assert draw_sample(rows, "run", 0.1).ids != draw_sample(rows, "another run", 0.1).ids


def test_known_images_and_repeats_are_mixed_in_for_each_reviewer_in_their_own_order():
    sample = [f"image {number}" for number in range(40)]
    known = [f"real {number}" for number in range(30)]
    shown = as_shown(sample, known, "ann", "run")
    counts = Counter(shown)
    assert set(sample) <= set(shown)
    assert sum(item.startswith("real") for item in shown) == 4
    again = [item for item, count in counts.items() if count == 2]
    assert len(again) == 4
    assert not any(item.startswith("real") for item in again)
    for item in again:
        first, second = (place for place, one in enumerate(shown) if one == item)
        assert second > first + 1
    assert as_shown(sample, known, "ann", "run") == shown
    assert as_shown(sample, known, "bob", "run") != shown


@settings(max_examples=25)
@given(st.lists(st.integers(), unique=True, max_size=12).map(lambda ids: [str(each) for each in ids]))
def test_a_sample_of_any_size_is_shown_whole(sample):
    assert set(as_shown(sample, ["real"], "ann", "run")) - {"real"} == set(sample)


def test_what_was_decided_is_not_shown_again_and_a_repeat_once_more():
    assert still_to_decide(["a", "b", "a", "c"], {}) == ["a", "b", "a", "c"]
    assert still_to_decide(["a", "b", "a", "c"], {"a": 1, "c": 1}) == ["b", "a"]
    assert still_to_decide(["a", "b", "a", "c"], {"a": 2}) == ["b", "c"]


def test_the_least_certain_come_first_on_either_side_of_the_threshold():
    rows = [
        row(ONE, 1, score=0.9),
        row(ONE, 2, score=0.61),
        row(ONE, 3, score=0.58),
        row(ONE, 4, score=None),
        row(ONE, 5, score=float("nan")),
    ]
    order = [one["attempt"] for one in least_certain(rows)]
    assert order == [2, 3, 1, 4, 5]
