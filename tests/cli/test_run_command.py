"""What `balancer run` ends with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import actors.run as job
from balancer.cli import main
from balancer.storage import open_storage
from tests.manifest_samples import rejected, start

CONFIG = "classes: {a: {prompts: [a]}}\ntarget: {per_class: 2}\n"


def ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, accepted: int, short: int = 0, **more: Any
) -> Result:
    missing = {"a": 2 - accepted} if accepted < 2 else {}
    result = job.RunResult("run-1", state, 2, accepted, short, 4, {}, missing, **more)
    monkeypatch.setattr(job, "_run", lambda *_, **__: result)
    (tmp_path / "job.yaml").write_text(CONFIG)
    return CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("state", ["short", "budget", "interrupted"])
def test_a_run_that_leaves_images_missing_exits_with_3_and_lists_the_cells(state, monkeypatch, tmp_path):
    result = ended(monkeypatch, tmp_path, state, accepted=1)
    assert result.exit_code == 3
    assert "1 image is missing" in result.stderr
    assert "  a: 1" in result.stderr


def test_a_run_that_was_limited_says_so(monkeypatch, tmp_path):
    assert "--limit was reached" in ended(monkeypatch, tmp_path, "interrupted", accepted=1).stderr


@pytest.mark.parametrize("state", ["budget", "interrupted"])
def test_images_that_were_tried_in_vain_are_told_from_those_nobody_tried(state, monkeypatch, tmp_path):
    told = ended(monkeypatch, tmp_path, state, accepted=0, short=1).stderr
    assert "2 images are missing (1: no attempt passed; 1: " in told


def test_a_run_that_ends_short_says_what_would_help(monkeypatch, tmp_path):
    log = start(open_storage(tmp_path / "run", create=True))
    log.commit([rejected("basic/dim/0000", attempt, score=0.55) for attempt in (1, 2, 3, 4)])
    log.close("short")
    stderr = ended(monkeypatch, tmp_path, "short", accepted=1, short=1).stderr
    assert "what would help: lighting rejected 4 of the 4 rejected candidates there" in stderr
    assert "what would help: verification.threshold=0.55 would accept 1 more" in stderr


def test_a_run_that_is_complete_gives_no_advice(monkeypatch, tmp_path):
    assert "what would help" not in ended(monkeypatch, tmp_path, "complete", accepted=2).stderr


def test_a_run_says_in_the_end_which_classes_stay_below_their_target_by_design(monkeypatch, tmp_path):
    line = "a reaches 1 of 9 images: target.max_synthetic_share allows no more generated ones"
    result = ended(monkeypatch, tmp_path, "complete", accepted=2, held_back=(line,))
    assert (result.exit_code, result.stderr.count(f"warning: {line}")) == (0, 1)


@pytest.mark.parametrize("state", ["complete", "interrupted"])
def test_only_a_run_whose_quotas_are_met_exits_with_0(state, monkeypatch, tmp_path):
    assert ended(monkeypatch, tmp_path, state, accepted=2).exit_code == 0


def test_a_run_says_now_and_then_how_far_reading_the_dataset_is(monkeypatch):
    clock, notes = SimpleNamespace(s=100.0), list[str]()
    monkeypatch.setattr(job.time, "monotonic", lambda: clock.s)
    reporter = job.Reporter(note=notes.append, begun_s=100.0)
    with reporter.watch_images(400) as count:
        for clock.s, done in ((105.0, 50), (111.0, 100), (120.0, 200), (122.0, 300)):
            count(done)
    assert notes == ["0:11 100 of 400 images read", "0:22 300 of 400 images read"]
