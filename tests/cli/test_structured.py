"""`balancer run --log-format json`."""

from __future__ import annotations

import datetime
import json
import logging

from balancer.cli.structured import JsonDisplay, JsonLines
from balancer.scheduling.progress import Snapshot

COUNTS = {"wanted": 4, "accepted": 1, "short": 0, "candidates": 2}
SNAPSHOT = Snapshot(
    **COUNTS, rejected_by_reason={"low_score": 1}, by_class={}, elapsed_s=1.23456, accepted_per_s=0.5,
    candidates_per_s=1.0, eta_s=None, generators=2,
)  # fmt: skip


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def json_lines():
    when = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)
    return JsonLines("s3://bucket/run", "node-1", clock=lambda: when)


def test_every_line_is_an_object_that_names_run_and_node(capsys):
    lines = json_lines()
    lines.note("0:01 reading the dataset\nwarning: two \x1b[31m é")
    common = {"time": "2026-11-30T12:00:00.000+00:00", "run": "s3://bucket/run", "node": "node-1"}
    assert lines_of(capsys) == [
        common | {"level": "info", "event": "note", "message": "0:01 reading the dataset"},
        common | {"level": "warning", "event": "note", "message": "two \x1b[31m é"},
    ]


def test_a_line_is_ascii_and_has_no_password(capsys):
    json_lines().note("at s3://k:Pa55w0rd@b/x \x1b[31m\u2028é")
    text = capsys.readouterr().err
    assert text.isascii()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "Pa55w0rd" not in text


def test_progress_has_counts_and_the_last_one_is_always_there(capsys):
    display = JsonDisplay(json_lines(), clock=lambda: 0.0)
    for _ in range(3):
        display.update(SNAPSHOT)
    display.close()
    shown = lines_of(capsys)
    assert [line["event"] for line in shown] == ["progress", "progress"]
    assert (
        shown[0].items()
        >= (COUNTS | {"generators": 2, "rejected": {"low_score": 1}, "seconds": 1.235}).items()
    )


def test_warnings_of_libraries_are_lines_too(capsys, monkeypatch):
    monkeypatch.setattr(logging, "lastResort", None)
    json_lines().take_warnings()
    assert logging.lastResort is not None
    logging.lastResort.handle(logging.LogRecord("x", logging.ERROR, "", 0, "see %s", ("y",), None))
    [line] = lines_of(capsys)
    assert (line["level"], line["event"], line["message"]) == ("error", "log", "see y")
