from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from balancer.errors import FencedError, StalledError, StorageError
from balancer.manifest.maintenance.fsck import check_run
from balancer.manifest.maintenance.gc import find_leftovers
from balancer.runs.runlog import MAX_BYTES, MAX_LINE_CHARS, RunLog
from balancer.scheduling.progress import Snapshot
from balancer.storage import DiskFullError, open_storage
from tests.manifest_samples import NOON, MemoryStorage, at, row, start

SECRET = "s3://key:s3cr3t@bucket/x"


class Time:
    """A clock that tests set."""

    seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> dt.datetime:
        return NOON + dt.timedelta(seconds=self.seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def log(time: Time) -> RunLog:
    return RunLog(lambda snapshot: f"accepted {snapshot.accepted}", time.clock, time.now)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    start(open_storage(tmp_path / "run", create=True))
    return tmp_path / "run"


def begin(log: RunLog, run: Path) -> None:
    log.begin(open_storage(run, create=False), "run-1")


def lines(run: Path) -> list[str]:
    return (run / "run.log").read_text().splitlines()


def snapshot(accepted: int) -> Snapshot:
    return Snapshot(9, accepted, 0, 0, {}, {}, 0.0, 0.0, 0.0, None)


def test_lines_have_the_time_and_those_from_before_the_run_are_there_as_well(log, run, time):
    log.note("before")
    begin(log, run)
    time.seconds = 61
    log.note("after\nin two lines")
    log.end(None)
    assert lines(run) == [
        "2026-03-01 12:00:00Z before",
        "2026-03-01 12:01:01Z after",
        "2026-03-01 12:01:01Z in two lines",
    ]


def test_what_never_became_a_run_leaves_no_file(log, tmp_path):
    log.note("a line")
    log.end(StalledError("no"))
    assert not list(tmp_path.iterdir())


def test_a_later_start_goes_on_at_the_end(log, run, time):
    begin(log, run)
    log.note("first start")
    log.end(None)
    again = RunLog(str, time.clock, time.now)
    begin(again, run)
    again.note("second start")
    again.end(None)
    assert [line.split(" ", 2)[2] for line in lines(run)] == ["first start", "second start"]


def test_while_a_run_goes_on_lines_are_written_every_ten_seconds(log, run, time):
    begin(log, run)
    log.note("one")
    assert lines(run) == []
    time.seconds = 10
    log.note("two")
    assert len(lines(run)) == 2


def test_progress_is_a_line_a_minute_and_one_at_the_end(log, run, time):
    begin(log, run)
    for second in range(0, 130, 10):
        time.seconds = float(second)
        log.progress(snapshot(second))
    log.end(None)
    assert [line.split()[-1] for line in lines(run)] == ["0", "60", "120"]
    log.progress(snapshot(9))
    log.end(None)
    assert lines(run)[-1].endswith("accepted 9")


def test_an_error_that_ends_the_run_is_told_with_its_hint(log, run):
    begin(log, run)
    log.end(StalledError("actors keep dying", hint="look at them"))
    assert [line.split(" ", 2)[2] for line in lines(run)] == [
        "error: actors keep dying",
        "hint: look at them",
    ]


def test_no_secret_and_nothing_that_steers_a_terminal_is_written(log, run):
    begin(log, run)
    log.note(f"joining {SECRET}\x1b[31m\u202e")
    log.end(StalledError("no", hint=SECRET))
    text = (run / "run.log").read_text()
    assert "s3cr3t" not in text
    assert all(line.isprintable() for line in text.splitlines())


def test_it_is_bounded_and_keeps_the_last_lines(log, run):
    begin(log, run)
    for number in range(2000):
        log.note(f"{number} {'x' * 5000}")
    log.end(None)
    assert (run / "run.log").stat().st_size <= MAX_BYTES
    assert lines(run)[-1].split()[2] == "1999"
    assert max(map(len, lines(run))) < MAX_LINE_CHARS + 30


def test_no_link_is_followed(log, run, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (run / "run.log").symlink_to(tmp_path / "victim")
    begin(log, run)
    log.note("a line")
    log.end(None)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (run / "run.log").is_symlink()


@pytest.mark.parametrize("content", [b"\xff\x1b[31m\n", b"x" * (MAX_BYTES + 1)])
def test_a_log_that_somebody_else_wrote_does_no_harm(log, run, content):
    (run / "run.log").write_bytes(content)
    begin(log, run)
    log.note("a line")
    log.end(None)
    assert lines(run)[-1].endswith("a line")
    assert all(line.isprintable() for line in lines(run))
    assert (run / "run.log").stat().st_size <= MAX_BYTES


def test_what_cannot_be_written_ends_nothing(log, run, monkeypatch):
    def full(*arguments):
        raise DiskFullError("no space left")

    begin(log, run)
    monkeypatch.setattr("balancer.storage.local.LocalStorage.replace", full)
    log.note("a line")
    log.end(StorageError("the disk"))


@pytest.mark.parametrize("there", ["nothing", "another run"])
def test_a_folder_that_was_moved_away_is_not_made_anew_nor_another_run_written_over(
    log, run, tmp_path, there
):
    begin(log, run)
    run.rename(tmp_path / "moved")
    if there == "another run":
        start(open_storage(run, create=True), run_id="run-2")
    log.note("a line")
    log.end(None)
    assert not (run / "run.log").exists()
    assert run.exists() == (there == "another run")


def test_a_driver_that_was_taken_over_leaves_the_log_to_the_other(log, run, time):
    begin(log, run)
    log.note("mine")
    other = RunLog(str, time.clock, time.now)
    begin(other, run)
    other.note("theirs")
    other.end(None)
    log.end(FencedError("taken over"))
    assert [line.split()[-1] for line in lines(run)] == ["theirs"]


def test_in_a_bucket_it_is_written_once_at_the_end(log, time):
    bucket = MemoryStorage()
    start(bucket)
    log.begin(bucket, "run-1")
    for minute in range(5):
        time.seconds = 60.0 * minute
        log.note("a line")
    assert "run.log" not in bucket.files
    log.end(StalledError("no"))
    assert bucket.files["run.log"].count(b"\n") == 6


def test_a_bucket_that_has_just_failed_is_not_tried_again(log):
    bucket = MemoryStorage()
    start(bucket)
    log.begin(bucket, "run-1")
    log.end(StorageError("no answer for two minutes"))
    assert "run.log" not in bucket.files


def test_neither_fsck_nor_gc_minds_it(log, run):
    begin(log, run)
    log.end(StalledError("no"))
    os.utime(run / "run.log", (0, 0))
    storage = open_storage(run, create=False)
    found = check_run(storage)
    assert (found.problems, found.notes) == ((), ())
    assert find_leftovers(storage, dt.timedelta(0)) == []


def test_a_driver_that_did_not_say_how_it_ended_was_taken_over_from(tmp_path):
    storage = open_storage(tmp_path, create=True)
    first = start(storage, lambda: at(1))
    assert first.taken_from is None
    first.commit([row("basic/dim/0000")])
    second = start(storage, lambda: at(2))
    assert second.taken_from is not None
    assert second.taken_from.committed_at == at(1)
    second.close("interrupted")
    assert start(storage).taken_from is None
