from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from balancer.config.schema import Config
from balancer.dataset.audit import Audit
from balancer.dataset.unreadable import describe_unreadable

SMALL = "0.1 megabytes, over the limit of 0.0001 (dataset.max_image_megabytes)"
LARGE = "400 x 400 is 0.2 megapixels, over the limit of 0.1 (dataset.max_image_megapixels)"
EMPTY = "the file is empty"


def found(*reasons: str, path: str = "data") -> Audit:
    names: Sequence[tuple[str, str]] = [(f"a/{n}.png", reason) for n, reason in enumerate(reasons)]
    nothing = ((),) * 5
    return Audit(Path(path), (), tuple(names), (), {}, *nothing, 0)


def config(**dataset: float) -> Config:
    return Config.model_validate(
        {
            "dataset": {"path": "data", **dataset},
            "target": {"per_class": 1},
            "classes": {"a": {"prompts": ["an a"]}},
        }
    )


def test_nothing_is_said_of_a_dataset_without_faults():
    assert describe_unreadable(found(), config()) == ""


def test_a_limit_of_the_config_is_named_and_no_command_that_does_not_know_it():
    other = SMALL.replace("0.1 mega", "0.7 mega")
    assert describe_unreadable(found(SMALL, other), config(max_image_megabytes=0.0001)) == (
        "2 images cannot be read, so they are not counted: 2 over 0.0001 MB (dataset.max_image_megabytes),"
        " such as a/0.png"
    )


def test_audit_is_suggested_for_those_that_it_lists():
    limits = config(max_image_megapixels=0.1)
    assert describe_unreadable(found(EMPTY, LARGE, LARGE, path="my data"), limits) == (
        "3 images cannot be read, so they are not counted: 2 over 0.1 megapixels"
        " (dataset.max_image_megapixels), such as a/1.png; 1: the file is empty"
        " (`balancer audit 'my data'` lists the other one)"
    )


def test_audit_lists_what_is_over_a_limit_that_was_raised():
    over = "990.0 megabytes, over the limit of 900 (dataset.max_image_megabytes)"
    assert describe_unreadable(found(over), config(max_image_megabytes=900), "hold-out image") == (
        "1 hold-out image cannot be read, so it is not counted: a/0.png: over 900 MB"
        " (dataset.max_image_megabytes) (`balancer audit data` lists it)"
    )


def test_the_most_frequent_reasons_are_named_and_the_rest_counted():
    reasons = ["damaged: a", "damaged: b", "damaged: c", EMPTY, EMPTY, "damaged: d"]
    assert describe_unreadable(found(*reasons), config()) == (
        "6 images cannot be read, so they are not counted: 2: the file is empty, such as a/3.png;"
        " 1: damaged: a; 1: damaged: b; 2 for other reasons (`balancer audit data` lists them)"
    )
