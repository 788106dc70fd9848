from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.cells import Candidate, Cell, Slot
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.queues import Queues
from balancer.scheduling.schedule import Schedule

CRITICAL, HIGH = 0, 1
CAT, DOG = Cell("cat", (("light", "day"),)), Cell("dog", (("light", "day"),))


def make(quotas=((CAT, 2, CRITICAL),), **options):
    return Schedule(list(quotas), **({"attempts": 3} | options))


def accept(candidate):
    return Outcome(candidate, None)


def reject(candidate, reason="class"):
    return Outcome(candidate, reason)


def settle(schedule, outcome):
    """Judge a candidate; if it passes, its image is committed at once."""
    schedule.judged(outcome)
    if outcome.reason is None:
        schedule.accept(outcome.candidate)


def ids(batch):
    return [candidate.id for candidate in batch]


def test_a_batch_holds_each_open_slot_once():
    assert ids(make().next_batch(8)) == ["cat/day/0000-1", "cat/day/0001-1"]


def test_batches_mix_cells():
    schedule = make([(CAT, 2, CRITICAL), (DOG, 2, CRITICAL)])
    assert ids(schedule.next_batch(3)) == ["cat/day/0000-1", "dog/day/0000-1", "cat/day/0001-1"]


def test_no_place_in_a_batch_stays_empty_at_the_boundary_of_a_class():
    schedule = make([(DOG, 2, HIGH), (CAT, 2, CRITICAL)])
    assert ids(schedule.next_batch(3)) == ["cat/day/0000-1", "dog/day/0000-1", "cat/day/0001-1"]


def test_a_rejected_slot_is_tried_again_before_anything_new_is_begun():
    schedule = make()
    [first] = schedule.next_batch(1)
    settle(schedule, reject(first))
    assert ids(schedule.next_batch(2)) == ["cat/day/0000-2", "cat/day/0001-1"]


def test_a_lost_candidate_comes_back_with_the_same_attempt():
    schedule = make()
    batch = schedule.next_batch(2)
    schedule.lost(batch)
    assert sorted(ids(schedule.next_batch(2))) == sorted(ids(batch))
    assert schedule.candidates == 0


def test_losing_a_batch_does_not_bring_back_its_candidates_that_were_judged():
    schedule = make()
    batch = schedule.next_batch(2)
    settle(schedule, accept(batch[0]))
    schedule.lost(batch)
    assert ids(schedule.next_batch(2)) == [batch[1].id]


def test_a_slot_is_short_when_its_last_rung_fails():
    schedule = make([(CAT, 1, CRITICAL)], attempts=2)
    for _ in range(2):
        settle(schedule, reject(*schedule.next_batch(1)))
    assert schedule.done
    assert schedule.short == {Slot(CAT, 0)}
    assert schedule.open == 0


def test_the_run_is_done_only_when_nothing_is_under_way():
    schedule = make([(CAT, 1, CRITICAL)])
    assert not schedule.done
    [candidate] = schedule.next_batch(1)
    assert not schedule.done
    settle(schedule, accept(candidate))
    assert schedule.done


def test_the_budget_counts_candidates_under_way_so_that_it_is_never_exceeded():
    schedule = make([(CAT, 9, CRITICAL)], max_candidates=3)
    batch = schedule.next_batch(8)
    assert len(batch) == 3
    assert schedule.next_batch(8) == []
    for candidate in batch:
        settle(schedule, reject(candidate))
    assert schedule.done
    assert schedule.open == 9


def test_a_lost_candidate_gives_its_budget_back():
    schedule = make([(CAT, 9, CRITICAL)], max_candidates=1)
    schedule.lost(schedule.next_batch(1))
    assert len(schedule.next_batch(8)) == 1


def test_a_limit_bounds_the_slots_not_their_attempts():
    schedule = make([(CAT, 9, CRITICAL)], max_slots=1)
    [candidate] = schedule.next_batch(8)
    settle(schedule, reject(candidate))
    assert ids(schedule.next_batch(8)) == ["cat/day/0000-2"]


