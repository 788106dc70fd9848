from __future__ import annotations

import pytest

from balancer.text.quantities import are, counted, percent, size


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0%"),
        (9, 9, "100%"),
        (1, 2, "50%"),
        (1, 1000, "<1%"),
        (999, 1000, ">99%"),
        (12, 10, "120%"),
        (1, 0, "–"),
    ],
)
def test_0_means_none_and_100_means_all(part, whole, text):
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (1, "<0.1 %"), (12_345, "12.3 %"), (99_999, ">99.9 %"), (100_000, "100 %")]
)
def test_the_same_holds_for_one_place(part, text):
    assert percent(part, 100_000, 1, unit=" %") == text


def test_a_figure_that_is_held_against_a_limit_is_not_rounded_up_to_it():
    assert percent(799, 1000, down=True) == "79%"
    assert percent(1, 1000, down=True) == "<1%"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1200, "1200 images")]
)
def test_a_noun_agrees_with_its_number(number, text):
    assert counted(number, "image") == text


def test_a_plural_of_its_own_is_given():
    assert counted(1, "class", "classes") == "1 class"
    assert counted(3, "class", "classes") == "3 classes"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (29_000, "29 kB"),
        (7e6, "7.0 MB"),
        (1.24e9, "1.2 GB"),
    ],
)
def test_a_size_has_the_unit_in_which_it_is_not_nothing(num_bytes: float, text: str):
    assert size(num_bytes) == text


@pytest.mark.parametrize(("number", "verb"), [(0, "are"), (1, "is"), (2, "are")])
def test_a_verb_agrees_with_its_number(number: int, verb: str):
    assert are(number) == verb
