"""The log is the lock: who has it, what is durable, and what every reader refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from balancer.errors import FencedError, ManifestError, StorageError, UsageError
from balancer.manifest import ManifestLog, create_run, read_log
from balancer.manifest.layout import LOG_DIR, fragment_path
from balancer.manifest.rows import revoked
from balancer.manifest.rules import Rules, merged
from balancer.storage import LocalStorage, System, open_storage
from tests.manifest_samples import (
    NOON,
    MemoryStorage,
    at,
    ids,
    lose_the_answer,
    real,
    rejected,
    row,
    run_info,
    start,
    void,
)

ONE, TWO, THREE = (f"basic/dim/{index:04d}" for index in range(3))


def id_of(slot: str, attempt: int = 1) -> str:
    return f"{slot}-{attempt}"


def committed(storage: Any) -> list[str]:
    found: list[str] = read_log(storage).table["id"].to_pylist()
    return found


# ---- committing and reading ----------------------------------------------------------------------


def test_rows_come_back_as_they_were_committed(tmp_path):
    storage = open_storage(tmp_path, create=False)
    rows = [row(ONE), rejected(TWO), real("a.png")]
    log = start(storage)
    log.commit(rows)
    for table in (log.table(), read_log(storage).table, start(storage).table()):
        for found, wanted in zip(table.to_pylist(), rows, strict=True):
            assert {name: found[name] for name in wanted.keys() - {"scores", "embedding"}} == {
                name: value for name, value in wanted.items() if name not in ("scores", "embedding")
            }


def test_rows_keep_the_order_of_their_commits(tmp_path):
    log = start(open_storage(tmp_path, create=False))
    log.commit([row(THREE), row(ONE)])
    log.commit([row(TWO)])
    assert ids(log) == [id_of(THREE), id_of(ONE), id_of(TWO)]


def test_the_dictionaries_of_fragments_become_one():
    log = start(MemoryStorage())
    for slot in ("burnt/dim/severe/0000", "basic/dim/0000", "burnt/dim/severe/0001"):
        log.commit([row(slot)])
    column = log.table()["class"]
    assert column.to_pylist() == ["burnt", "basic", "burnt"]
    assert (column.num_chunks, column.chunk(0).dictionary.to_pylist()) == (1, ["burnt", "basic"])


def test_an_empty_commit_writes_nothing():
    storage = MemoryStorage()
    log = start(storage)
    files = dict(storage.files)
    log.commit([])
    assert storage.files == files


def test_a_run_that_no_driver_opened_has_an_empty_log():
    storage = MemoryStorage()
    create_run(storage, run_info())
    view = read_log(storage)
    assert (view.table.num_rows, view.fragments, view.last, view.opened_at, view.state) == (
        0,
        0,
        None,
        None,
        None,
    )


def test_reading_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        read_log(open_storage(tmp_path, create=False))


@pytest.mark.parametrize("state", ["complete", "short", "interrupted", "failed", "budget"])
def test_a_closed_log_says_how_it_ended(state):
    storage = MemoryStorage()
    log = start(storage, now=lambda: at(5))
    log.close(state, {"cells": {ONE: "lighting"}})
    view = read_log(storage)
    assert view.last is not None
    assert (view.state, view.last.detail, view.last.committed_at) == (
        state,
        {"cells": {ONE: "lighting"}},
        at(5),
    )


def test_a_log_that_is_opened_again_is_not_closed_any_more():
    storage = MemoryStorage()
    start(storage).close("budget")
    start(storage, now=lambda: at(9))
    view = read_log(storage)
    assert (view.state, view.opened_at) == (None, at(9))


def test_an_id_is_committed_once():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    for again in (log, start(storage)):
        with pytest.raises(ManifestError, match=f"row '{id_of(ONE)}' is committed already"):
            again.commit([row(TWO), row(ONE)])
    with pytest.raises(ManifestError, match="is committed already"):
        start(storage).commit([row(TWO), row(TWO)])
    with pytest.raises(ManifestError, match="without id"):
        start(storage).commit([{"class": "basic"}])
    assert committed(storage) == [id_of(ONE)]


def test_a_row_that_does_not_fit_is_refused_before_anything_is_written():
    storage = MemoryStorage()
    log = start(storage)
    files = dict(storage.files)
    with pytest.raises(ManifestError, match="'width'"):
        log.commit([row(ONE, width="wide")])
    assert storage.files == files


# ---- verdicts that change ------------------------------------------------------------------------


def verdicts(storage: Any) -> list[tuple[str, str, str]]:
    columns = read_log(storage).table.select(["id", "status", "reason"]).to_pydict().values()
    return list(zip(*columns, strict=True))


def test_a_new_verdict_stands_where_the_first_one_stood_for_every_reader():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE), rejected(TWO), row(THREE)])
    log.commit_verdicts([void(TWO), revoked(row(ONE), "near_copy")])
    log.commit_verdicts([row(ONE)])
    log.commit_verdicts([revoked(row(ONE), "class")])
    wanted = [(id_of(ONE), "rejected", "class"), (id_of(TWO), "void", None), (id_of(THREE), "accepted", None)]
    assert verdicts(storage) == wanted
    for driver in (log, start(storage)):
        assert driver.table()["status"].to_pylist() == ["rejected", "void", "accepted"]


def test_a_row_that_was_read_can_be_committed_with_another_verdict():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    (before,) = log.table().to_pylist()
    log.commit_verdicts([revoked(before, "class")])
    (after,) = log.table().to_pylist()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"status", "reason", "review"}
    assert after["file_name"] == before["file_name"]


def test_the_dictionaries_of_rows_that_were_judged_anew_are_one():
    log = start(MemoryStorage())
    log.commit([row("burnt/dim/severe/0000")])
    log.commit([row(ONE)])
    log.commit_verdicts([revoked(row("burnt/dim/severe/0000"), "class")])
    column = log.table()["class"]
    assert (column.to_pylist(), column.num_chunks) == (["burnt", "basic"], 1)


def test_only_a_row_that_is_there_has_a_verdict_to_change():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    files = dict(storage.files)
    with pytest.raises(ManifestError, match=f"row '{id_of(TWO)}' has no verdict"):
        log.commit_verdicts([revoked(row(ONE), "class"), rejected(TWO)])
    assert storage.files == files


def test_a_void_candidate_is_committed_anew_and_once():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([rejected(ONE), rejected(TWO)])
    log.commit_verdicts([void(ONE)])
    for driver in (log, start(storage)):
        with pytest.raises(ManifestError, match=f"row '{id_of(TWO)}' is committed already"):
            driver.commit([row(TWO)])
    log = start(storage)
    log.commit([row(ONE)])
    assert verdicts(storage) == [(id_of(ONE), "accepted", None), (id_of(TWO), "rejected", "lighting")]
    for driver in (log, start(storage)):
        with pytest.raises(ManifestError, match=f"row '{id_of(ONE)}' is committed already"):
            driver.commit([row(ONE)])


def test_a_driver_that_was_taken_over_changes_no_verdict():
    storage = MemoryStorage()
    older = start(storage)
    older.commit([row(ONE)])
    start(storage)
    with pytest.raises(FencedError):
        older.commit_verdicts([revoked(row(ONE), "class")])
    assert verdicts(storage) == [(id_of(ONE), "accepted", None)]


def test_verdicts_whose_answer_was_lost_may_be_committed_again():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE), row(TWO)])
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit_verdicts([revoked(row(ONE), "class")])
    log.commit_verdicts([revoked(row(ONE), "class")])
    log.commit_verdicts([revoked(row(TWO), "class")])
    assert verdicts(storage) == [(id_of(slot), "rejected", "class") for slot in (ONE, TWO)]


def test_of_verdicts_whose_answer_was_lost_the_later_ones_stand():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(ONE)])
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit_verdicts([revoked(row(ONE), "class")])
    log.commit_verdicts([row(ONE)])
    assert verdicts(storage) == [(id_of(ONE), "accepted", None)]


def test_rows_after_verdicts_whose_answer_was_lost_are_committed_all_the_same():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([rejected(ONE)])
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit_verdicts([void(ONE)])
    log.commit([row(TWO)])
    log.commit([row(ONE)])
    assert verdicts(storage) == [(id_of(slot), "accepted", None) for slot in (ONE, TWO)]


def test_no_verdicts_write_nothing_unless_they_have_something_to_say():
    storage = MemoryStorage()
    log = start(storage)
    files = dict(storage.files)
    log.commit_verdicts([])
    assert storage.files == files
    log.commit_verdicts([], {"why": "no row was changed"})
    last = read_log(storage).last
    assert last is not None
    assert (last.event, last.detail) == ("verdicts", {"why": "no row was changed"})


def test_the_log_tells_under_which_rules_verdicts_were_taken():
    storage = MemoryStorage()
    log = start(storage)
    assert read_log(storage).rules == Rules()
    log.commit_verdicts([], Rules({"verification": {"threshold": 0.7}}).as_detail())
    log.commit_verdicts([], {"why": "copies"})
    log.commit_verdicts(
        [], Rules({"verification": {"copies": {"max_distance": 2}}}, complete=False).as_detail()
    )
    both = {"verification": {"threshold": 0.7, "copies": {"max_distance": 2}}}
    assert read_log(storage).rules == Rules(both, complete=False)


def test_overrides_reach_into_settings_and_replace_what_is_no_section():
    settings = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert merged(settings, {"a": {"c": [3]}, "d": {"e": 4}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 4}}
    assert settings == {"a": {"b": 1, "c": [1, 2]}, "d": None}


# ---- two drivers ---------------------------------------------------------------------------------


def test_a_driver_that_was_taken_over_is_fenced_and_its_rows_are_not_committed():
    storage = MemoryStorage()
    older = start(storage)
    older.commit([row(ONE)])
    newer = start(storage)
    with pytest.raises(FencedError, match=r"took run run-1 over .*epoch 2, this one is 1") as caught:
        older.commit([row(TWO)])
    assert caught.value.exit_code == 5
    newer.commit([row(TWO), row(THREE)])
    assert committed(storage) == [id_of(ONE), id_of(TWO), id_of(THREE)]


def test_a_fenced_driver_stays_fenced():
    storage = MemoryStorage()
    older = start(storage)
    start(storage).commit([row(ONE)])
    for _ in range(3):
        with pytest.raises(FencedError):
            older.commit([row(TWO)])
    with pytest.raises(FencedError):
        older.close("complete")
    assert committed(storage) == [id_of(ONE)]


def test_rows_committed_while_another_driver_opens_are_taken_in():
    storage = MemoryStorage()
    older = start(storage)
    storage.before_create = lambda: older.commit([row(ONE)])
    newer = ManifestLog.open(storage, run_info().schema(), "run-1")
    assert ids(newer) == [id_of(ONE)]
    newer.commit([row(TWO)])
    with pytest.raises(FencedError):
        older.commit([row(THREE)])
    assert committed(storage) == [id_of(ONE), id_of(TWO)]


def test_of_two_drivers_that_open_at_once_the_later_one_has_the_log():
    storage = MemoryStorage()
    start(storage)
    drivers: list[ManifestLog] = []
    storage.before_create = lambda: drivers.append(start(storage))
    last = ManifestLog.open(storage, run_info().schema(), "run-1")
    (first,) = drivers
    assert (first.epoch, last.epoch) == (2, 3)
    with pytest.raises(FencedError):
        first.commit([row(ONE)])
    last.commit([row(ONE)])
    assert committed(storage) == [id_of(ONE)]


def test_drivers_that_take_turns_lose_and_repeat_nothing():
    storage = MemoryStorage()
    slots = [f"basic/dim/{index:04d}" for index in range(20)]
    drivers = [start(storage)]
    for number, slot in enumerate(slots):
        if number % 3 == 2:
            drivers.append(start(storage))
        for driver in drivers[:-1]:
            with pytest.raises(FencedError):
                driver.commit([row(slot)])
        drivers[-1].commit([row(slot)])
    assert committed(storage) == [id_of(slot) for slot in slots]


# ---- lost acknowledgements -----------------------------------------------------------------------


def test_a_commit_whose_answer_was_lost_is_recognised_when_it_is_made_again():
    storage = MemoryStorage()
    log = start(storage)
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit([row(ONE)])
    log.commit([row(ONE)])
    log.commit([row(TWO)])
    assert committed(storage) == ids(log) == [id_of(ONE), id_of(TWO)]


def test_a_lost_answer_is_recognised_among_rows_that_were_added_since():
    storage = MemoryStorage()
    log = start(storage)
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit([row(ONE)])
    log.commit([row(ONE), row(TWO), row(THREE)])
    assert committed(storage) == [id_of(ONE), id_of(TWO), id_of(THREE)]


def test_a_storage_that_retries_by_itself_may_answer_that_one_lost_to_oneself():
    class Retrying(MemoryStorage):
        def create(self, path: str, data: bytes) -> bool:
            super().create(path, data)
            return super().create(path, bytes(bytearray(data)))

    storage = Retrying()
    log = start(storage)
    log.commit([row(ONE)])
    log.close("complete")
    assert committed(storage) == [id_of(ONE)]
    assert read_log(storage).fragments == 3


def test_a_close_whose_answer_was_lost_is_recognised():
    storage = MemoryStorage()
    log = start(storage)
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.close("short")
    log.close("short")
    assert (read_log(storage).state, read_log(storage).fragments) == ("short", 2)


def test_closing_after_a_commit_whose_answer_was_lost_keeps_its_rows():
    storage = MemoryStorage()
    log = start(storage)
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit([row(ONE)])
    log.close("interrupted")
    assert (committed(storage), read_log(storage).state) == ([id_of(ONE)], "interrupted")


def test_a_driver_whose_opening_got_lost_is_replaced_by_the_next():
    storage = MemoryStorage()
    start(storage).commit([row(ONE)])
    storage.after_create = lose_the_answer
    with pytest.raises(StorageError):
        ManifestLog.open(storage, run_info().schema(), "run-1")
    assert ids(start(storage)) == [id_of(ONE)]


def test_an_answer_lost_to_a_newer_driver_means_fenced():
    storage = MemoryStorage()
    log = start(storage)
    storage.before_create = lose_the_answer
    with pytest.raises(StorageError):
        log.commit([row(ONE)])
    start(storage).commit([row(ONE)])
    with pytest.raises(FencedError):
        log.commit([row(ONE)])
    assert committed(storage) == [id_of(ONE)]


# ---- a driver that dies ----------------------------------------------------------------------------


class Killed(BaseException):
    """The process ended: no handler of Exception runs."""


class DyingSystem:
    """System calls up to one of them; from then on the process makes none any more."""

    def __init__(self, calls_left: int) -> None:
        self.calls_left = calls_left

    def __getattr__(self, call: str) -> Any:
        def made(*args: Any) -> Any:
            if call == "close":
                return os.close(*args)  # the kernel closes what a dead process had open
            if self.calls_left == 0:
                raise Killed
            self.calls_left -= 1
            # What is synced matters to a power loss and not here, but it takes most of the time.
            return None if call == "fsync" else getattr(os, call)(*args)

        return made


def drive_until_killed(root: Path, calls: int) -> tuple[list[str], bool]:
    """What was acknowledged before the driver died at that system call, and whether it did."""
    acknowledged: list[str] = []
    storage = LocalStorage(root, cast(System, DyingSystem(calls)))
    try:
        log = start(storage)
        for slot in (ONE, TWO):
            storage.publish(f"images/{slot}.png", b"image")
            log.commit([row(slot, file_name=f"images/{slot}.png")])
            acknowledged.append(id_of(slot))
        log.commit_verdicts([revoked(row(ONE, file_name=f"images/{ONE}.png"), "class")])
        log.close("complete")
    except Killed:
        return acknowledged, True
    return acknowledged, False


def test_a_driver_killed_at_any_system_call_loses_and_repeats_nothing(tmp_path):
    calls, killed = 0, True
    while killed:
        root = tmp_path / str(calls)
        root.mkdir()
        acknowledged, killed = drive_until_killed(root, calls)
        storage = LocalStorage(root, cast(System, DyingSystem(calls_left=-1)))
        log = start(storage)
        found = ids(log)
        assert killed or verdicts(storage)[0] == (id_of(ONE), "rejected", "class")
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1  # one may have landed just before its acknowledgement
        for name in log.table()["file_name"].to_pylist():
            assert storage.read(name) == b"image"
        log.commit([row(slot) for slot in (ONE, TWO) if id_of(slot) not in found])
        assert committed(storage) == [id_of(ONE), id_of(TWO)]
        calls += 1
    assert calls > 50  # or the test would have ended before it began


# ---- damage --------------------------------------------------------------------------------------


@pytest.fixture
def log_of_five() -> MemoryStorage:
    """open, three rows, close"""
    storage = MemoryStorage()
    log = start(storage)
    for slot in (ONE, TWO, THREE):
        log.commit([row(slot)])
    log.close("complete")
    return storage


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_missing_fragment_is_an_error(log_of_five, missing):
    del log_of_five.files[fragment_path(missing)]
    with pytest.raises(ManifestError, match=f"{fragment_path(missing)}: log without gaps"):
        read_log(log_of_five)


def test_a_fragment_replaced_by_a_sound_one_breaks_the_hash_chain(log_of_five):
    other = MemoryStorage()
    log = start(other)
    log.commit([row(THREE)])
    log_of_five.files[fragment_path(1)] = other.files[fragment_path(1)]
    with pytest.raises(ManifestError, match=f"{fragment_path(2)}: hash chain"):
        read_log(log_of_five)


def test_a_fragment_in_the_place_of_another_is_an_error(log_of_five):
    log_of_five.files[fragment_path(3)] = log_of_five.files[fragment_path(2)]
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: .* it is number 2"):
        read_log(log_of_five)


def test_a_fragment_of_another_run_is_an_error(log_of_five):
    other = MemoryStorage()
    start(other, run_id="run-2")
    log_of_five.files[fragment_path(1)] = other.files[fragment_path(1)]
    with pytest.raises(ManifestError, match=f"{fragment_path(1)}: .* it is of run 'run-2'"):
        read_log(log_of_five)


def test_fragments_with_other_columns_are_an_error(log_of_five):
    with pytest.raises(ManifestError, match=f"{fragment_path(1)}: .*unknown column 'burn_level'"):
        ManifestLog.open(log_of_five, run_info(facets=["lighting"]).schema(), "run-1")


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"not arrow at all"])
def test_a_file_that_is_no_fragment_is_an_error(log_of_five, data):
    log_of_five.files[fragment_path(3)] = data
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: fragment is whole"):
        read_log(log_of_five)


def test_opening_refuses_what_reading_refuses(log_of_five):
    log_of_five.files[fragment_path(3)] = log_of_five.files[fragment_path(3)][:-1]
    files = dict(log_of_five.files)
    with pytest.raises(ManifestError, match=fragment_path(3)):
        start(log_of_five)
    assert log_of_five.files == files


def test_files_that_are_no_fragments_are_left_alone(log_of_five):
    log_of_five.files[f"{LOG_DIR}/.{'0' * 19}6.arrow.1a.tmp"] = b"half"
    log_of_five.files[f"{LOG_DIR}/notes.txt"] = b"mine"
    assert committed(log_of_five) == [id_of(ONE), id_of(TWO), id_of(THREE)]


def test_a_listing_that_lacks_a_fragment_is_not_believed(log_of_five):
    everything = log_of_five.list
    log_of_five.list = lambda prefix: [path for path in everything(prefix) if path != fragment_path(3)]
    assert len(committed(log_of_five)) == 3


def test_the_time_of_a_commit_is_the_drivers_clock():
    storage = MemoryStorage()
    start(storage, now=lambda: NOON)
    last = read_log(storage).last
    assert last is not None
    assert last.committed_at == NOON
