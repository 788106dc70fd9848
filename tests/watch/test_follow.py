"""`balancer status --follow`: the driver's lines, from files."""

from __future__ import annotations

import time
from types import SimpleNamespace

from click.testing import CliRunner

from balancer.cli import main
from balancer.cli.runs import status
from balancer.manifest.rows import utc_now
from balancer.storage import LocalStorage
from tests.manifest_samples import rejected, row, start


def test_it_goes_on_until_no_driver_is_at_work_and_ends_with_the_status(tmp_path, monkeypatch):
    log = start(LocalStorage(tmp_path), now=utc_now)
    log.commit([row("basic/dim/0000", generated_at=utc_now()), rejected("basic/dim/0001")])
    naps = []

    def nap(seconds):
        naps.append(seconds)
        log.commit([row("basic/dim/0001", 2, generated_at=utc_now())])
        log.close("interrupted")

    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=time.monotonic, sleep=nap))
    shown = CliRunner().invoke(main, ["status", str(tmp_path), "--follow"])
    assert shown.exit_code == 0
    assert len(naps) == 1
    first, last = shown.stderr.splitlines()[:2]
    assert "accepted 1/5 (20%) candidates 2 rejected 50% [lighting 1]" in first
    assert "accepted 2/5 (40%) candidates 3" in last
    assert "in flight" not in shown.stderr
    assert "run run-1: interrupted" in shown.stdout


def test_a_run_that_has_ended_is_shown_at_once(tmp_path):
    start(LocalStorage(tmp_path)).close("complete")
    shown = CliRunner().invoke(main, ["status", str(tmp_path), "--follow", "--json"])
    assert (shown.exit_code, shown.stdout[:1]) == (0, "{")
