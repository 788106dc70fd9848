"""What nobody needs goes when somebody asks for it, and nothing else ever."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.errors import FencedError, StorageError, UsageError
from balancer.manifest import check_run, read_log
from balancer.manifest.layout import DATA_DIR, HEAD_FILE, INDEX_FILE, LOG_DIR
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.maintenance import gc
from balancer.manifest.maintenance.gc import delete_leftovers, find_leftovers
from balancer.manifest.rows import revoked
from balancer.manifest.snapshot.build import compact
from balancer.run_manifest import manifest_in
from balancer.storage import open_storage
from tests.manifest_samples import NOON, MemoryStorage, at, image_bytes, rejected, row, run_info, start, void

ONE, TWO, THREE = (f"basic/dim/{index:04d}" for index in range(3))
IMAGE = f"images/{ONE}-1.png"
LEFT = "images/basic/dim/0002-1-0123456789ab.png"
DAY = datetime.timedelta(hours=24)
NEXT_DAY = at(25 * 60)


def later() -> datetime.datetime:
    return NEXT_DAY


@pytest.fixture
def storage() -> MemoryStorage:
    """A run that ended: one image that a row names, one that none does, both from noon."""
    made = MemoryStorage()
    made.files[IMAGE] = image_bytes(f"{ONE}-1")
    made.files[LEFT] = b"left over"
    log = start(made)
    log.commit([row(ONE), rejected(TWO)])
    log.close("complete")
    return made


def paths(found: list[gc.Leftover]) -> list[str]:
    return [leftover.path for leftover in found]


# ---- what is left over ---------------------------------------------------------------------------


def test_an_image_that_no_row_names_is_left_over(storage):
    (found,) = find_leftovers(storage, DAY, later)
    assert found == gc.Leftover(LEFT, "image", 9, NOON)


def test_looking_changes_nothing(storage):
    before = dict(storage.files)
    find_leftovers(storage, DAY, later)
    assert storage.files == before


def test_what_is_young_is_not_left_over(storage):
    storage.modified[LEFT] = NEXT_DAY - DAY
    assert find_leftovers(storage, DAY, later) == []
    assert paths(find_leftovers(storage, datetime.timedelta(hours=23), later)) == [LEFT]


@pytest.mark.parametrize("verdict", [revoked(row(ONE), "class"), row(ONE)])
def test_an_image_that_was_accepted_once_is_kept_as_long_as_a_row_names_it(storage, verdict):
    start(storage).commit_verdicts([verdict])
    assert paths(find_leftovers(storage, DAY, later)) == [LEFT]


def test_the_image_of_a_void_candidate_is_left_over(storage):
    start(storage).commit_verdicts([void(ONE)])
    assert paths(find_leftovers(storage, DAY, later)) == [IMAGE, LEFT]


@pytest.mark.parametrize("folder", [LOG_DIR, "images/basic/dim", DATA_DIR, "."])
def test_temporary_files_are_left_over_wherever_they_are(storage, folder):
    path = f"{folder}/.0001.arrow.12ab.tmp".removeprefix("./")
    storage.files[path] = b"half"
    kinds = {leftover.path: leftover.kind for leftover in find_leftovers(storage, DAY, later)}
    assert kinds == {LEFT: "image", path: "temporary"}


def test_compacted_files_that_the_index_does_not_name_are_left_over(storage):
    compact(storage)
    earlier = {path for path in storage.files if path.startswith(f"{DATA_DIR}/") and path != INDEX_FILE}
    start(storage).commit([row(TWO, 2)])
    compact(storage)
    found = {leftover.path: leftover.kind for leftover in find_leftovers(storage, DAY, later)}
    assert found == {LEFT: "image"} | dict.fromkeys(earlier, "compacted")


def test_where_no_index_can_be_read_compacted_files_are_left_alone(storage):
    compact(storage)
    storage.files[INDEX_FILE] = b"{"
    assert paths(find_leftovers(storage, DAY, later)) == [LEFT]
    del storage.files[INDEX_FILE]
    assert paths(find_leftovers(storage, DAY, later)) == [LEFT]


def test_nothing_else_in_the_folder_is_touched(storage):
    for path in (
        "report.html",
        "logs/driver.txt",
        "rejected/lighting/a.png",
        "manifest/damaged/1.arrow",
        "notes",
    ):
        storage.files[path] = b"mine"
    assert paths(find_leftovers(storage, DAY, later)) == [LEFT]


def test_links_are_nobodys_leftovers(tmp_path):
    storage = open_storage(tmp_path / "run", create=True)
    start(storage).close("complete")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "run" / "images").mkdir()
    (tmp_path / "run" / "images" / "a.png").symlink_to(tmp_path / "mine")
    assert find_leftovers(storage, datetime.timedelta(0)) == []


# ---- deleting ------------------------------------------------------------------------------------


def test_what_is_left_over_is_deleted_and_nothing_else(storage):
    compact(storage)
    start(storage).close("complete")
    compact(storage)
    storage.files["images/.a.tmp"] = b"half"
    assert len(delete_leftovers(storage, DAY, later)) == 4
    assert find_leftovers(storage, DAY, later) == []
    assert check_run(storage).problems == check_run(storage).notes == ()
    assert manifest_in(storage).to_table(["id"])["id"].to_pylist() == [f"{ONE}-1"]


def test_the_run_ends_as_it_ended_before(storage):
    delete_leftovers(storage, DAY, later)
    view = read_log(storage)
    assert (view.state, view.table.num_rows) == ("complete", 2)


def test_without_images_to_delete_the_log_is_left_alone(storage):
    del storage.files[LEFT]
    storage.files["images/.a.tmp"] = b"half"
    fragments = read_log(storage).fragments
    assert paths(delete_leftovers(storage, DAY, later)) == ["images/.a.tmp"]
    assert read_log(storage).fragments == fragments


def test_nothing_is_deleted_while_a_driver_seems_to_be_at_work(storage):
    start(storage, now=lambda: NEXT_DAY)
    before = dict(storage.files)
    with pytest.raises(UsageError, match="the run is in progress"):
        delete_leftovers(storage, DAY, later)
    assert storage.files == before


def test_rows_that_a_sleeping_driver_commits_before_the_log_is_taken_are_honoured(storage):
    asleep = start(storage)
    storage.before_create = lambda: asleep.commit([row(THREE, file_name=LEFT)])
    assert delete_leftovers(storage, DAY, later) == []
    assert LEFT in storage.files


def test_a_driver_that_slept_cannot_commit_an_image_that_was_deleted(storage):
    asleep = start(storage)
    delete_leftovers(storage, DAY, later)
    with pytest.raises(FencedError):
        asleep.commit([row(THREE, file_name=LEFT)])


def test_a_driver_that_starts_meanwhile_stops_the_deleting(storage):
    drivers: list[ManifestLog] = []

    def open_another() -> None:  # once gc has taken the log over, before it says what will go
        storage.after_create = None
        drivers.append(ManifestLog.open(storage, run_info().schema(), "run-1", now=later))

    storage.after_create = open_another
    with pytest.raises(FencedError):
        delete_leftovers(storage, DAY, later)
    assert LEFT in storage.files
    drivers[0].commit([row(THREE, file_name=LEFT)])


def killed_while_deleting(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(path: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", die)
        with pytest.raises(Killed):
            delete_leftovers(storage, DAY, later)


def test_names_that_an_unfinished_gc_may_still_delete_are_not_used_again(storage, monkeypatch):
    killed_while_deleting(storage, monkeypatch)
    log = start(storage)
    stem = LEFT.removesuffix("-0123456789ab.png")
    assert log.free_name(stem) == f"{stem}-e{log.epoch}"
    assert log.free_name(IMAGE) == IMAGE
    assert start(storage).free_name(stem) == f"{stem}-e{log.epoch + 1}"  # it may be at it for ever


def test_names_are_free_again_once_gc_is_done(storage):
    delete_leftovers(storage, DAY, later)
    stem = LEFT.removesuffix("-0123456789ab.png")
    assert start(storage).free_name(stem) == stem


def test_what_a_killed_gc_left_the_next_one_deletes(storage, monkeypatch):
    killed_while_deleting(storage, monkeypatch)
    with pytest.raises(UsageError, match="the run is in progress"):
        delete_leftovers(storage, DAY, later)
    assert paths(delete_leftovers(storage, DAY, lambda: NEXT_DAY + DAY)) == [LEFT]


def test_an_error_while_deleting_leaves_the_log_closed(storage, monkeypatch):
    def fail(path: str) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", fail)
        with pytest.raises(StorageError, match="the disk is gone"):
            delete_leftovers(storage, DAY, later)
    assert read_log(storage).state == "complete"


def test_many_images_are_announced_part_by_part(storage, monkeypatch):
    monkeypatch.setattr(gc, "DOOMED_AT_ONCE", 2)
    for number in range(4):
        storage.files[f"images/basic/dim/1000-{number}.png"] = b""
    assert len(delete_leftovers(storage, DAY, later)) == 5
    assert find_leftovers(storage, DAY, later) == []


# ---- how much, and on whose word -----------------------------------------------------------------


def leave(storage: MemoryStorage, count: int) -> list[str]:
    """Images that no row names."""
    left = [f"images/basic/dim/1000-{number}.png" for number in range(count)]
    storage.files |= dict.fromkeys(left, b"left over")
    return left


def test_more_images_than_crashes_leave_go_only_when_that_is_confirmed(storage):
    leave(storage, gc.MANY_IMAGES)
    before = dict(storage.files)
    with pytest.raises(UsageError, match="17 of 18 images would be deleted") as caught:
        delete_leftovers(storage, DAY, later)
    assert "--delete --yes" in caught.value.hint
    assert storage.files == before
    assert len(delete_leftovers(storage, DAY, later, confirmed=True)) == 17
    assert find_leftovers(storage, DAY, later) == []


def test_as_many_as_a_crash_leaves_go_unconfirmed(storage):
    leave(storage, gc.MANY_IMAGES - 1)
    assert len(delete_leftovers(storage, DAY, later)) == gc.MANY_IMAGES


def test_a_small_share_of_many_images_goes_unconfirmed(storage):
    named = [row(f"basic/dim/{number:04d}") for number in range(100, 400)]
    storage.files |= {one["file_name"]: b"an image" for one in named}
    log = start(storage)
    log.commit(named)
    log.close("complete")
    leave(storage, 29)
    assert len(delete_leftovers(storage, DAY, later)) == 30


def test_without_a_head_no_image_goes_unconfirmed(storage):
    """An earlier version wrote the run, and nothing says whether the end of its log is there."""
    storage.delete(HEAD_FILE)
    before = dict(storage.files)
    with pytest.raises(UsageError, match="nothing proves that the log has all its rows"):
        delete_leftovers(storage, DAY, later)
    assert storage.files == before
    assert paths(delete_leftovers(storage, DAY, later, confirmed=True)) == [LEFT]


def test_without_a_head_other_leftovers_go(storage):
    storage.delete(HEAD_FILE)
    del storage.files[LEFT]
    storage.files["images/.a.tmp"] = b"half"
    assert paths(delete_leftovers(storage, DAY, later)) == ["images/.a.tmp"]


def test_what_was_not_in_the_first_listing_stays(storage):
    """While gc takes the log over, more images turn up that are old and that no row names."""
    storage.before_create = lambda: leave(storage, 3)
    assert paths(delete_leftovers(storage, DAY, later, confirmed=True)) == [LEFT]
    assert len(find_leftovers(storage, DAY, later)) == 3


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    storage = open_storage(tmp_path, create=True)
    storage.publish(LEFT, b"left over")
    storage.publish(IMAGE, image_bytes(f"{ONE}-1"))
    log = start(storage)
    log.commit([row(ONE)])
    log.close("complete")
    os.utime(tmp_path / LEFT, (0, 0))
    return tmp_path


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["gc", *map(str, arguments)])


def test_the_command_lists_and_deletes_nothing_by_default(run):
    result = command(run)
    assert result.stdout.splitlines() == [LEFT, "left over: 1 image, 9 bytes"]
    assert "--delete does" in result.stderr
    assert (run / LEFT).exists()


def test_the_command_deletes_when_told_to(run):
    assert command(run, "--delete").stdout.splitlines() == [LEFT, "deleted: 1 image, 9 bytes"]
    assert not (run / LEFT).exists()
    assert command(run).stdout == "left over: nothing\n"


def test_the_command_does_not_take_yes_for_an_order_to_delete(run):
    result = command(run, "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--yes has no effect without --delete" in result.stderr
    assert (run / LEFT).exists()


def test_the_command_asks_for_yes_where_much_would_go(run):
    for number in range(20):
        path = run / f"images/basic/dim/1000-{number}.png"
        path.write_bytes(b"left over")
        os.utime(path, (0, 0))
    refused = command(run, "--delete")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "21 of 22 images would be deleted" in refused.stderr
    assert command(run, "--delete", "--yes").exit_code == 0
    assert command(run).stdout == "left over: nothing\n"


def test_age_is_in_hours_and_json_has_everything(run):
    os.utime(run / LEFT)
    young = {"deleted": False, "bytes": 0, "younger": 1, "files": []}
    assert json.loads(command(run, "--json").stdout) == young
    (found,) = json.loads(command(run, "--json", "--older-than", "0").stdout)["files"]
    assert (found["path"], found["kind"], found["bytes"]) == (LEFT, "image", 9)
    assert command(run, "--older-than", "-1").exit_code == 2


@pytest.mark.parametrize("delete", [[], ["--delete"]])
def test_the_command_says_how_many_files_it_passes_over_for_their_age(run, delete):
    (run / "images/basic/dim/1000-1.png").write_bytes(b"young")
    result = command(run, *delete)
    assert result.stdout.splitlines()[0] == LEFT
    assert "skipped: 1 image written in the last 24 hours (--older-than)" in result.stderr
    assert "skipped" not in command(run, "--older-than", "0").stderr
