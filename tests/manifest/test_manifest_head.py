"""A log that was lost, all of it or its end, is never taken for one that had nothing more to say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.errors import BalancerError, ManifestError, StorageError
from balancer.manifest import ManifestLog, check_run, create_run, read_log
from balancer.manifest.layout import HEAD_FILE, INDEX_FILE, LOG_DIR, fragment_path
from balancer.manifest.log.head import read_head, write_head
from balancer.manifest.maintenance.repair import apply, look
from balancer.manifest.snapshot.build import compact
from balancer.run_manifest import open_manifest
from balancer.storage import open_storage
from tests.manifest_samples import (
    MemoryStorage,
    at,
    ids,
    image_bytes,
    lose_the_answer,
    rejected,
    row,
    run_info,
    start,
)

ONE, TWO, THREE = (f"basic/dim/{index:04d}" for index in range(3))
SLOTS = (ONE, TWO, THREE)
LAST = 5


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    storage = open_storage(root, create=True)
    log = start(storage)
    for slot in SLOTS:
        storage.publish(f"images/{slot}-1.png", image_bytes(f"{slot}-1"))
        log.commit([row(slot)])
    log.close("complete")
    return root


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """1 open, 2 to 4 one image each, 5 close"""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def images(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.png"))


# ---- the head -------------------------------------------------------------------------------------


def test_the_head_names_the_last_fragment_after_every_commit(run):
    storage = open_storage(run, create=False)
    log = start(storage)
    for action in (
        lambda: log.commit([row("basic/dim/0003")]),
        lambda: log.commit_verdicts([], {"why": "none"}),
        lambda: log.doom(["images/a.png"]),
        lambda: log.close("short"),
    ):
        action()
        head, last = read_head(storage, "run-1"), read_log(storage).last
        assert head is not None
        assert last is not None
        assert (head.seq, head.sha256) == (last.seq, log._appender.last.known_as)


def test_a_run_begins_with_a_head_that_names_nothing():
    storage = MemoryStorage()
    create_run(storage, run_info())
    head = read_head(storage, "run-1")
    assert head is not None
    assert (head.seq, head.sha256) == (0, "")
    assert read_log(storage).fragments == 0


def test_a_commit_is_acknowledged_though_the_head_cannot_be_written():
    storage = MemoryStorage()
    log = start(storage)
    before = storage.files[HEAD_FILE]
    storage.replace = lambda path, data: lose_the_answer()
    log.commit([row(ONE)])
    log.commit([row(TWO)])
    assert storage.files[HEAD_FILE] == before
    assert read_log(storage).table["id"].to_pylist() == ids(log) == [f"{ONE}-1", f"{TWO}-1"]


def test_a_head_that_is_behind_is_no_damage(run):
    storage = open_storage(run, create=False)
    earlier = storage.read(HEAD_FILE)
    start(storage).commit([row("basic/dim/0003", file_name=f"images/{ONE}-9.png")])
    storage.replace(HEAD_FILE, earlier)
    assert read_log(storage).table.num_rows == 4
    start(storage).close("interrupted")


def test_the_head_of_a_driver_that_was_taken_over_does_no_harm():
    storage = MemoryStorage()
    older = start(storage)
    before = storage.files[HEAD_FILE]
    newer = start(storage)
    storage.files[HEAD_FILE] = before  # as if the older one had been slow to write its own
    newer.commit([row(ONE)])
    with pytest.raises(BalancerError, match="took run run-1 over"):
        older.commit([row(TWO)])
    assert read_log(storage).table["id"].to_pylist() == [f"{ONE}-1"]


# ---- a log that was lost --------------------------------------------------------------------------


def removed(run: Path) -> None:
    shutil.rmtree(run / LOG_DIR)


def emptied(run: Path) -> None:
    """What a disk that is not mounted leaves."""
    removed(run)
    (run / LOG_DIR).mkdir()


def replaced_by_a_file(run: Path) -> None:
    removed(run)
    (run / LOG_DIR).write_bytes(b"")


def replaced_by_a_dangling_link(run: Path) -> None:
    removed(run)
    (run / LOG_DIR).symlink_to(run.parent / "unmounted")


def linked_to_an_empty_folder(run: Path) -> None:
    removed(run)
    (run.parent / "disk").mkdir()
    (run / LOG_DIR).symlink_to(run.parent / "disk")


def without_its_last(count: int) -> Callable[[Path], None]:
    def lose(run: Path) -> None:
        for number in range(count):
            (run / fragment_path(LAST - number)).unlink()

    return lose


ALL_OF_IT = (removed, emptied, replaced_by_a_file, replaced_by_a_dangling_link, linked_to_an_empty_folder)
PARTS_OF_IT = tuple(map(without_its_last, range(1, LAST + 1)))


def forget_the_head(run: Path) -> None:
    """As a version that wrote none left the run."""
    (run / HEAD_FILE).unlink()


def as_it_is(run: Path) -> None:
    pass


def compacted_without_a_head(run: Path) -> None:
    compact(open_storage(run, create=False))
    forget_the_head(run)


LOSSES = [
    *((as_it_is, lose) for lose in (*ALL_OF_IT, *PARTS_OF_IT)),
    *((forget_the_head, lose) for lose in ALL_OF_IT),
    *((compacted_without_a_head, lose) for lose in (*ALL_OF_IT, *PARTS_OF_IT)),
]

COMMANDS = (
    "status RUN", "query RUN", "fsck RUN", "gc RUN", "gc RUN --delete --older-than 0",
    "gc RUN --delete --yes --older-than 0", "report RUN", "export RUN parquet OUT", "export RUN folders OUT",
    "compact RUN", "compact RUN --rebuild", "repair RUN", "rejudge RUN --set verification.threshold=0.7",
)  # fmt: skip


@pytest.mark.parametrize(("before", "lose"), LOSSES)
def test_every_command_refuses_a_run_whose_log_was_lost_and_deletes_nothing(run, before, lose, tmp_path):
    before(run)
    there = images(run)
    lose(run)
    for line in COMMANDS:
        words = [{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(word, word) for word in line.split()]
        result = CliRunner().invoke(main, words)
        assert result.exit_code in (1, 4), (line, result.output)
        assert isinstance(result.exception, SystemExit), line
        assert "log" in result.output, line
    assert images(run) == there
    assert not (tmp_path / "out").exists()


READERS: dict[str, Callable[[Any], object]] = {
    "a driver": lambda storage: ManifestLog.open(storage, run_info().schema(), "run-1"),
    "the log": read_log,
    "training": lambda storage: open_manifest(storage.uri).to_torch(),
    "images": lambda storage: list(open_manifest(storage.uri).images()),
    "a dataset": lambda storage: open_manifest(storage.uri).dataset(),
}


@pytest.mark.parametrize(("before", "lose"), LOSSES)
def test_every_reader_refuses_a_run_whose_log_was_lost(run, before, lose):
    before(run)
    lose(run)
    for reader, read in READERS.items():
        with pytest.raises((ManifestError, StorageError)):
            assert read(open_storage(run, create=False)) is None, reader


def test_a_manifest_that_is_open_misses_a_log_that_is_lost_then(run):
    manifest = open_manifest(run)
    removed(run)
    with pytest.raises(BalancerError):
        open_manifest(run)
    with pytest.raises(BalancerError):
        manifest.to_table(["id"])


def test_a_run_that_no_driver_opened_yet_is_sound(tmp_path):
    storage = open_storage(tmp_path, create=False)
    create_run(storage, run_info())
    assert check_run(storage).problems == ()
    forget_the_head(tmp_path)
    assert check_run(storage).problems == ()
    start(storage).commit([rejected(ONE)])


def head_with(**changes: object) -> bytes:
    storage = MemoryStorage()
    write_head(storage, run_info().run_id, None)
    document = json.loads(storage.read(HEAD_FILE)) | changes
    del document["checksum"]
    text = json.dumps(document, sort_keys=True).encode()
    return json.dumps(document | {"checksum": hashlib.sha256(text).hexdigest()}).encode()


def flipped_format() -> bytes:
    return head_with().replace(b'"format": 1', b'"format": 7')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": "x", "checksum": 1}',
        head_with(seq="3"),
        head_with(format="2"),
        head_with(format=1.5),
        flipped_format(),
    ],
)
def test_a_head_that_is_no_head_is_an_error_and_repaired(run, data):
    storage = open_storage(run, create=False)
    before = read_log(storage).table
    storage.replace(HEAD_FILE, data)
    with pytest.raises(ManifestError, match=f"{HEAD_FILE}: head of the log is readable"):
        read_log(storage)
    shown = CliRunner().invoke(main, ["repair", str(run)])
    assert (shown.exit_code, HEAD_FILE in shown.stdout) == (1, True)
    assert CliRunner().invoke(main, ["repair", str(run), "--apply"]).exit_code == 0
    assert check_run(storage).problems == ()
    assert read_log(storage).table.equals(before)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "link"])
def test_what_is_no_file_in_place_of_the_head_is_listed_and_repaired(run, put):
    (run / HEAD_FILE).unlink()
    put(run / HEAD_FILE)
    storage = open_storage(run, create=False)
    assert [problem.path for problem in check_run(storage).problems] == [HEAD_FILE]
    assert CliRunner().invoke(main, ["repair", str(run), "--apply"]).exit_code == 0
    assert check_run(storage).problems == ()


def test_a_head_of_a_later_format_asks_for_an_upgrade(run):
    storage = open_storage(run, create=False)
    storage.replace(HEAD_FILE, head_with(format=2))
    with pytest.raises(ManifestError) as caught:
        read_log(storage)
    assert "upgrade" in caught.value.hint


# ---- runs of the version before --------------------------------------------------------------------


def test_a_run_without_a_head_goes_on_and_has_one_then(run):
    forget_the_head(run)
    storage = open_storage(run, create=False)
    assert check_run(storage).problems == ()
    start(storage).commit([rejected("basic/dim/0003")])
    (run / fragment_path(LAST + 2)).unlink()
    with pytest.raises(ManifestError, match=f"{fragment_path(LAST + 2)}: log without gaps"):
        read_log(storage)


# ---- a log that really is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("lose", [removed, emptied, *PARTS_OF_IT])
def test_a_log_that_lost_its_end_is_adopted_when_told_to(run, lose):
    lose(run)
    storage = open_storage(run, create=False)
    there = len(storage.list(LOG_DIR))
    shown = CliRunner().invoke(main, ["repair", str(run)])
    assert shown.exit_code == 1
    assert shown.stdout.count(": lost") == LAST - there
    assert apply(storage, lambda: at(60)).lost
    assert check_run(storage).problems == ()
    assert look(storage).is_needed is False
    left = [f"{slot}-1" for slot in SLOTS][: max(0, there - 1)]
    assert read_log(storage).table["id"].to_pylist() == left
    log = start(storage)
    log.commit([row(slot) for slot in SLOTS if f"{slot}-1" not in left])
    assert check_run(storage).problems == ()


def test_an_empty_log_beside_images_is_adopted_without_a_head_too(run):
    forget_the_head(run)
    removed(run)
    storage = open_storage(run, create=False)
    assert [damage.seq for damage in look(storage).lost] == [1]
    apply(storage, lambda: at(60))
    assert check_run(storage).problems == ()
    assert read_log(storage).table.num_rows == 0
    assert len(images(run)) == 3


def test_a_driver_that_slept_cannot_commit_behind_a_log_that_was_adopted(run):
    storage = open_storage(run, create=False)
    asleep = start(storage)
    asleep.commit([rejected("basic/dim/0003")])
    for path in storage.list(LOG_DIR)[2:]:
        storage.delete(path)
    apply(storage, lambda: at(60))
    before = storage.list("")
    with pytest.raises(BalancerError):
        asleep.commit([rejected("basic/dim/0004")])
    assert storage.list("") == before
    assert check_run(storage).problems == ()


def test_a_head_of_a_fork_is_not_believed_against_the_log(run, tmp_path):
    shutil.copytree(run, tmp_path / "fork")
    fork, storage = open_storage(tmp_path / "fork", create=False), open_storage(run, create=False)
    for copy in (fork, storage):
        start(copy).close("complete")
    shutil.copyfile(tmp_path / "fork" / HEAD_FILE, run / HEAD_FILE)
    with pytest.raises(ManifestError, match="hash chain"):
        read_log(storage)
    assert [HEAD_FILE in problem for problem in look(storage).unsolved] == [True]


# ---- a folder that is exchanged --------------------------------------------------------------------


def moved_away(run: Path) -> None:
    run.rename(run.parent / "elsewhere")


def made_afresh(run: Path) -> None:
    moved_away(run)
    run.mkdir()


def begun_again(run: Path) -> None:
    moved_away(run)
    start(open_storage(run, create=True), run_id="run-2")


def begun_again_as_long(run: Path) -> None:
    """The other log ends where the driver's ended, so the next number is free in it."""
    moved_away(run)
    log = start(open_storage(run, create=True), run_id="run-2")
    for number in range(LAST):
        log.commit([rejected(f"basic/dim/{number:04d}", run_id="run-2")])


