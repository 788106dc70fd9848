"""What a config may say of conditioning, and the strengths that attempts get."""

from __future__ import annotations

from typing import Any

import pytest

from balancer.cells import Candidate, Cell, Slot
from balancer.config.load import validate_document
from balancer.config.schema import Config
from balancer.config.yaml_reading import Document
from balancer.errors import ConfigError
from balancer.scheduling.prompts import ParentImage, ladder, request_for

PARENT = ParentImage("real/cat/1.png", "images/cat/real/1.png", "0" * 64)


def document(generation: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "classes": {"cat": {"prompts": ["a cat"]}},
        "target": {"per_class": 5},
        "generation": generation,
        **sections,
    }


def config(**sections: Any) -> Config:
    return Config.model_validate(document({"conditioning": "image"}, **sections))


def strengths(config: Config) -> list[float | None]:
    return [rung.strength for rung in ladder(config)]


def test_strengths_climb_with_the_attempts_and_the_last_one_repeats():
    assert strengths(config()) == [0.5, 0.7, 0.9]
    more = config(attempts={"max": 4, "fallback": {}})
    assert strengths(more) == [0.5, 0.7, 0.9, 0.9, 0.9]


def test_a_rung_may_have_a_strength_of_its_own():
    own = config(attempts={"rungs": [{}, {"strength": 1.0}]})
    assert strengths(own) == [0.5, 1.0, 1.0]


def test_without_conditioning_no_attempt_has_a_strength():
    assert strengths(Config.model_validate(document({}))) == [None] * 3


def test_a_request_has_a_strength_with_a_parent_only():
    second = Candidate(Slot(Cell("cat"), 0), 2)
    conditioned, plain = (
        request_for(second, ladder(config())[1], config(), parent=parent) for parent in (PARENT, None)
    )
    assert (conditioned.strength, plain.strength) == (0.7, None)
    assert ("strength 0.7" in conditioned.changes, "strength 0.7" in plain.changes) == (True, False)
    assert conditioned.seed == plain.seed


@pytest.mark.parametrize(
    ("generation", "sections", "problem"),
    [
        ({"strengths": [0.5]}, {}, "generation: strengths has no effect without `conditioning: image`"),
        (
            {"strengths": [0.5], "contexts": "dataset"},
            {},
            "generation: strengths and contexts have no effect without `conditioning: image`",
        ),
        (
            {},
            {"attempts": {"rungs": [{"strength": 0.5}]}},
            "attempts.rungs.0.strength: has no effect without `generation.conditioning: image`",
        ),
        (
            {"conditioning": "image", "steps": 10, "strengths": [0.05]},
            {},
            "generation.strengths: a strength of 0.05 is less than one of 10 steps (generation.steps); at"
            " least 0.1 is one",
        ),
        (
            {"conditioning": "image", "steps": 4},
            {"attempts": {"rungs": [{}, {"strength": 0.2}]}},
            "attempts.rungs.1.strength: a strength of 0.2 is less than one of 4 steps (generation.steps); at"
            " least 0.25 is one",
        ),
        (
            {"conditioning": "image", "strengths": [0.5, 1.5]},
            {},
            "generation.strengths.1: should be at most 1, not 1.5",
        ),
        ({"conditioning": "images"}, {}, "generation.conditioning: should be `text` or `image`, not"),
        (
            {"conditioning": "image", "contexts": "all"},
            {},
            "generation.contexts: should be `class` or `dataset`, not",
        ),
    ],
)
def test_a_strength_or_context_that_cannot_act_is_a_problem_of_the_config(generation, sections, problem):
    with pytest.raises(ConfigError) as caught:
        validate_document(Document(document(generation, **sections), {(): "job.yaml"}), [])
    assert any(problem in one for one in caught.value.problems), caught.value.problems


def test_a_config_that_was_written_down_is_read_again():
    for made in (config(), Config.model_validate(document({}))):
        assert Config.model_validate(made.model_dump(mode="json")) == made
