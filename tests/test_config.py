from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from balancer.config import RESERVED_FACET_NAMES, Config

CLASSES = {"basic": {"prompts": ["a pizza"]}, "burnt": {"prompts": ["a burnt pizza"]}}


def config(**sections: Any) -> Config:
    return Config.model_validate({"classes": CLASSES, "target": {"per_class": 50}, **sections})


def facet(*shares: float | None, classes: str | list[str] = "all") -> dict[str, Any]:
    values = {f"value{n}": {"prompts": ["x"], "share": share} for n, share in enumerate(shares)}
    return {"classes": classes, "values": values}


def faults(**sections: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**sections)
    return str(caught.value)


def test_shares_are_the_decimals_that_were_written():
    (axis,) = config(facets={"burn_level": facet(0.4, 0.35, 0.25)}).facet_axes()
    assert axis.shares == (Fraction(2, 5), Fraction(7, 20), Fraction(1, 4))


def test_values_without_shares_are_even():
    (axis,) = config(facets={"lighting": facet(None, None, None)}).facet_axes()
    assert axis.shares == (Fraction(1, 3),) * 3


@given(st.lists(st.integers(1, 999), min_size=1, max_size=8))
def test_shares_that_pass_sum_to_exactly_one(parts: list[int]):
    rounded = [round(part / sum(parts), 4) for part in parts]
    (axis,) = config(facets={"f": facet(*(max(share, 0.0001) for share in rounded))}).facet_axes()
    assert sum(axis.shares) == 1


def test_shares_that_do_not_sum_to_one_are_refused():
    assert "shares sum to 0.9, not 1" in faults(facets={"f": facet(0.5, 0.4)})


def test_shares_for_some_values_only_are_refused():
    assert "share is missing for value1" in faults(facets={"f": facet(0.5, None)})


def test_a_facet_applies_to_all_classes_or_to_those_named():
    axes = config(facets={"f": facet(None), "g": facet(None, classes=["burnt"])}).facet_axes()
    assert [axis.classes for axis in axes] == [{"basic", "burnt"}, {"burnt"}]


def test_a_facet_of_an_unknown_class_is_refused():
    assert "no class 'brunt'; the classes are basic, burnt" in faults(
        facets={"f": facet(None, classes=["brunt"])}
    )


@pytest.mark.parametrize("name", sorted(RESERVED_FACET_NAMES))
def test_a_facet_must_not_hide_a_column_of_the_manifest(name: str):
    assert f"{name!r} is a column of the manifest" in faults(facets={name: facet(None)})


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 101])
def test_a_name_that_cannot_be_part_of_an_id_is_refused(name: str):
    assert "string_pattern_mismatch" in faults(classes={name: {"prompts": ["x"]}})


@pytest.mark.parametrize(
    "section",
    [
        {"generation": {"width": 100}},
        {"generation": {"steps": 0}},
        {"verification": {"threshold": 1.5}},
        {"attempts": {"max": 0}},
        {"target": {"per_class": 0}},
        {"budget": {"max_hours": 0}},
        {"actors": {"generators": 0}},
        {"review": {"fraction": -0.1}},
        {"classes": {}},
        {"classes": {"basic": {"prompts": []}}},
    ],
)
def test_values_out_of_range_are_refused(section: dict[str, Any]):
    assert faults(**section)


def test_unknown_keys_are_refused():
    assert "generation.stpes" in faults(generation={"stpes": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"generation": {"steps": 31}},
        {"verification": {"threshold": 0.7}},
        {"attempts": {"fallback": {}}},
        {"target": {"per_class": 51}},
        {"facets": {"f": facet(None)}},
    ],
)
def test_the_fingerprint_changes_with_what_is_produced(change: dict[str, Any]):
    assert config(**change).fingerprint() != config().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another title"},
        {"actors": {"generators": 3}},
        {"budget": {"max_candidates": 5}},
        {"planning": {"acceptance": 0.1}},
        {"criteria": {"class_fill": 0.1}},
        {"generation": {"batch_size": 4}},
        {"generation": {"dtype": "float16"}},
    ],
)
def test_the_fingerprint_does_not_change_with_how_fast_it_is_produced(change: dict[str, Any]):
    assert config(**change).fingerprint() == config().fingerprint()


def test_a_config_survives_being_written_as_json():
    written = config(facets={"f": facet(0.4, 0.6, classes=["burnt"])})
    assert Config.model_validate(written.model_dump(mode="json")) == written
