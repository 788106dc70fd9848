"""Twice is once, and a run that was stopped goes on: what a submission does about the jobs that are there."""

from __future__ import annotations

import pytest

from balancer.submission.attempts import Attempt, Decision, decide, of_folder, run_id

OUT = "s3://bucket/run"
FIRST = run_id(OUT, "a config")
OTHER = run_id(OUT, "another config")


def decided(*attempts, again=False):
    return decide(attempts, OUT, "a config", again=again)


def test_a_run_that_nobody_has_submitted_is_submitted():
    elsewhere = Attempt(run_id("s3://bucket/run-2", "a config"), "RUNNING")
    somebody_elses = Attempt("raysubmit_1234", "RUNNING")
    assert decided(elsewhere, somebody_elses) == Decision("submit", FIRST)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_run_that_is_under_way_is_not_submitted_again(status):
    assert decided(Attempt(FIRST, "STOPPED", 1), Attempt(f"{FIRST}-2", status, 2)) == Decision(
        "attach", f"{FIRST}-2"
    )


@pytest.mark.parametrize("status", ["STOPPED", "FAILED"])
def test_a_run_that_was_stopped_or_failed_goes_on_under_the_next_id(status):
    attempts = [
        Attempt(f"{FIRST}-10", status, 10),
        Attempt(FIRST, "STOPPED", 1),
        Attempt(f"{FIRST}-9", status, 9),
    ]
    assert decided(*attempts) == Decision("submit", f"{FIRST}-11")


def test_a_finished_run_is_not_submitted_again_unless_asked():
    done = Attempt(FIRST, "SUCCEEDED", 1, exit_code=0)
    assert decided(done) == Decision("finished", FIRST)
    assert decided(done, again=True) == Decision("submit", f"{FIRST}-2")


def test_another_config_at_work_in_the_run_folder_is_not_driven_out():
    assert decided(Attempt(FIRST, "SUCCEEDED", 1), Attempt(OTHER, "RUNNING", 2)) == Decision("busy", OTHER)


def test_a_config_that_had_finished_before_another_one_is_submitted_again():
    attempts = Attempt(FIRST, "SUCCEEDED", 1), Attempt(OTHER, "SUCCEEDED", 2)
    assert decided(*attempts) == Decision("submit", f"{FIRST}-2")


def test_attempts_come_in_the_order_of_their_start():
    attempts = [
        Attempt(f"{FIRST}-2", "RUNNING", 5),
        Attempt(OTHER, "STOPPED", 3),
        Attempt(FIRST, "STOPPED", 1),
    ]
    assert [attempt.id for attempt in of_folder(attempts, OUT)] == [FIRST, OTHER, f"{FIRST}-2"]


def test_an_id_is_a_name_of_kubernetes_that_kuberay_need_not_cut():
    assert len(run_id("s3://bucket/" + "x" * 500, "é")) <= 47 - len("-100")
    assert run_id(OUT, "é").replace("-", "").isalnum()
