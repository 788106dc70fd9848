from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.schema import Config
from balancer.errors import UsageError
from balancer.verification.calibration import Examples
from balancer.verification.preflight import LISTED, Preflight, preflight, refuse_unproven, summary

CLASSES = {name: {"prompts": [name]} for name in ("basic", "burnt", "mixed")}
LIGHTING = {"values": {"dim": {"prompts": ["dim"]}, "bright": {"prompts": ["bright"]}}}


def config(*unjudged: str, min_examples: int = 5, min_auc: float = 0.8) -> Config:
    limits = {"unjudged": unjudged, "min_examples": min_examples, "min_auc": min_auc}
    base = {"classes": CLASSES, "facets": {"lighting": LIGHTING}, "target": {"per_class": 5}}
    return Config.model_validate(base | {"verification": limits})


def labelled(values: tuple[str, ...], counts: tuple[int, ...], told_apart: bool = True) -> Examples:
    labels = np.repeat(np.arange(len(values)), counts)
    seen = np.eye(len(values))[labels] if told_apart else np.zeros((len(labels), len(values)))
    probabilities = (0.1 + seen) / (0.1 + seen).sum(axis=1, keepdims=True)
    return Examples(values, np.log(probabilities), labels)


def classes(*counts: int, told_apart: bool = True) -> Examples:
    return labelled(tuple(CLASSES), counts, told_apart)


def lighting(*counts: int, told_apart: bool = True) -> Examples:
    return labelled(("dim", "bright"), counts, told_apart)


def found(of_class: Examples, of_lighting: Examples, *unjudged: str, **limits) -> Preflight:
    examples = {"class": of_class, "lighting": of_lighting}
    return preflight(examples, {}, len(of_class.labels), config(*unjudged, **limits))


def refusal(checked: Preflight) -> UsageError:
    with pytest.raises(UsageError) as caught:
        refuse_unproven(checked)
    return caught.value


def test_values_that_are_told_apart_are_proven_and_let_the_run_go_on():
    checked = found(classes(5, 5, 5), lighting(6, 9))
    refuse_unproven(checked)
    assert checked.unproven == ()
    assert {proof.auc for proof in checked.values} == {1.0}
    assert "5 of 5 values proven on 15 real images, lowest AUC 1.00" in summary(checked)


def test_a_value_near_chance_is_refused_with_its_numbers_and_the_knob():
    error = refusal(found(classes(9, 9, 9), lighting(20, 20, told_apart=False)))
    assert "lighting: no value is proven: dim: AUC 0.50 on 20 labelled images" in error.message
    assert "0.80 needed (verification.min_auc" in error.message
    assert "verification.unjudged: [lighting]" in error.hint
    assert "rejects no image" in error.hint
    assert error.exit_code == 2


def test_a_property_without_labelled_images_is_one_line():
    error = refusal(found(classes(5, 5, 5), lighting(0, 0)))
    assert error.message.splitlines()[1:] == ["  lighting: no labelled image of any value"]


def test_a_value_with_too_few_labelled_images_is_named_alone():
    error = refusal(found(classes(30, 30, 4), lighting(30, 30)))
    assert error.message.splitlines()[1:] == [
        "  class=mixed: 4 labelled images, 5 needed (verification.min_examples)"
    ]
    assert error.hint.endswith("verification.unjudged: [class=mixed]")


def test_a_class_without_images_is_named_alone():
    error = refusal(found(classes(30, 30, 0), lighting(30, 30)))
    assert "class=mixed: no labelled images, 5 needed" in error.message


def test_where_all_images_show_one_value_nothing_was_told_apart():
    checked = found(classes(5, 5, 5), lighting(40, 0), min_examples=1)
    (dim, bright) = [proof for proof in checked.values if proof.property_ == "lighting"]
    assert (dim.auc, dim.proven, bright.proven) == (None, False, False)
    assert "there are none of another value" in dim.problem


def test_a_property_with_one_value_is_not_proven():
    only = labelled(("basic",), (50,))
    checked = preflight({"class": only}, {}, 50, config())
    assert "there is no other to compare it with" in checked.values[0].problem


@pytest.mark.parametrize("unjudged", [("lighting",), ("lighting=dim", "lighting=bright")])
def test_what_is_named_in_unjudged_lets_the_run_go_on_and_is_told(unjudged):
    checked = found(classes(5, 5, 5), lighting(0, 0), *unjudged)
    refuse_unproven(checked)
    assert checked.blocking == ()
    assert len(checked.unproven) == 2
    assert summary(checked).endswith(f"allowed by verification.unjudged: {', '.join(unjudged)}")


def test_a_value_named_in_unjudged_covers_no_other_value():
    error = refusal(found(classes(5, 2, 0), lighting(9, 9), "class=burnt"))
    assert "class=mixed" in error.message
    assert "burnt" not in error.message


def test_temperatures_are_those_of_the_run():
    # At a high temperature the sure answers count for less, so that the images stand in another order.
    logs = np.log([[0.5, 0.45, 0.05], [0.4, 0.3, 0.3], [0.45, 0.55, 1e-9], [0.1, 0.45, 0.45]])
    labels = np.array([0, 0, 1, 1])
    limits = config("lighting", min_examples=1)
    at = {
        temperature: preflight(
            {"class": Examples(tuple(CLASSES), logs, labels)}, {"class": temperature}, 4, limits
        )
        for temperature in (1.0, 20.0)
    }
    assert at[1.0].values[0].auc != at[20.0].values[0].auc


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20))
def test_a_proven_value_has_as_many_images_as_are_needed(basic, burnt, needed):
    checked = found(classes(basic, burnt, 0), lighting(1, 1), min_examples=needed)
    for proof in checked.values:
        assert not proof.proven or proof.examples >= needed


def test_a_thousand_unproven_classes_are_not_all_listed():
    names = tuple(f"c{index}" for index in range(1000))
    many = Examples(names, np.zeros((1, 1000)), np.array([0]))
    error = refusal(preflight({"class": many}, {}, 1, config()))
    assert len(error.message) + len(error.hint) < 200 * LISTED
    assert "980 more" in error.message


def test_as_json_each_value_says_whether_it_is_proven_or_allowed():
    told = found(classes(5, 5, 0), lighting(9, 9), "class=mixed").as_dict()
    assert (told["images"], told["ready"], told["unproven_properties"]) == (10, True, [])
    assert told["values"][2] == {
        "property": "class",
        "value": "mixed",
        "examples": 0,
        "auc": None,
        "proven": False,
        "problem": "no labelled images, 5 needed (verification.min_examples)",
        "unjudged": True,
    }


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lightning", "did you mean 'lighting'"),
        ("class=mixt", "did you mean 'class=mixed'"),
        ("xyzzy", "properties are class, lighting"),
    ],
)
def test_a_name_in_unjudged_that_is_nothing_is_refused(name, advice):
    with pytest.raises(ValueError, match=f"neither a property nor property=value: {name}") as caught:
        config(name)
    assert advice in str(caught.value)