def test_a_candidate_that_waits_can_be_claimed_out_of_turn():
    queues = Queues(lambda candidate: None, iter(()))
    first, second = (Candidate(Slot(CAT, index), 2) for index in (0, 1))
    queues.retry(first)
    queues.retry(second)
    assert queues.claim(second)
    assert not queues.claim(second)
    assert not queues.claim(Candidate(first.slot, 3))
    assert queues.find(1).take(8) == [first]


def test_the_same_verdict_twice_counts_once():
    schedule = make()
    [candidate] = schedule.next_batch(1)
    settle(schedule, reject(candidate))
    settle(schedule, reject(candidate))
    assert schedule.candidates == 1
    assert ids(schedule.next_batch(1)) == ["cat/day/0000-2"]


def test_history_settles_slots_and_sets_the_next_attempt():
    def candidate(index, attempt):
        return Candidate(Slot(CAT, index), attempt)

    history = [
        accept(candidate(0, 1)),
        reject(candidate(1, 1)),
        *(reject(candidate(2, attempt), "light") for attempt in (1, 2, 3)),
    ]
    schedule = make([(CAT, 4, CRITICAL)], history=history)
    assert ids(schedule.next_batch(8)) == ["cat/day/0001-2", "cat/day/0003-1"]
    assert (len(schedule.accepted), len(schedule.short), schedule.candidates) == (1, 1, 5)
    assert schedule.rejected_by_reason == {"light": 3, "class": 1}


def test_counts_are_kept_by_class():
    schedule = make([(CAT, 1, CRITICAL), (DOG, 1, CRITICAL)], attempts=1)
    cat, dog = schedule.next_batch(2)
    settle(schedule, accept(cat))
    settle(schedule, reject(dog))
    assert schedule.accepted_by_class == {"cat": 1}
    assert schedule.short_by_class == {"dog": 1}
    assert schedule.wanted_by_class == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("order", range(20))
def test_the_accepted_set_does_not_depend_on_losses_or_on_the_order_of_verdicts(order):
    def passes(candidate):
        return candidate.seed(7) % 3 == 0

    chance = random.Random(order)
    schedule = make([(CAT, 20, CRITICAL), (DOG, 15, HIGH)])
    under_way: list[Candidate] = []
    while not schedule.done:
        under_way += schedule.next_batch(chance.randint(1, 6))
        chance.shuffle(under_way)
        for _ in range(chance.randint(0, len(under_way))):
            candidate = under_way.pop()
            if chance.random() < 0.2:
                schedule.lost([candidate])
            else:
                settle(schedule, accept(candidate) if passes(candidate) else reject(candidate))
    slots = [Slot(cell, index) for cell, quota in ((CAT, 20), (DOG, 15)) for index in range(quota)]
    first_passing = {slot: next((a for a in (1, 2, 3) if passes(Candidate(slot, a))), None) for slot in slots}
    assert schedule.accepted == {slot: a for slot, a in first_passing.items() if a is not None}
    assert schedule.short == {slot for slot, a in first_passing.items() if a is None}


# ---- attempts ahead ------------------------------------------------------------------------------

AHEAD = {"may_be_ahead": lambda attempt: True}


def counting(counted):
    return [one.outcome for one in counted]


def test_attempts_ahead_fill_a_batch_but_do_not_begin_one():
    schedule = make([(CAT, 1, CRITICAL)], **AHEAD)
    assert ids(schedule.next_batch(2)) == ["cat/day/0000-1", "cat/day/0000-2"]
    assert schedule.next_batch(2) == []
    assert [ids(batch) for batch in schedule.batches_ahead(2, 9)] == [["cat/day/0000-3"]]
    assert len(schedule.in_flight) == 1


