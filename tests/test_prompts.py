from __future__ import annotations

from typing import Any

import pytest

from balancer.cells import Candidate, Cell, Slot
from balancer.config import Config
from balancer.prompts import Request, Rung, ladder, request_for

BASIC = Cell("basic", (("lighting", "dim"),))
USUAL = Rung(threshold=0.6, guidance=7.5)
FALLBACK = Rung(threshold=0.5, guidance=7.5, fallback=True)


def config(
    *,
    prompts: tuple[str, ...] = ("a pizza", "one pizza", "some pizza"),
    variations: tuple[str, ...] = (),
    fallback_prompts: tuple[str, ...] = (),
    fallback: float | None = 0.5,
    seed: int = 0,
) -> Config:
    basic = {
        "prompts": prompts,
        "variations": variations,
        "fallback_prompts": fallback_prompts,
        "negative_prompt": "burnt",
    }
    dim = {"prompts": ["low light", "a dark room"], "negative_prompt": "bright"}
    content: dict[str, Any] = {
        "seed": seed,
        "classes": {"basic": basic},
        "facets": {"lighting": {"values": {"dim": dim}}},
        "target": {"per_class": 50},
        "generation": {"negative_prompt": "text"},
        "attempts": {"max": 3, "fallback": fallback and {"threshold": fallback}},
    }
    return Config.model_validate(content)


def asked(config: Config, *, index: int = 0, attempt: int = 1, rung: Rung = USUAL) -> Request:
    return request_for(Candidate(Slot(BASIC, index), attempt), rung, config)


def test_the_ladder_has_a_rung_for_each_attempt_and_then_the_fallback():
    usual = Rung(threshold=0.6, guidance=7.5)
    assert ladder(config()) == (usual, usual, usual, Rung(0.5, 7.5, fallback=True))


def test_without_a_fallback_the_ladder_ends_with_the_attempts():
    assert len(ladder(config(fallback=None))) == 3


def test_a_prompt_names_the_class_then_each_facet_then_a_detail():
    assert asked(config(variations=("on wood",))).prompt == "a pizza, low light, on wood"


def test_each_attempt_has_another_wording():
    prompts = [asked(config(), attempt=attempt).prompt for attempt in (1, 2, 3)]
    assert prompts == ["a pizza, low light", "one pizza, a dark room", "some pizza, low light"]


def test_neighbouring_slots_of_a_cell_begin_with_different_wordings():
    assert asked(config(), index=0).prompt != asked(config(), index=1).prompt


def test_every_wording_meets_every_variation():
    job = config(prompts=("a", "b"), variations=("x", "y", "z"))
    met = {tuple(asked(job, index=index).prompt.split(", ")[::2]) for index in range(6)}
    assert met == {(wording, detail) for wording in "ab" for detail in "xyz"}


def test_the_fallback_asks_with_its_own_prompts():
    assert asked(config(fallback_prompts=("plainly a pizza",)), rung=FALLBACK).prompt.startswith(
        "plainly a pizza"
    )


def test_a_fallback_without_prompts_of_its_own_takes_the_usual_ones():
    assert asked(config(), rung=FALLBACK) == asked(config(), rung=USUAL)


def test_an_attempt_before_the_fallback_never_takes_fallback_prompts():
    assert asked(config(fallback_prompts=("plainly a pizza",))).prompt == "a pizza, low light"


def test_the_negative_prompt_joins_those_of_the_run_the_class_and_the_facets():
    assert asked(config()).negative_prompt == "text, burnt, bright"


@pytest.mark.parametrize("rung", [USUAL, FALLBACK])
def test_the_seed_depends_on_run_seed_slot_and_attempt_and_on_nothing_else(rung: Rung):
    candidate = Candidate(Slot(BASIC, 4), 2)
    other_words = config(prompts=("other",), variations=("words",), fallback=None, seed=5)
    assert asked(config(seed=5), index=4, attempt=2, rung=rung).seed == candidate.seed(5)
    assert asked(other_words, index=4, attempt=2, rung=rung).seed == candidate.seed(5)


def test_each_attempt_has_another_seed():
    assert len({asked(config(), attempt=attempt).seed for attempt in (1, 2, 3, 4)}) == 4


def test_wordings_and_facet_phrases_of_equal_number_meet_in_every_pair():
    job = config(prompts=("a", "b"))  # lighting has two phrases as well
    assert len({asked(job, index=index).prompt for index in range(4)}) == 4
