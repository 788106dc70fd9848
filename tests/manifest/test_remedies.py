"""What a run that ended short says of its cells, and of what would help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from balancer.cli import console, main
from balancer.config.schema import Config
from balancer.manifest import read_status
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, MemoryStorage, at, planned, rejected, row, start

BASIC, BURNT = "basic/dim", "burnt/dim/severe"
ALL = (1, 2, 3, 4)
"""The attempts of a slot, the fallback included."""


def slot(cell: str, index: int) -> str:
    return f"{cell}/{index:04d}"


def with_settings(**sections: Any) -> dict[str, Any]:
    return Config.model_validate(CONFIG | sections).model_dump(mode="json")


def status_after(*rows: dict[str, Any], state: Any = "short", **changes: Any) -> dict[str, Any]:
    storage = MemoryStorage()
    log = start(storage, **changes)
    log.commit(rows)
    log.close(state)
    return read_status(storage, at(1))


def failed(cell: str, index: int, *scores: float, reason: str = "lighting", **changes: Any) -> list[Any]:
    """All attempts of a slot, rejected with these scores."""
    scores = scores or (0.25,) * len(ALL)
    return [
        rejected(slot(cell, index), attempt, reason, score=score, **changes)
        for attempt, score in zip(ALL, scores, strict=True)
    ]


def test_short_cells_are_listed_with_their_reasons():
    status = status_after(
        *failed(BASIC, 0), row(slot(BASIC, 1)), *failed(BURNT, 0, reason="burn_level"), *failed(BURNT, 1)
    )
    assert status["short_cells"] == {
        BASIC: {"short": 1, "candidates": 5, "accepted": 1, "reasons": {"lighting": 4}},
        BURNT: {"short": 2, "candidates": 8, "accepted": 0, "reasons": {"burn_level": 4, "lighting": 4}},
    }


def test_a_complete_run_has_nothing_to_remedy():
    full = [row(slot(BASIC, i)) for i in range(3)] + [row(slot(BURNT, i)) for i in range(2)]
    status = status_after(*full, state="complete")
    assert status["short_cells"] == {}
    assert status["remedies"]["summary"] == []


def test_the_weakest_property_is_that_which_rejected_most_candidates_of_short_cells():
    status = status_after(
        *failed(BURNT, 0, reason="burn_level"),
        *(rejected(slot(BASIC, i), reason="lighting") for i in range(3)),  # of a cell that is not short
        *(row(slot(BASIC, i), 2) for i in range(3)),
    )
    assert status["remedies"]["weakest"] == {"property": "burn_level", "rejected": 4, "candidates": 4}


def test_the_candidates_that_the_weakest_property_rejected_are_of_those_that_were_rejected():
    status = status_after(*failed(BASIC, 0), row(slot(BASIC, 1)))
    assert (
        status["remedies"]["summary"][0].split(";")[0]
        == "lighting rejected 4 of the 4 rejected candidates there"
    )


def test_a_flaw_is_a_reason_and_no_property():
    assert status_after(*failed(BASIC, 0, reason="blank"))["remedies"]["weakest"] is None


def test_the_wording_that_passes_most_often_is_named_with_the_others():
    classes = {"basic": {"prompts": ["a plain one", "one on a plate"]}, "burnt": {"prompts": ["burnt"]}}
    rows = [row(slot(BASIC, i), wording=1) for i in range(4)]
    rows += [rejected(slot(BASIC, i), wording=1) for i in range(10, 12)]
    rows += [row(slot(BASIC, 4), wording=0)]
    rows += [one for i in (5, 6) for one in failed(BASIC, i, wording=0)]
    status = status_after(*rows, config=with_settings(classes=classes), plan=[planned(BASIC, 12)])
    assert status["remedies"]["wordings"] == (
        {
            "class_name": "basic", "wording": 1, "prompt": "one on a plate",
            "accepted": 4, "candidates": 6, "others_accepted": 1, "others_candidates": 9,
        },
    )  # fmt: skip
    summary = " ".join(status["remedies"]["summary"])
    assert "basic passes most often as 'one on a plate' (67%, other wordings 11%)" in summary


def test_the_attempts_needed_follow_from_the_rate_at_which_candidates_passed():
    """One image is short, and half of the candidates pass: two more attempts leave a quarter of an image."""
    rows = [*failed(BASIC, 0), *(row(slot(BASIC, i)) for i in (1, 2, 3, 4))]
    status = status_after(*rows, plan=[planned(BASIC, 5)])
    assert status["remedies"]["attempts"] == {"needed": 5, "now": 3, "fills": 1, "hopeless": 0}
    assert any("attempts.max=5 would fill 1 more" in line for line in status["remedies"]["summary"])


def test_attempts_promise_nothing_where_none_passed():
    assert status_after(*failed(BASIC, 0))["remedies"]["attempts"] is None
    rows = [*failed(BASIC, 0), *(row(slot(BASIC, i)) for i in (1, 2)), *failed(BURNT, 0)]
    assert status_after(*rows)["remedies"]["attempts"]["hopeless"] == 1


def test_each_lower_threshold_is_given_with_the_slots_that_it_fills_and_their_scores():
    rows = [*failed(BASIC, 0, 0.1, 0.57, 0.2, 0.3), *failed(BASIC, 1, 0.1, 0.1, 0.47, 0.1), *failed(BASIC, 2)]
    thresholds = status_after(*rows)["remedies"]["thresholds"]
    assert [(each["threshold"], each["fills"]) for each in thresholds] == [(0.55, 1), (0.45, 2), (0.25, 3)]
    assert thresholds[1]["mean_score"] == pytest.approx(0.52)
    assert {each["now"] for each in thresholds} == {0.6}


def test_a_threshold_fills_no_slot_whose_candidates_have_flaws_or_that_is_full():
    rows = [*failed(BASIC, 0, reason="blank"), rejected(slot(BASIC, 1), score=0.59), row(slot(BASIC, 1), 2)]
    assert status_after(*rows)["remedies"]["thresholds"] == ()


def test_open_slots_say_which_budget_they_need():
    """Half of the candidates pass, and three slots are open."""
    rows = [row(slot(BASIC, 0)), rejected(slot(BASIC, 1)), row(slot(BASIC, 1), 2), rejected(slot(BASIC, 2))]
    status = status_after(*rows, state="budget", config=with_settings(budget={"max_candidates": 4}))
    assert status["open"] == 3
    assert status["remedies"]["budget"] == {"needed": 10, "now": 4}
    assert "budget.max_candidates=10" in status["remedies"]["summary"][0]


@pytest.fixture
def short_run(tmp_path: Path) -> str:
    log = start(
        open_storage(tmp_path / "run", create=True), plan=[planned(f"basic/dim{n}", n + 1) for n in range(60)]
    )
    log.commit([one for n in range(60) for i in range(n + 1) for one in failed(f"basic/dim{n}", i)])
    log.close("short")
    return str(tmp_path / "run")


def test_status_lists_the_cells_that_lack_most_and_what_would_help(short_run: str):
    lines = CliRunner().invoke(main, ["status", short_run]).stdout.splitlines()
    first = lines.index("short: no attempt passed")
    assert lines[first + 2].split() == ["basic/dim59", "60", "240", "0", "lighting", "240"]
    assert f"  and {60 - console.LISTED} more cells, which lack no more (--all lists them)" in lines
    assert any(line.startswith("what would help: lighting rejected 7320 of the 7320") for line in lines)


def test_status_lists_all_short_cells_if_asked_and_in_json(short_run: str):
    lines = CliRunner().invoke(main, ["status", short_run, "--all"]).stdout
    assert "basic/dim0 " in lines
    assert (
        len(json.loads(CliRunner().invoke(main, ["status", short_run, "--json"]).stdout)["short_cells"]) == 60
    )