def test_a_verdict_on_an_attempt_ahead_counts_when_all_below_it_have_failed():
    schedule = make([(CAT, 1, CRITICAL)], **AHEAD)
    first, second, third = schedule.next_batch(3)
    assert schedule.judged(accept(third)) == schedule.judged(reject(second)) == []
    assert schedule.candidates == 0
    counted = schedule.judged(reject(first))
    assert counting(counted) == [reject(first), reject(second), accept(third)]
    assert [one.same_reason_before for one in counted[:2]] == [0, 1]
    assert [one.tally_before.candidates for one in counted] == [0, 1, 2]
    assert schedule.in_flight == {third}
    schedule.accept(third)
    assert (schedule.accepted, schedule.done) == ({first.slot: 3}, True)


def test_a_verdict_on_an_attempt_ahead_is_dropped_if_a_lower_one_passes():
    schedule = make([(CAT, 1, CRITICAL)], **AHEAD)
    first, second, third = schedule.next_batch(3)
    assert schedule.judged(accept(third)) == []
    assert counting(schedule.judged(accept(first))) == [accept(first)]
    assert schedule.judged(accept(second)) == schedule.judged(accept(first)) == []
    schedule.accept(first)
    assert (schedule.accepted, schedule.candidates) == ({first.slot: 1}, 1)


def test_an_attempt_ahead_whose_turn_comes_is_not_handed_out_again():
    schedule = make([(CAT, 1, CRITICAL)], **AHEAD)
    first, second = schedule.next_batch(2)
    assert counting(schedule.judged(reject(first))) == [reject(first)]
    assert (schedule.in_flight, schedule.next_batch(1)) == ({second}, [])
    assert counting(schedule.judged(accept(second))) == [accept(second)]


