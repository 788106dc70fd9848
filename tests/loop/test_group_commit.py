from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.loop.group_commit import Committer
from balancer.cells import Candidate, Cell, Slot
from balancer.config.schema import OutputConfig
from balancer.errors import FencedError
from balancer.storage import DiskFullError

CANDIDATES = [Candidate(Slot(Cell("cat"), index), 1) for index in range(4)]
LONG_S = 30


class Log:
    """Commits when it is let, in the thread that asks."""

    def __init__(self):
        self.commits = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()
        self.error = None

    def commit(self, rows):
        self.began.set()
        assert self.may_go_on.wait(LONG_S)
        if self.error is not None:
            raise self.error
        self.commits.append([row["id"] for row in rows])


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def make(log):
    made = []

    def committer(rows=2, seconds=10.0, clock=lambda: 0.0):
        output = OutputConfig(commit_rows=rows, commit_seconds=seconds)
        made.append(Committer(log, output, clock, ThreadPoolExecutor(1)))
        return made[-1]

    yield committer
    log.may_go_on.set()
    for one in made:
        one.close()


def add(committer, *numbers):
    for number in numbers:
        committer.add({"id": number}, CANDIDATES[number])


def test_rows_are_committed_when_there_are_enough_of_them(make, log):
    committer = make(rows=2)
    add(committer, 0)
    assert committer.turn() == []
    assert committer.idle is False
    assert log.commits == []
    add(committer, 1)
    committer.turn()
    assert committer.flush() == CANDIDATES[:2]
    assert log.commits == [[0, 1]]
    assert committer.idle


def test_a_single_row_does_not_wait_longer_than_configured(make, log):
    now = [0.0]
    committer = make(rows=99, seconds=1.0, clock=lambda: now[0])
    add(committer, 0)
    now[0] = 0.9
    committer.turn()
    assert not log.began.is_set()
    now[0] = 1.0
    committer.turn()
    assert log.began.wait(LONG_S)


def test_the_loop_goes_on_while_a_commit_is_under_way_and_rows_that_come_meanwhile_go_together(make, log):
    log.may_go_on.clear()
    committer = make(rows=1)
    add(committer, 0)
    assert committer.turn() == []
    assert log.began.wait(LONG_S)
    add(committer, 1, 2, 3)
    assert committer.turn() == []  # returns at once
    log.may_go_on.set()
    assert committer.flush() == CANDIDATES
    assert log.commits == [[0], [1, 2, 3]]


def test_nothing_is_acknowledged_before_its_commit_has_ended(make, log):
    log.may_go_on.clear()
    committer = make(rows=1)
    add(committer, 0)
    committer.turn()
    assert log.began.wait(LONG_S)
    assert committer.turn() == []
    log.may_go_on.set()
    assert committer.flush() == [CANDIDATES[0]]


@pytest.mark.parametrize("error", [DiskFullError("full"), FencedError("taken over")])
def test_the_rows_of_a_commit_that_failed_are_kept_and_go_with_the_next(make, log, error):
    log.error = error
    committer = make(rows=2)
    add(committer, 0, 1)
    committer.turn()
    with pytest.raises(type(error)):
        committer.flush()
    log.error = None
    add(committer, 2)
    assert committer.flush() == CANDIDATES[:3]
    assert log.commits == [[0, 1, 2]]


def test_rejected_rows_are_committed_and_acknowledge_nothing(make, log):
    committer = make()
    committer.add({"id": 7})
    assert committer.flush() == []
    assert log.commits == [[7]]
