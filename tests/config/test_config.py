from __future__ import annotations

import re
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from balancer.config.schema import (
    MAX_CELLS,
    MAX_FACETS,
    MAX_FACETS_OF_CLASS,
    RESERVED_FACET_NAMES,
    ActorsConfig,
    Config,
)

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


BRIGHT = {"lighting": {"values": {"bright": {"prompts": ["bright"], "brightness": [0.9, 0.1]}}}}


@pytest.mark.parametrize("sections", [{"verification": {"brightness": [0.9, 0.1]}}, {"facets": BRIGHT}])
def test_a_least_brightness_is_not_above_the_greatest(sections):
    assert "the least, 0.9, is above the greatest, 0.1" in faults(**sections)


@pytest.mark.parametrize(("given", "outside"), [([0, 0.2], True), ([0.9, 1], True), ([0.8, 1], False)])
def test_the_brightness_of_a_facet_value_meets_that_of_all_images(given, outside):
    facets = {"lighting": {"values": {"bright": {"prompts": ["bright"], "brightness": given}}}}
    sections = {"facets": facets, "verification": {"brightness": [0.3, 0.8]}}
    if outside:
        text = faults(**sections)
        assert f"facets.lighting.values.bright.brightness: {given[0]:g} to {given[1]:g} lies outside" in text
    else:
        config(**sections)


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


def facets(count: int, values: int) -> dict[str, Any]:
    return {f"f{number}": facet(*[None] * values) for number in range(count)}


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (facets(20, 4), r"2 classes x 4 x 4 x .* facet values make 2,199,023,255,552 cells, over the limit"),
        (facets(8, 10), "make 200,000,000 cells, over the limit of 120,000; use fewer facets or values"),
        (facets(MAX_FACETS_OF_CLASS + 1, 1), "31 apply to class 'basic', over the limit of 30"),
        (facets(MAX_FACETS + 1, 1), "there are 501, over the limit of 500"),
    ],
)
def test_more_cells_than_can_be_planned_are_counted_before_they_are_built(asked: Any, problem: str):
    began = time.process_time()
    assert re.search(problem, faults(facets=asked))
    assert time.process_time() - began < 5


def test_as_many_cells_as_are_allowed_may_be_asked_for():
    most = {**facets(4, 10), "g": facet(*[None] * 6)}
    assert len(CLASSES) * 10**4 * 6 == MAX_CELLS
    assert config(facets=most).facets.keys() == most.keys()
    assert "make 140,000 cells" in faults(facets={**most, "g": facet(*[None] * 7)})


def test_a_facet_counts_only_in_the_classes_it_applies_to():
    named = {f"f{number}": facet(None, None, classes=["burnt"]) for number in range(16)}
    assert len(config(facets=named).facets) == 16


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("dataset", "max_image_megabytes", 1e308),
        ("dataset", "max_image_megapixels", 1e308),
        ("planning", "seconds_per_candidate", 1e308),
        ("planning", "cost_per_generator_hour", 1e308),
        ("planning", "acceptance", 5e-324),
        ("planning", "bytes_per_image", 10**30),
        ("budget", "max_hours", 1e308),
        ("budget", "max_candidates", 10**30),
        ("actors", "gpus_per_generator", 1e-300),
        ("actors", "gpus_per_verifier", 1e308),
        ("actors", "call_timeout_s", 1e308),
        ("actors", "start_timeout_s", 1e308),
        ("actors", "max_restarts", 10**30),
        ("output", "commit_seconds", 1e308),
        ("output", "disk_full_wait_s", 1e308),
        ("verification", "min_examples", 10**30),
    ],
)
def test_no_number_is_so_large_or_small_that_what_is_computed_from_it_is_infinite(section, key, value):
    assert key in faults(**{section: {key: value}})


def test_every_number_of_a_config_has_a_least_and_a_greatest_value():
    def unbounded(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            limits = {type(each) for each in field.metadata}
            is_number = field.annotation in (int, float, int | None, float | None)
            if is_number and not (limits & {Gt, Ge} and limits & {Lt, Le}):
                yield f"{model.__name__}.{name}"
            for part in (field.annotation, *get_args(field.annotation)):
                for one in (part, *get_args(part)):
                    if isinstance(one, type) and issubclass(one, BaseModel):
                        yield from unbounded(one)

    assert list(unbounded(Config)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_timesteps", 10**9),
        ("solver_order", 10**400),
        ("steps_offset", -(10**8)),
        ("beta_end", 1e300),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_number_that_no_scheduler_has_is_refused_before_one_is_made(name: str, value: float):
    scheduler = {"name": "DDIMScheduler", "options": {name: value}}
    with pytest.raises(ValidationError, match=f"{name} is over the limit of 100,000"):
        config(generation={"scheduler": scheduler})


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


@pytest.mark.parametrize("setting", ["gpus_per_generator", "gpus_per_verifier"])
@pytest.mark.parametrize(
    ("gpus", "problem"),
    [(1.5, "must be a whole number, such as 1 or 2"), (0.00005, "must be at least 0.0001")],
)
def test_a_share_of_gpus_that_ray_cannot_reserve_is_refused(setting, gpus, problem):
    with pytest.raises(ValidationError, match=problem):
        ActorsConfig.model_validate({setting: gpus})


@pytest.mark.parametrize("gpus", [0.0001, 0.9, 1, 1.0, 2])
def test_a_share_of_gpus_that_ray_can_reserve_is_taken(gpus):
    assert ActorsConfig(gpus_per_generator=gpus).gpus_per_generator == gpus
