from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from balancer.cells import Candidate, Cell, Slot
from balancer.config.schema import Config
from balancer.scheduling.prompts import Request, Rung, allowed_wordings, ladder, request_for

BASIC = Cell("basic", (("lighting", "dim"),))
USUAL = Rung(threshold=0.6, guidance=7.5)
FALLBACK = Rung(threshold=0.5, guidance=7.5, fallback_prompts=True, fallback=True)


def config(
    *,
    prompts: tuple[str, ...] = ("a pizza", "one pizza", "some pizza"),
    variations: tuple[str, ...] = (),
    fallback_prompts: tuple[str, ...] = (),
    fallback: float | None = 0.5,
    rungs: tuple[dict[str, Any], ...] = (),
    lighting: tuple[str, ...] = ("low light", "a dark room"),
    seed: int = 0,
) -> Config:
    basic = {
        "prompts": prompts,
        "variations": variations,
        "fallback_prompts": fallback_prompts,
        "negative_prompt": "burnt",
    }
    dim = {"prompts": lighting, "negative_prompt": "bright"}
    content: dict[str, Any] = {
        "seed": seed,
        "classes": {"basic": basic},
        "facets": {"lighting": {"values": {"dim": dim}}},
        "target": {"per_class": 50},
        "generation": {"negative_prompt": "text"},
        "attempts": {"max": 3, "rungs": rungs, "fallback": fallback and {"threshold": fallback}},
    }
    return Config.model_validate(content)


def asked(
    config: Config, *, index: int = 0, attempt: int = 1, rung: Rung | None = None, **told: Any
) -> Request:
    """The request of an attempt, by default on its rung of the ladder."""
    climbed = rung or ladder(config)[attempt - 1]
    return request_for(Candidate(Slot(BASIC, index), attempt), climbed, config, **told)


def test_the_ladder_has_a_rung_for_each_attempt_and_then_the_fallback():
    first, second, third, last = ladder(config())
    assert (first, second, third) == tuple(Rung(0.6, 7.5, turn) for turn in range(3))
    assert last == Rung(0.5, 7.5, turn=3, fallback_prompts=True, fallback=True)


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
    assert asked(config(), rung=FALLBACK).prompt == asked(config(), rung=USUAL).prompt


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


# Rungs as config


def test_attempts_beyond_the_rungs_repeat_the_last_one():
    job = config(rungs=({}, {"guidance": 9, "threshold": 0.5}), fallback=None)
    assert [(rung.guidance, rung.threshold) for rung in ladder(job)] == [(7.5, 0.6), (9, 0.5), (9, 0.5)]


def test_rungs_that_no_attempt_reaches_are_refused():
    with pytest.raises(ValidationError, match=r"4 entries and max is 3: raise attempts\.max"):
        config(rungs=({}, {}, {}, {}))


@pytest.mark.parametrize(("threshold", "marked"), [(0.5, True), (0.6, False), (0.7, False), (None, False)])
def test_a_rung_is_a_fallback_if_its_threshold_is_lower(threshold: float | None, marked: bool):
    assert ladder(config(rungs=({"threshold": threshold},)))[0].fallback is marked


def test_a_rung_without_next_wording_keeps_the_words_of_the_attempt_before():
    job = config(rungs=({}, {}, {"next_wording": False}), lighting=("low light", "a dark room", "dusk"))
    first, second, third = (asked(job, index=1, attempt=attempt).prompt for attempt in (1, 2, 3))
    assert first != second == third


STRENGTHEN: tuple[dict[str, Any], ...] = ({}, {"next_wording": False, "strengthen": True})


@pytest.mark.parametrize(
    ("weakest", "prompt"),
    [
        ("lighting", "low light, a dark room, a pizza, on wood"),
        ("class", "a pizza, one pizza, low light, on wood"),
        ("blank", "a pizza, low light, on wood"),
        (None, "a pizza, low light, on wood"),
    ],
)
def test_the_weakest_property_is_said_first_and_in_two_wordings(weakest: str | None, prompt: str):
    job = config(rungs=STRENGTHEN, variations=("on wood",))
    request = asked(job, attempt=2, weakest=weakest)
    assert request.prompt == prompt
    assert request.changes == ((f"strengthen {weakest}",) if weakest in ("class", "lighting") else ())


@pytest.mark.parametrize(
    ("weakest", "prompt", "changes"),
    [("lighting", "low light, a pizza", ("strengthen lighting",)), ("class", "a pizza, low light", ())],
)
def test_a_property_of_one_wording_is_said_first_and_once(weakest: str, prompt: str, changes: tuple[str]):
    job = config(rungs=STRENGTHEN, prompts=("a pizza",), lighting=("low light",))
    request = asked(job, attempt=2, weakest=weakest)
    assert (request.prompt, request.changes) == (prompt, changes)


def test_the_weakest_property_changes_nothing_on_a_rung_that_does_not_strengthen():
    assert asked(config(), attempt=2, weakest="lighting") == asked(config(), attempt=2)


def test_a_plain_first_attempt_changes_nothing():
    assert [asked(config(), index=index).changes for index in range(4)] == [()] * 4


def test_the_wordings_are_numbered_with_the_fallback_prompts_last():
    job = config(fallback_prompts=("x", "y"))
    assert [asked(job, attempt=attempt).wording for attempt in (1, 2, 3, 4)] == [0, 1, 2, 4]


def test_a_request_lists_all_that_its_rung_changed():
    rung = {"strengthen": True, "guidance": 9, "fallback_prompts": True, "threshold": 0.45}
    job = config(rungs=({}, rung), fallback_prompts=("x", "y"))
    assert asked(job, attempt=2, weakest="lighting").changes == (
        "wording 4",
        "strengthen lighting",
        "guidance 9",
        "fallback prompts",
        "threshold 0.45",
    )


def test_a_wording_that_was_chosen_is_taken_and_counts_as_a_change():
    plain, chosen = asked(config()), asked(config(), wording=2)
    assert (chosen.prompt, chosen.wording, chosen.changes) == ("some pizza, low light", 2, ("wording 2",))
    assert asked(config(), wording=0) == plain


@pytest.mark.parametrize(("fallback_prompts", "wordings"), [((), range(3)), (("x", "y"), range(3, 5))])
def test_a_fallback_may_use_its_own_wordings_only(fallback_prompts: tuple[str, ...], wordings: range):
    job = config(fallback_prompts=fallback_prompts)
    assert allowed_wordings(BASIC, USUAL, job) == range(3)
    assert allowed_wordings(BASIC, FALLBACK, job) == wordings