def begun_again_without_heads(run: Path) -> None:
    begun_again_as_long(run)
    (run / HEAD_FILE).unlink()
    (run / fragment_path(LAST + 1)).unlink()


def back_to_an_earlier_copy(run: Path) -> None:
    moved_away(run)
    shutil.copytree(run.parent / "elsewhere", run)
    (run / fragment_path(LAST + 1)).unlink()
    (run / HEAD_FILE).write_bytes((run.parent / "head").read_bytes())


EXCHANGES = [
    moved_away,
    made_afresh,
    begun_again,
    begun_again_as_long,
    begun_again_without_heads,
    back_to_an_earlier_copy,
]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_nothing_is_committed_into_a_folder_that_took_the_place_of_the_run(run, exchange):
    shutil.copyfile(run / HEAD_FILE, run.parent / "head")
    log = start(open_storage(run, create=False))
    exchange(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(StorageError, match="is no longer the folder of run run-1 as it was opened"):
            log.commit([rejected("basic/dim/0003")])
    with pytest.raises(StorageError):
        log.close("failed")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_put_back_is_gone_on_with(run):
    log = start(open_storage(run, create=False))
    moved_away(run)
    with pytest.raises(StorageError):
        log.commit([rejected("basic/dim/0003")])
    (run.parent / "elsewhere").rename(run)
    log.commit([rejected("basic/dim/0003")])
    assert read_log(open_storage(run, create=False)).table.num_rows == 4
    assert not (run / INDEX_FILE).exists()
