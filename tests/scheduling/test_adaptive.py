from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from balancer.scheduling.adaptive import Tally, WordingCounts


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    candidates = draw(st.integers(0, 3000))
    return Tally(draw(st.integers(0, candidates)), candidates)


@given(tallies())
def test_the_bound_is_the_quantile_of_the_beta_distribution(tally: Tally):
    accepted, candidates = tally.accepted, tally.candidates
    everything = accepted == candidates
    exact = 1.0 if everything else stats.beta.ppf(0.95, accepted + 1, candidates - accepted)
    assert tally.at_most == pytest.approx(exact, rel=1e-9)


@given(tallies(), st.floats(0, 1))
def test_below_a_floor_is_what_is_bounded_below_it(tally: Tally, floor: float):
    if abs(tally.at_most - floor) > 1e-9:
        assert tally.is_below(floor) == (tally.at_most < floor)


@pytest.mark.parametrize(("accepted", "candidates", "given_up"), [(0, 298, False), (0, 299, True)])
def test_a_percent_is_out_of_reach_after_299_failures(accepted, candidates, given_up):
    assert Tally(accepted, candidates).is_below(0.01) is given_up


def test_nothing_is_below_no_floor():
    assert not Tally(0, 10**6).is_below(0)


def test_nothing_is_known_before_the_first_candidate():
    assert Tally(0, 0).at_most == 1
    assert not Tally(0, 0).is_below(1)


def test_of_cells_that_just_reach_the_floor_about_one_in_twenty_is_given_up():
    chance = random.Random(3)
    passed = [sum(chance.random() < 0.05 for _ in range(200)) for _ in range(2000)]
    share = sum(Tally(accepted, 200).is_below(0.05) for accepted in passed) / len(passed)
    assert 0.02 < share <= 0.05  # less than 5 %, since counts are whole


def test_a_wording_that_passes_more_often_is_soon_chosen_nearly_always():
    rates = [0.2, 0.3, 0.8]
    late = []
    for run in range(20):
        counts, chance = WordingCounts(), random.Random(run)
        chosen = []
        for turn in range(150):
            wording = counts.choose("a", range(3), seed=1000 * run + turn)
            counts.add("a", wording, chance.random() < rates[wording])
            chosen.append(wording)
        late += chosen[-50:]
    assert late.count(2) / len(late) > 0.9


def test_without_counts_every_wording_has_its_turn():
    first = [WordingCounts().choose("a", range(4), seed) for seed in range(400)]
    assert all(70 < first.count(wording) < 130 for wording in range(4))


def test_only_the_wordings_on_offer_are_chosen():
    counts = WordingCounts.of([("a", 0, True)] * 50)
    assert {counts.choose("a", range(4, 6), seed) for seed in range(50)} == {4, 5}


def test_one_cell_says_nothing_of_another():
    counts = WordingCounts.of([("a", 0, True)] * 50 + [("a", 1, False)] * 50)
    assert {counts.choose("b", range(2), seed) for seed in range(50)} == {0, 1}
    assert {counts.choose("a", range(2), seed) for seed in range(50)} == {0}


def test_the_same_counts_and_seed_give_the_same_choice():
    judged = [("a", 0, True), ("a", 1, False), ("a", 1, True)]
    counts = WordingCounts()
    for cell, wording, accepted in judged:
        counts.add(cell, wording, accepted)
    assert counts == WordingCounts.of(judged)
    choices = [[known.choose("a", range(2), seed) for seed in range(30)] for known in (counts, counts)]
    assert choices[0] == choices[1]
    assert len(set(choices[0])) == 2
