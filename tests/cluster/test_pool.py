"""Actors on real Ray: what becomes of calls when workers fail, hang or are killed."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from ray.exceptions import RayActorError

from actors.cluster.pool import Limits, Pool, _named, _node_in, wait
from balancer.errors import StalledError, WeightsError
from tests.workers import EchoSpec

LIMITS = Limits(start_timeout_s=60, call_timeout_s=60, max_restarts=2)
DEADLINE_S = 60


@pytest.fixture
def make_pool(ray_session):
    pools: list[Pool] = []

    def make(size=1, limits=LIMITS, **settings):
        pool = Pool("echo", EchoSpec(**settings), size, limits)
        pools.append(pool)
        pool.start()
        return pool

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def quiet_pool(ray_session):
    """One for all tests in which nothing befalls its actor."""
    pool = Pool("echo", EchoSpec(), 1, LIMITS)
    pool.start()
    yield started(pool)
    pool.close()


def run_until(pool, condition):
    """Turn the pool's crank until `condition` holds; returns the calls that ended."""
    ended, give_up = [], time.monotonic() + DEADLINE_S
    while not condition(ended):
        assert time.monotonic() < give_up, f"still waiting; ended so far: {ended}"
        for ref in wait([pool], 0.1):
            if (finished := pool.finish(ref)) is not None:
                ended.append(finished)
        ended += pool.give_up_overdue()
    return ended


def started(pool):
    run_until(pool, lambda ended: pool.ready == pool.size)
    return pool


def call(pool, method, *arguments, **options):
    pool.submit(pool.least_busy(2), method, *arguments, job="job", **options)
    [ended] = run_until(pool, lambda ended: ended)
    return ended


def test_a_call_brings_back_its_job_and_its_value(quiet_pool):
    ended = call(quiet_pool, "echo", 41)
    assert (ended.job, ended.value, ended.error) == ("job", 41, None)


def test_a_call_with_two_results_keeps_the_first_as_a_reference(quiet_pool):
    ended = call(quiet_pool, "two", 1, num_returns=2)
    assert ended.value == 2
    assert ray.get(ended.refs[0]) == 1


def test_an_actor_tells_where_it_runs(quiet_pool):
    [actor] = quiet_pool.actors
    assert actor.description["device"] == "none"
    assert actor.description["pid"] == call(quiet_pool, "pid").value


def test_no_more_than_the_allowed_calls_wait_at_one_actor(quiet_pool):
    for _ in range(2):
        quiet_pool.submit(quiet_pool.least_busy(2), "echo", 0, job="job")
    assert quiet_pool.least_busy(2) is None
    run_until(quiet_pool, lambda ended: len(ended) == 2)


def test_a_killed_actor_is_replaced_and_all_its_calls_are_handed_back(make_pool):
    pool = started(make_pool())
    victim = pool.actors[0].description["pid"]
    for job in ("first", "second"):
        pool.submit(pool.least_busy(2), "hang", job=job)
    os.kill(victim, signal.SIGKILL)
    ended = run_until(pool, lambda ended: len(ended) == 2)
    assert {finished.job for finished in ended} == {"first", "second"}
    assert all(finished.error is not None for finished in ended)
    assert pool.restarts == 1
    assert call(started(pool), "pid").value != victim


def test_a_worker_that_raises_is_replaced_and_its_call_handed_back(make_pool):
    pool = started(make_pool())
    ended = call(pool, "fail")
    assert isinstance(ended.error, ValueError)
    assert pool.restarts == 1


def test_a_call_past_its_deadline_is_given_up_and_its_actor_replaced(make_pool):
    pool = started(make_pool(limits=Limits(60, 0.5, 2)))
    ended = call(pool, "hang")
    assert isinstance(ended.error, TimeoutError)
    assert pool.restarts == 1
    started(pool)


def test_a_start_that_fails_twice_is_tried_until_it_works(make_pool, tmp_path):
    pool = make_pool(broken_starts=str(tmp_path / "starts"))
    assert call(started(pool), "echo", 1).value == 1
    assert pool.restarts == 2


def test_an_actor_that_never_starts_ends_the_run_with_its_cause(make_pool, tmp_path):
    pool = make_pool(limits=Limits(60, 60, 1), broken_starts=str(tmp_path / "starts"))
    with pytest.raises(StalledError, match="the disk was still spinning up"):
        started(pool)


def test_progress_forgives_earlier_restarts(make_pool):
    pool = started(make_pool(limits=Limits(60, 60, 1)))
    call(pool, "fail")
    pool.progressed()
    call(started(pool), "fail")
    assert pool.restarts == 1


def test_a_clear_error_of_the_worker_is_raised_as_it_is(make_pool):
    pool = make_pool(error="weights")
    with pytest.raises(WeightsError, match="no such model") as caught:
        started(pool)
    assert caught.value.hint == "name another"


def test_an_actor_that_died_with_its_node_before_it_could_tell_where_it_is_counts_with_that_node():
    """The words are those of Ray."""
    error = RayActorError(error_msg="The actor died because its node has died. Node Id: bbb5912124\n")
    assert _node_in(error) == "bbb5912124"
    assert _node_in(RayActorError(error_msg="The actor died because of an error: Node Id: none")) == ""


FAILED_TO_IMPORT = """\
The actor died because of an error raised in its creation task, \x1b[36mray::Generator.__init__()\x1b[39m
  At least one of the input arguments for this task could not be computed:
RuntimeError: The actor with name Generator failed to import on the worker. This may be because needed \
library dependencies are not installed in the worker environment:

Traceback (most recent call last):
  File "/ray/_private/function_manager.py", line 681, in _load_actor_class_from_gcs
    actor_class = pickle.loads(pickled_class)
\x1b[36mModuleNotFoundError\x1b[39m: No module named 'actors.cluster.pool'; 'actors' is not a package
"""
CHAINED = """\
The actor died because of an error raised in its creation task, ray::Verifier.__init__() (pid=7)
Traceback (most recent call last):
  File "torch/__init__.py", line 1, in <module>
OSError: libcudart.so.13: cannot open shared object file

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "actors/models/verifier.py", line 1, in <module>
transformers.errors.LazyImportError: Failed to import transformers.models.clip
"""
UNEXPECTED = "The actor died unexpectedly before finishing this task.\n\tclass_name: Writer\n\tpid: 7"


NOT_A_PACKAGE = "ModuleNotFoundError: No module named 'actors.cluster.pool'; 'actors' is not a package"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FAILED_TO_IMPORT, NOT_A_PACKAGE),
        (CHAINED, "OSError: libcudart.so.13: cannot open shared object file"),
        (UNEXPECTED, "RayActorError: The actor died unexpectedly before finishing this task."),
    ],
)
def test_of_what_killed_an_actor_the_first_cause_is_told_in_one_plain_line(text: str, told: str):
    assert _named(RayActorError(error_msg=text)) == told