@pytest.mark.parametrize("order", range(20))
def test_attempts_ahead_change_nothing_of_what_is_accepted(order):
    chance = random.Random(order)
    quotas = [(CAT, 12, CRITICAL), (DOG, 9, HIGH)]
    options = {"attempts": 5, "group_of": lambda candidate: candidate.attempt // 3}
    passes = {Candidate(Slot(cell, index), attempt): chance.random() < 0.4
              for cell, quota, _ in quotas for index in range(quota) for attempt in range(1, 6)}  # fmt: skip

    def outcome(candidate):
        return accept(candidate) if passes[candidate] else reject(candidate)

    plain, ahead = make(quotas, **options), make(quotas, **options, may_be_ahead=lambda attempt: attempt != 4)
    while not plain.done:
        for candidate in plain.next_batch(3):
            settle(plain, outcome(candidate))
    under_way: list[Candidate] = []
    passed: list[Candidate] = []
    while not ahead.done:
        for batch in [ahead.next_batch(chance.randint(1, 9)), *ahead.batches_ahead(3, chance.randint(0, 3))]:
            assert len({candidate.attempt // 3 for candidate in batch}) <= 1
            under_way += batch
        chance.shuffle(under_way)
        for _ in range(chance.randint(0, len(under_way))):
            candidate = under_way.pop()
            if chance.random() < 0.1:
                ahead.lost([candidate])
                continue
            counted = counting(ahead.judged(outcome(candidate)))
            passed += [one.candidate for one in counted if one.reason is None]
        while passed and chance.random() < 0.8:
            ahead.accept(passed.pop())
    for name in ("accepted", "short", "candidates", "rejected_by_reason"):
        assert getattr(ahead, name) == getattr(plain, name), name
    assert ahead.speculation.used > 0


# ---- batches of one group ------------------------------------------------------------------------


def by_attempt(candidate):
    return candidate.attempt


def test_candidates_of_different_groups_share_no_batch():
    schedule = make([(CAT, 3, CRITICAL)], group_of=by_attempt)
    for candidate in schedule.next_batch(2):
        settle(schedule, reject(candidate))
    batches = [ids(schedule.next_batch(2)), ids(schedule.next_batch(2)), schedule.next_batch(2)]
    assert batches == [["cat/day/0000-2", "cat/day/0001-2"], ["cat/day/0002-1"], []]


def test_a_group_that_cannot_fill_a_batch_waits_while_another_can():
    schedule = make([(CAT, 5, CRITICAL)], group_of=by_attempt)
    settle(schedule, reject(schedule.next_batch(1)[0]))
    full, rest, retry = (ids(schedule.next_batch(3)) for _ in range(3))
    assert full == ["cat/day/0001-1", "cat/day/0002-1", "cat/day/0003-1"]
    assert sorted([rest, retry]) == [["cat/day/0000-2"], ["cat/day/0004-1"]]


def test_slots_begun_by_an_earlier_start_are_grouped_by_the_attempt_they_are_at():
    history = [reject(Candidate(Slot(CAT, 0), 1))]
    schedule = make([(CAT, 3, CRITICAL)], group_of=by_attempt, history=history)
    assert ids(schedule.next_batch(2)) == ["cat/day/0001-1", "cat/day/0002-1"]
    assert ids(schedule.next_batch(2)) == ["cat/day/0000-2"]


# ---- the reason before ---------------------------------------------------------------------------


def test_the_reason_of_the_attempt_before_is_known_also_after_a_restart():
    first, second = (Candidate(Slot(CAT, 0), attempt) for attempt in (1, 2))
    live = make([(CAT, 1, CRITICAL)])
    assert live.reason_before(*live.next_batch(1)) is None
    settle(live, reject(first, "light"))
    again = make([(CAT, 1, CRITICAL)], history=[reject(first, "light")])
    for schedule in (live, again):
        assert schedule.next_batch(1) == [second]
        assert schedule.reason_before(second) == "light"


def test_the_reason_before_is_the_one_for_which_it_was_revoked():
    schedule = make([(CAT, 1, CRITICAL)])
    [first] = schedule.next_batch(1)
    settle(schedule, accept(first))
    schedule.reopen(first, "light")
    assert schedule.reason_before(*schedule.next_batch(1)) == "light"


# ---- cells that are given up ---------------------------------------------------------------------

# Five failures of five: at most 45 % pass, so a cell that needs a half is given up.
HALF = {"give_up_below": 0.5, "attempts": 9}


def fail(schedule, times):
    for _ in range(times):
        settle(schedule, reject(*schedule.next_batch(1)))


def test_a_cell_of_which_too_few_pass_is_given_up_and_its_open_slots_are_short():
    schedule = make([(CAT, 4, CRITICAL), (DOG, 1, HIGH)], **HALF)
    fail(schedule, 4)
    assert (schedule.given_up, schedule.short) == ({}, set())
    fail(schedule, 1)
    assert schedule.given_up == {CAT: Tally(accepted=0, candidates=5)}
    assert schedule.short_by_class == {"cat": 4}
    assert ids(schedule.next_batch(8)) == ["dog/day/0000-1"]


def test_candidates_under_way_in_a_cell_that_is_given_up_end_as_they_do():
    schedule = make([(CAT, 20, CRITICAL)], **HALF)
    *failing, passing, lost, last = schedule.next_batch(11)
    for candidate in failing:
        settle(schedule, reject(candidate))
    assert len(schedule.short) == 17
    assert not schedule.done
    schedule.lost([lost])
    settle(schedule, reject(last))
    settle(schedule, accept(passing))
    assert (schedule.done, schedule.open, set(schedule.accepted)) == (True, 0, {passing.slot})
    assert schedule.given_up == {CAT: Tally(accepted=1, candidates=10)}


def test_a_cell_comes_back_if_what_was_under_way_shows_that_it_can():
    schedule = make([(CAT, 8, CRITICAL)], **HALF)
    *failing, first, second = schedule.next_batch(7)
    for candidate in failing:
        settle(schedule, reject(candidate))
    assert len(schedule.short) == 6
    for candidate in (first, second):
        settle(schedule, accept(candidate))
    assert (schedule.given_up, schedule.short, schedule.short_by_class["cat"]) == ({}, set(), 0)
    assert ids(schedule.next_batch(99)) == [f"cat/day/{index:04d}-2" for index in range(5)] + [
        "cat/day/0007-1"
    ]


def test_a_restart_finds_the_same_cells_given_up():
    history = [reject(Candidate(Slot(CAT, 0), attempt)) for attempt in range(1, 6)]
    schedule = make([(CAT, 3, CRITICAL)], history=history, **HALF)
    assert (schedule.done, schedule.open, list(schedule.given_up)) == (True, 0, [CAT])


def test_a_lower_floor_lets_a_cell_go_on_after_a_restart():
    history = [reject(Candidate(Slot(CAT, 0), attempt)) for attempt in range(1, 6)]
    schedule = make([(CAT, 2, CRITICAL)], history=history, attempts=9, give_up_below=0.0)
    assert ids(schedule.next_batch(8)) == ["cat/day/0000-6", "cat/day/0001-1"]


@pytest.mark.parametrize("order", range(30))
def test_groups_and_given_up_cells_leave_no_slot_open_or_made_twice(order):
    chance = random.Random(order)
    quotas = [(CAT, 12, CRITICAL), (DOG, 9, HIGH), (Cell("owl"), 7, CRITICAL)]
    options = {"attempts": 4, "give_up_below": 0.45, "group_of": lambda candidate: candidate.attempt // 2}
    schedule = make(quotas, **options)
    passes = {"cat": 0.7, "dog": 0.4, "owl": 0.05}
    under_way: list[Candidate] = []
    rows: list[Outcome] = []
    while not schedule.done:
        batch = schedule.next_batch(chance.randint(1, 5))
        assert len({candidate.attempt // 2 for candidate in batch}) <= 1
        under_way += batch
        assert len({candidate.slot for candidate in under_way}) == len(under_way)
        chance.shuffle(under_way)
        for _ in range(chance.randint(0, len(under_way))):
            candidate = under_way.pop()
            if chance.random() < 0.1:
                schedule.lost([candidate])
                continue
            passed = chance.random() < passes[candidate.slot.cell.class_name]
            rows.append(Outcome(candidate, None if passed else "class"))
            settle(schedule, rows[-1])
    again = make(quotas, history=rows, **options)
    assert (schedule.open, again.done) == (0, True)
    for name in ("accepted", "short", "short_by_class", "given_up"):
        assert getattr(again, name) == getattr(schedule, name), name


# ---- verdicts that change ------------------------------------------------------------------------


def test_a_revoked_candidate_counts_as_rejected_and_its_slot_climbs_on():
    schedule = make([(CAT, 1, CRITICAL)])
    [first] = schedule.next_batch(1)
    settle(schedule, accept(first))
    schedule.reopen(first, "near_copy")
    assert (schedule.open, schedule.candidates, schedule.done) == (1, 1, False)
    assert (schedule.rejected_by_reason, schedule.accepted_by_class["cat"]) == ({"near_copy": 1}, 0)
    assert ids(schedule.next_batch(1)) == ["cat/day/0000-2"]


def test_a_slot_whose_last_attempt_is_revoked_is_short():
    schedule = make([(CAT, 1, CRITICAL)], attempts=1)
    [only] = schedule.next_batch(1)
    settle(schedule, accept(only))
    schedule.reopen(only, "near_copy")
    assert (schedule.short, schedule.short_by_class, schedule.done) == ({Slot(CAT, 0)}, {"cat": 1}, True)


def test_revoking_twice_counts_once():
    schedule = make([(CAT, 1, CRITICAL)])
    [first] = schedule.next_batch(1)
    settle(schedule, accept(first))
    for _ in range(2):
        schedule.reopen(first, "near_copy")
    assert schedule.rejected_by_reason == {"near_copy": 1}
    assert ids(schedule.next_batch(8)) == ["cat/day/0000-2"]


def test_a_slot_of_an_earlier_start_that_is_revoked_is_handed_out_once():
    first = Candidate(Slot(CAT, 1), 1)
    schedule = make([(CAT, 2, CRITICAL)], history=[accept(first)])
    schedule.reopen(first, "near_copy")
    assert ids(schedule.next_batch(8)) == ["cat/day/0001-2", "cat/day/0000-1"]


def test_a_void_candidate_is_made_again_before_its_slot_climbs_on():
    one, two, three = (Candidate(Slot(CAT, 0), attempt) for attempt in (1, 2, 3))
    history = [reject(one), Outcome(two, None, void=True), reject(three)]
    schedule = make([(CAT, 1, CRITICAL)], attempts=4, history=history)
    assert (schedule.candidates, schedule.open, schedule.rejected_by_reason) == (2, 1, {"class": 2})
    assert schedule.next_batch(8) == [two]
    settle(schedule, reject(two))
    assert ids(schedule.next_batch(8)) == ["cat/day/0000-4"]


def test_a_void_candidate_of_a_slot_that_has_an_image_is_left_alone():
    one, two = (Candidate(Slot(CAT, 0), attempt) for attempt in (1, 2))
    schedule = make([(CAT, 1, CRITICAL)], history=[Outcome(one, None, void=True), accept(two)])
    assert schedule.done
    assert schedule.next_batch(8) == []


class VerdictsThatChange(RuleBasedStateMachine):
    """Batches come back in any order, or not at all, accepted candidates are revoked at any time, and
    rejected ones become void between two starts."""

    quotas = ((CAT, 3, CRITICAL), (DOG, 2, HIGH))

    def __init__(self) -> None:
        super().__init__()
        self.live = make(self.quotas)
        self.rows: dict[Candidate, Outcome] = {}

    @rule(size=st.integers(1, 4))
    def hand_out(self, size):
        batch = self.live.next_batch(size)
        assert len({candidate.slot for candidate in batch}) == len(batch)
        assert all(self.rows[candidate].void for candidate in self.rows.keys() & set(batch))

    @precondition(lambda self: self.live.in_flight)
    @rule(data=st.data(), reason=st.sampled_from([None, "class", "light"]))
    def judge(self, data, reason):
        candidate = data.draw(st.sampled_from(sorted(self.live.in_flight)))
        self.rows[candidate] = Outcome(candidate, reason)
        settle(self.live, self.rows[candidate])

    @precondition(lambda self: self.live.in_flight)
    @rule(data=st.data())
    def lose(self, data):
        self.live.lost([data.draw(st.sampled_from(sorted(self.live.in_flight)))])

    @precondition(lambda self: self.live.accepted)
    @rule(data=st.data())
    def revoke(self, data):
        candidate = Candidate(*data.draw(st.sampled_from(sorted(self.live.accepted.items()))))
        self.rows[candidate] = Outcome(candidate, "near_copy")
        self.live.reopen(candidate, "near_copy")

    @precondition(lambda self: self.to_void())
    @rule(data=st.data())
    def void(self, data):
        candidate = data.draw(st.sampled_from(self.to_void()))
        self.rows[candidate] = Outcome(candidate, None, void=True)
        self.live = self.replayed()

    def to_void(self) -> list[Candidate]:
        open_slots = (c for c in sorted(self.rows) if c.slot not in self.live.accepted)
        return [candidate for candidate in open_slots if self.rows[candidate].reason]

    @invariant()
    def the_history_tells_where_the_run_stands(self):
        replayed = self.replayed()
        for name in ("accepted", "short", "candidates", "rejected_by_reason", "open"):
            assert getattr(replayed, name) == getattr(self.live, name), name
        assert replayed.accepted_by_class == self.live.accepted_by_class
        assert replayed.short_by_class == self.live.short_by_class
        assert len(self.live.in_flight) <= self.live.open

    def teardown(self):
        left = [*self.live.in_flight, *self.live.next_batch(99)]
        assert sorted(left) == sorted(self.replayed().next_batch(99))

    def replayed(self) -> Schedule:
        return make(self.quotas, history=[self.rows[candidate] for candidate in sorted(self.rows)])


TestVerdictsThatChange = VerdictsThatChange.TestCase
