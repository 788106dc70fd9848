from __future__ import annotations

import random

import pytest

from balancer.cells import Candidate, Cell, Slot
from balancer.schedule import Outcome, Schedule

CRITICAL, HIGH = 0, 1
CAT, DOG = Cell("cat", (("light", "day"),)), Cell("dog", (("light", "day"),))


def make(quotas=((CAT, 2, CRITICAL),), **options):
    return Schedule(list(quotas), **({"attempts": 3} | options))


def accept(candidate):
    return Outcome(candidate, None)


def reject(candidate, reason="class"):
    return Outcome(candidate, reason)


def ids(batch):
    return [candidate.id for candidate in batch]


def test_a_batch_holds_each_open_slot_once():
    assert ids(make().next_batch(8)) == ["cat/day/0000-1", "cat/day/0001-1"]


def test_batches_mix_the_cells_of_one_rank():
    schedule = make([(CAT, 2, CRITICAL), (DOG, 2, CRITICAL)])
    assert ids(schedule.next_batch(3)) == ["cat/day/0000-1", "dog/day/0000-1", "cat/day/0001-1"]


def test_lower_ranks_come_first_but_no_place_in_a_batch_stays_empty_at_the_boundary():
    schedule = make([(DOG, 2, HIGH), (CAT, 1, CRITICAL)])
    assert ids(schedule.next_batch(3)) == ["cat/day/0000-1", "dog/day/0000-1", "dog/day/0001-1"]


def test_a_rejected_slot_is_tried_again_before_anything_new_is_begun():
    schedule = make()
    [first] = schedule.next_batch(1)
    schedule.judged(reject(first))
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
    schedule.judged(accept(batch[0]))
    schedule.lost(batch)
    assert ids(schedule.next_batch(2)) == [batch[1].id]


def test_a_slot_is_short_when_its_last_rung_fails():
    schedule = make([(CAT, 1, CRITICAL)], attempts=2)
    for _ in range(2):
        schedule.judged(reject(*schedule.next_batch(1)))
    assert schedule.done
    assert schedule.short == {Slot(CAT, 0)}
    assert schedule.open == 0


def test_the_run_is_done_only_when_nothing_is_under_way():
    schedule = make([(CAT, 1, CRITICAL)])
    assert not schedule.done
    [candidate] = schedule.next_batch(1)
    assert not schedule.done
    schedule.judged(accept(candidate))
    assert schedule.done


def test_the_budget_counts_candidates_under_way_so_that_it_is_never_exceeded():
    schedule = make([(CAT, 9, CRITICAL)], max_candidates=3)
    batch = schedule.next_batch(8)
    assert len(batch) == 3
    assert schedule.next_batch(8) == []
    for candidate in batch:
        schedule.judged(reject(candidate))
    assert schedule.done
    assert schedule.open == 9


def test_a_lost_candidate_gives_its_budget_back():
    schedule = make([(CAT, 9, CRITICAL)], max_candidates=1)
    schedule.lost(schedule.next_batch(1))
    assert len(schedule.next_batch(8)) == 1


def test_a_limit_bounds_the_slots_not_their_attempts():
    schedule = make([(CAT, 9, CRITICAL)], max_slots=1)
    [candidate] = schedule.next_batch(8)
    schedule.judged(reject(candidate))
    assert ids(schedule.next_batch(8)) == ["cat/day/0000-2"]


def test_the_same_verdict_twice_counts_once():
    schedule = make()
    [candidate] = schedule.next_batch(1)
    schedule.judged(reject(candidate))
    schedule.judged(reject(candidate))
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
    schedule.judged(accept(cat))
    schedule.judged(reject(dog))
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
                schedule.judged(accept(candidate) if passes(candidate) else reject(candidate))
    slots = [Slot(cell, index) for cell, quota in ((CAT, 20), (DOG, 15)) for index in range(quota)]
    first_passing = {slot: next((a for a in (1, 2, 3) if passes(Candidate(slot, a))), None) for slot in slots}
    assert schedule.accepted == {slot: a for slot, a in first_passing.items() if a is not None}
    assert schedule.short == {slot for slot, a in first_passing.items() if a is None}
