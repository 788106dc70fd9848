from __future__ import annotations

from balancer.cells import Candidate, Cell, Slot
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.speculation import Speculation

CAT = Cell("cat")
ONE, TWO = Slot(CAT, 0), Slot(CAT, 1)


def first(slot):
    return Candidate(slot, 1)


def even(candidate):
    return 0.5


def keys(candidates):
    return [(candidate.slot.index, candidate.attempt) for candidate in candidates]


def test_each_slot_gets_its_next_attempt_before_one_gets_two():
    chosen = Speculation(attempts=9).choose([first(ONE), first(TWO)], 5, even)
    assert keys(chosen) == [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4)]


def test_slots_that_are_the_least_likely_to_pass_come_first():
    likely = {ONE: 0.9, TWO: 0.1}
    chosen = Speculation(attempts=3).choose([first(ONE), first(TWO)], 2, lambda one: likely[one.slot])
    assert keys(chosen) == [(1, 2), (0, 2)]


def test_the_ladder_ends_where_it_ends():
    assert keys(Speculation(attempts=3).choose([first(ONE)], 9, even)) == [(0, 2), (0, 3)]


def test_attempts_under_way_are_not_chosen_again():
    speculation = Speculation(attempts=9)
    speculation.start(speculation.choose([first(ONE)], 2, even))
    assert keys(speculation.choose([first(ONE), first(TWO)], 2, even)) == [(1, 2), (1, 3)]
    assert keys(speculation.choose([first(ONE)], 1, even)) == [(0, 4)]


def test_nothing_is_made_ahead_of_an_attempt_that_must_know_the_one_before():
    speculation = Speculation(attempts=9, may_be_ahead=lambda attempt: attempt != 3)
    assert keys(speculation.choose([first(ONE)], 9, even)) == [(0, 2)]
    assert keys(speculation.choose([Candidate(ONE, 3)], 2, even)) == [(0, 4), (0, 5)]


def test_the_verdict_on_an_attempt_waits_for_its_turn():
    speculation = Speculation(attempts=9)
    second, third = speculation.start(speculation.choose([first(ONE)], 2, even))
    rejected = Outcome(third, "class")
    speculation.hold(rejected)
    assert speculation.claim(second) is None  # it is still being made
    assert speculation.claim(third) == rejected
    assert not any(map(speculation.is_ahead, [second, third, Candidate(ONE, 4)]))
    assert (speculation.started, speculation.used, speculation.unused) == (2, 2, 0)


def test_an_attempt_that_passed_ends_all_that_is_made_ahead_of_it():
    speculation = Speculation(attempts=9)
    [second] = speculation.start(speculation.choose([first(ONE)], 1, even))
    speculation.passed(first(ONE))
    speculation.hold(Outcome(second, None))  # too late
    assert speculation.has_passed(ONE)
    assert not speculation.is_ahead(second)
    assert speculation.choose([first(ONE)], 1, even) == []
    speculation.discard(ONE)
    assert not speculation.has_passed(ONE)


def test_an_attempt_that_is_lost_can_be_made_ahead_again():
    speculation = Speculation(attempts=9)
    [second] = speculation.start(speculation.choose([first(ONE)], 1, even))
    speculation.lost(second)
    speculation.hold(Outcome(second, None))  # from the actor that was taken for dead
    assert not speculation.is_ahead(second)
    assert speculation.choose([first(ONE)], 1, even) == [second]


def test_a_slot_whose_passing_image_is_lost_goes_on():
    speculation = Speculation(attempts=9)
    speculation.passed(first(ONE))
    speculation.lost(Candidate(ONE, 2))
    assert speculation.has_passed(ONE)
    speculation.lost(first(ONE))
    assert keys(speculation.choose([first(ONE)], 1, even)) == [(0, 2)]
