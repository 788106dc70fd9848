"""The small policies of the loop: patience, stopping, examples, notices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from actors.loop.examples import DOUBTFUL_AFTER, EXAMPLES_OF_A_CELL, is_example
from actors.loop.notices import Notices
from actors.loop.patience import PATIENCE, Patience
from actors.loop.stopping import DRAIN_S, Stopping
from actors.models.simulated import SimulatedGenerator
from balancer.cells import Candidate, Cell, Slot
from balancer.process.signals import StopSignal
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.schedule import Counted


@pytest.fixture
def now():
    return [0.0]


def test_patience_lasts_a_part_of_a_batch_and_is_renewed_by_work(now):
    patience = Patience(lambda: now[0], batch_s=10.0)
    assert patience.lasts()
    now[0] = 10 * PATIENCE
    assert not patience.lasts()
    patience.renew()
    assert patience.lasts()


def test_a_run_drains_after_a_signal_and_no_longer_than_allowed(now):
    stop = StopSignal()
    stopping = Stopping(stop, None, lambda: now[0])
    assert not stopping.begins(1e9)
    stop(2)
    assert [stopping.begins(1.0), stopping.begins(1.0)] == [True, False]
    now[0] = DRAIN_S
    assert (stopping.is_draining, stopping.is_over) == (True, False)
    now[0] += 1
    assert stopping.is_over


def test_a_second_signal_does_not_wait_for_work_under_way(now):
    stop = StopSignal()
    stopping = Stopping(stop, None, lambda: now[0])
    stop(2)
    assert not stopping.is_over
    stop(2)
    assert stopping.is_over


def test_a_run_drains_when_its_hours_are_over(now):
    stopping = Stopping(StopSignal(), 2.0, lambda: now[0])
    assert [stopping.begins(7199.0), stopping.begins(7200.0)] == [False, True]


def counted(same_reason, accepted, candidates):
    outcome = Outcome(Candidate(Slot(Cell("cat"), 0), 1), "class")
    return Counted(outcome, Tally(accepted, candidates), same_reason)


def test_the_first_rejected_for_a_reason_are_examples():
    assert [is_example(counted(before, 9, 30), 2) for before in (0, 1, 2)] == [True, True, False]


def test_a_cell_in_which_nothing_passes_gets_examples_of_its_own():
    found = [is_example(counted(99, 0, candidates), 1) for candidates in range(60)]
    assert [number for number, is_one in enumerate(found) if is_one] == [
        DOUBTFUL_AFTER + extra for extra in range(EXAMPLES_OF_A_CELL)
    ]
    assert not any(is_example(counted(99, 1, candidates), 1) for candidates in range(60))
    assert not any(is_example(counted(99, 0, candidates), 0) for candidates in range(60))


def test_models_are_introduced_once_by_the_first_actor_that_is_ready():
    said = []
    notices = Notices(said.append, said.append)
    told = {"model": "m", "device": "cpu", "dtype": "float32"}
    actors = [SimpleNamespace(ready=False, description=None), SimpleNamespace(ready=True, description=told)]
    pools = [SimpleNamespace(kind="generator", actors=actors), SimpleNamespace(kind="verifier", actors=[])]
    notices.introduce_models(pools)
    notices.introduce_models(pools)
    assert said == ["generator ready: m on cpu, float32"]


def test_simulated_actors_are_introduced_without_a_device():
    said = []
    told = SimulatedGenerator(batch_size=2, width=8, height=8).describe()
    pool = SimpleNamespace(kind="generator", actors=[SimpleNamespace(ready=True, description=told)])
    Notices(said.append, said.append).introduce_models([pool])
    assert said == ["generator ready: simulated"]


def test_a_cell_that_is_given_up_is_mentioned_once():
    said = []
    notices = Notices(said.append, said.append)
    schedule = SimpleNamespace(given_up={Cell("cat"): Tally(0, 60)})
    notices.given_up_cells(schedule)
    notices.given_up_cells(schedule)
    assert len(said) == 1
    assert said[0].startswith("cat is given up: 0 of 60")
