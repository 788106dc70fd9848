from __future__ import annotations

import datetime as dt
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import StorageError, UsageError
from balancer.storage import (
    DiskFullError,
    FileInfo,
    LocalStorage,
    MissingFileError,
    System,
    open_storage,
    slug,
    slug_of_before,
)

NOT_INSIDE = ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a//b", "a/./b", "./a", "a/", "a\0b"]

ARGUMENTS = {**dict.fromkeys(("publish", "replace", "create"), (b"data",)), "read_range": (0, 1)}


class Spy:
    """The system calls of `os`, written down; `fault` may raise before one is made."""

    def __init__(self, fault: Callable[[str, str], None] = lambda call, path: None) -> None:
        self.calls: list[tuple[str, str]] = []
        self._fault = fault
        self._paths: dict[int, str] = {}

    def __getattr__(self, call: str) -> Any:
        def made(*args: Any) -> Any:
            path = self._paths.get(args[0], "") if isinstance(args[0], int) else str(args[-1])
            path = str(args[0]) if call == "open" else path
            self.calls.append((call, path))
            self._fault(call, path)
            result = getattr(os, call)(*args)
            if call == "open":
                self._paths[result] = path
            return result

        return made

    def names(self, *wanted: str) -> list[tuple[str, str]]:
        """The calls of these names, paths cut to the last part, temporary ones to `.tmp`."""
        short = [(call, os.path.basename(path)) for call, path in self.calls if call in wanted]
        return [(call, ".tmp" if path.endswith(".tmp") else path) for call, path in short]


def storage_with(system: object, root: Path) -> LocalStorage:
    root.mkdir(exist_ok=True)
    return LocalStorage(root, cast(System, system))


def failing(call: str, number: int, times: int = 1, where: str = "") -> Callable[[str, str], None]:
    left = [times]

    def fault(made: str, path: str) -> None:
        if made == call and path.endswith(where) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))

    return fault


# ---- names -----------------------------------------------------------------------------------


@given(st.text(max_size=150))
def test_a_slug_is_a_harmless_file_name(name):
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", slug(name))


@given(st.text(max_size=80), st.text(max_size=80))
def test_different_names_have_different_slugs(one, other):
    assert (slug(one) == slug(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Foo", "foo"), ("a b", "a-b"), ("日本", "日木"), ("a/b", "a-b"), ("x" * 65, "x" * 66), ("a\n", "a")],
)
def test_names_that_look_alike_keep_apart(one, other):
    assert slug(one) != slug(other)


def test_a_name_cannot_pass_for_the_slug_of_another():
    assert slug(slug("Foo")) != slug("Foo")


COLLIDED = [
    (f"basic/{folder}/IMG_{one}.png", f"basic/{folder}/IMG_{other}.png")
    for folder, one, other in (
        ("holiday-in-naples-2019-pizzeria-da-michele-wood-fired-oven-originals", "01379", "08674"),
        ("kitchen-tests-of-the-wood-fired-oven-with-tomatoes-and-basil", "00073", "09316"),
        ("photographs-of-the-spring-menu-before-and-after-the-oven-change", "05955", "06108"),
    )
]
"""Names that 24 bits did not tell apart."""


@pytest.mark.parametrize(("one", "other"), COLLIDED)
def test_names_of_a_camera_in_one_long_folder_keep_apart(one, other):
    assert slug_of_before(one) == slug_of_before(other)
    assert slug(one) != slug(other)


def test_a_changed_name_ends_in_64_bits():
    assert re.fullmatch(r"foo-[0-9a-f]{16}", slug("Foo"))
    assert len(slug("Foo" * 99)) == 64


@pytest.mark.parametrize("name", ["x-0123ab", "x-0123456789abcdef"])
def test_a_name_that_looks_hashed_is_hashed(name):
    assert slug(name) != name


@pytest.mark.parametrize(
    ("name", "before"),
    [("basic", "basic"), ("Foo", "foo-6ab0e1"), ("x-0123ab", "x-0123ab-e2a714"), ("x-" + "a" * 16,) * 2],
)
def test_slugs_of_earlier_versions_are_known(name, before):
    assert slug_of_before(name) == before


@pytest.mark.parametrize("name", ["basic", "dim_ambient", "0003-1", "x" * 64])
def test_a_plain_name_is_its_own_slug(name):
    assert slug(name) == name


@pytest.mark.parametrize("name", ["-", "--", "_hidden", ".hidden", "..", "../../etc/passwd", "-rf", ""])
def test_a_dangerous_name_is_changed(name):
    assert slug(name) != name
    assert slug(name)[0].isalnum()


# ---- paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOT_INSIDE)
@pytest.mark.parametrize(
    "method", ["publish", "replace", "create", "read", "read_range", "info", "exists", "delete"]
)
def test_no_path_leads_out_of_the_run_folder(tmp_path, method, path):
    storage = open_storage(tmp_path / "run", create=True)
    with pytest.raises(StorageError, match="is not a path inside the run folder"):
        getattr(storage, method)(path, *ARGUMENTS.get(method, ()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("method", ["publish", "replace", "create", "read", "read_range", "info", "delete"])
def test_a_linked_folder_outside_is_refused(tmp_path, method):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"theirs")
    storage = open_storage(tmp_path / "run", create=True)
    (tmp_path / "run" / "images").symlink_to(outside)
    with pytest.raises(StorageError, match="by a symbolic link"):
        getattr(storage, method)("images/x", *ARGUMENTS.get(method, ()))
    assert (outside / "x").read_bytes() == b"theirs"


def test_a_linked_file_is_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    storage = open_storage(tmp_path / "run", create=True)
    (tmp_path / "run" / "a").symlink_to(tmp_path / "secret")
    for read in (storage.read, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(StorageError) as caught:
            read("a")
        assert "symbolic links" in caught.value.hint
    with pytest.raises(StorageError, match="is not a regular file"):
        storage.info("a")


def test_nothing_is_published_where_a_link_is(tmp_path):
    (tmp_path / "secret").write_bytes(b"mine")
    storage = open_storage(tmp_path / "run", create=True)
    (tmp_path / "run" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError):
        storage.publish("a", b"mine")


def test_replacing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    storage = open_storage(tmp_path / "run", create=True)
    (tmp_path / "run" / "a").symlink_to(tmp_path / "secret")
    storage.replace("a", b"mine")
    assert (storage.read("a"), (tmp_path / "secret").read_bytes()) == (b"mine", b"secret")


def test_the_run_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    open_storage(tmp_path / "run", create=True).publish("a/b", b"1")
    assert (tmp_path / "disk" / "a" / "b").read_bytes() == b"1"


# ---- reading and writing -----------------------------------------------------------------------


def test_of_many_creators_exactly_one_wins(tmp_path):
    results: list[bool] = []
    barrier = threading.Barrier(8)

    def attempt(number: int) -> None:
        storage = LocalStorage(tmp_path)
        barrier.wait()
        results.append(storage.create("log/1", str(number).encode()))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_a_file_larger_than_one_write_is_complete(tmp_path):
    class OneByteAtATime(Spy):
        def write(self, fd: int, data: memoryview) -> int:
            return os.write(fd, data[:1])

    storage = storage_with(OneByteAtATime(), tmp_path)
    storage.publish("a", b"0123456789")
    assert storage.read("a") == b"0123456789"


def test_a_missing_file_is_told_from_other_errors(tmp_path):
    storage = open_storage(tmp_path, create=False)
    storage.publish("folder/a", b"")
    with pytest.raises(MissingFileError, match="no/such"):
        storage.read("no/such")
    with pytest.raises(StorageError, match="not a regular file"):
        storage.read("folder")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        open_storage(tmp_path, create=False).read("pipe")


def test_a_part_of_a_file_is_as_long_as_the_file_has_it(tmp_path):
    class OneByteAtATime(Spy):
        def pread(self, fd: int, length: int, offset: int) -> bytes:
            return os.pread(fd, min(length, 1), offset)

    storage = storage_with(OneByteAtATime(), tmp_path)
    storage.publish("a", b"0123456789")
    assert [storage.read_range("a", *part) for part in ((0, 3), (8, 9), (20, 1), (4, 0))] == [
        b"012",
        b"89",
        b"",
        b"",
    ]


def test_a_file_has_a_size_and_a_time(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.publish("a/b", b"123")
    os.utime(tmp_path / "a" / "b", (0, 86_400))
    assert storage.info("a/b") == FileInfo(3, dt.datetime(1970, 1, 2, tzinfo=dt.UTC))
    with pytest.raises(MissingFileError):
        storage.info("a/c")
    with pytest.raises(StorageError, match="is not a regular file"):
        storage.info("a")


def test_libraries_find_files_where_they_are(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    storage = LocalStorage(tmp_path / "run")
    storage.publish("a/b", b"123")
    assert storage.path_on_disk("a/b") == str(tmp_path / "disk" / "a" / "b")
    assert storage_with(Spy(), tmp_path / "disk").path_on_disk("a/b") is None


def test_listing_is_sorted_deep_and_follows_no_link(tmp_path):
    storage = open_storage(tmp_path, create=False)
    for path in ("b", "a/z", "a/y/x", "a/.hidden"):
        storage.publish(path, b"")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert storage.list("") == ["a/.hidden", "a/loop", "a/y/x", "a/z", "b"]
    assert storage.list("a/y") == ["a/y/x"]
    assert storage.list("nothing/here") == []


# ---- what survives a power loss ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "naming"), [("replace", "rename"), ("publish", "link"), ("create", "link")]
)
def test_data_is_synced_before_its_name_and_the_name_before_the_return(tmp_path, method, naming):
    spy = Spy()
    storage = storage_with(spy, tmp_path / "run")
    getattr(storage, method)("name", b"data")
    order = spy.names("write", "fsync", naming)
    assert order == [("write", ".tmp"), ("fsync", ".tmp"), (naming, "name"), ("fsync", "run")]


def test_a_lost_race_is_synced_too(tmp_path):
    storage_with(Spy(), tmp_path / "run").create("name", b"theirs")
    spy = Spy()
    assert not storage_with(spy, tmp_path / "run").create("name", b"mine")
    assert spy.names("fsync")[-1] == ("fsync", "run")


def test_new_folders_are_synced_into_their_parents(tmp_path):
    spy = Spy()
    storage_with(spy, tmp_path / "run").publish("a/b/name", b"")
    folders = spy.names("mkdir", "fsync")
    assert folders[:4] == [("mkdir", "a"), ("fsync", "run"), ("mkdir", "b"), ("fsync", "a")]


def test_folders_found_are_synced_with_what_is_in_them_once_by_every_process(tmp_path):
    storage_with(Spy(), tmp_path / "run").publish("a/one", b"")
    spy = Spy()
    storage = storage_with(spy, tmp_path / "run")
    storage.publish("a/two", b"")
    storage.publish("a/three", b"")
    assert [path for _, path in spy.names("fsync")] == ["a", "run", ".tmp", "a", ".tmp", "a"]


def test_each_folder_above_the_run_is_durable_before_the_next_is_made_in_it(tmp_path):
    spy = Spy()
    LocalStorage.make(tmp_path / "runs" / "demo", cast(System, spy))
    assert spy.names("mkdir", "fsync") == [
        ("fsync", tmp_path.parent.name),  # tmp_path was found: whoever made it may not have synced it
        ("mkdir", "runs"),
        ("fsync", tmp_path.name),
        ("mkdir", "demo"),
        ("fsync", "runs"),
    ]


def test_a_mount_point_is_not_synced_into_the_folder_it_hides(tmp_path):
    class Mounted(Spy):
        def lstat(self, path: str) -> Any:
            found = os.lstat(path)
            device = found.st_dev + (path == str(tmp_path))
            return os.stat_result((*found[:2], device, *found[3:]))

    spy = Mounted()
    LocalStorage.make(tmp_path / "demo", cast(System, spy))
    assert spy.names("fsync") == [("fsync", tmp_path.name)]


def test_a_folder_above_the_run_that_may_not_be_read_is_passed_through(tmp_path):
    def unreadable(call: str, path: str) -> None:
        if call == "open" and path == str(tmp_path.parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    LocalStorage.make(tmp_path / "demo", cast(System, Spy(unreadable)))
    assert (tmp_path / "demo").is_dir()


# ---- disks that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["publish", "replace", "create"])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_the_same_call_works_later(tmp_path, method, call, number):
    storage = storage_with(Spy(failing(call, number, where=".tmp")), tmp_path)
    with pytest.raises(DiskFullError, match=r"name: (no space left|disk quota)"):
        getattr(storage, method)("name", b"data")
    assert storage.list("") == []
    getattr(storage, method)("name", b"data")
    assert storage.read("name") == b"data"


@pytest.mark.parametrize(
    ("call", "where", "number", "cause"),
    [
        ("open", ".tmp", errno.EACCES, "permission denied"),
        ("open", ".tmp", errno.EROFS, "read-only file system"),
        ("write", ".tmp", errno.EIO, "input/output error"),
        ("mkdir", "folder", errno.EACCES, "permission denied"),
        ("link", "name", errno.EPERM, "operation not permitted"),
    ],
)
def test_an_error_names_the_path_and_the_cause(tmp_path, call, where, number, cause):
    storage = storage_with(Spy(failing(call, number, where=where)), tmp_path)
    with pytest.raises(StorageError) as caught:
        storage.create("folder/name", b"data")
    assert str(tmp_path / "folder") in caught.value.message
    assert caught.value.message.endswith(cause)
    assert caught.value.exit_code == 4
    assert storage.list("") == []


@pytest.mark.parametrize("where", [".tmp", "run"])
def test_a_failed_sync_is_fatal_and_never_tried_again(tmp_path, where):
    spy = Spy(failing("fsync", errno.EIO, where=where))
    storage = storage_with(spy, tmp_path / "run")
    with pytest.raises(StorageError, match="cannot sync"):
        storage.create("name", b"data")
    calls = len(spy.calls)
    for method in (storage.create, storage.publish, storage.replace):
        with pytest.raises(StorageError, match="nothing more is written to this run"):
            method("other", b"data")
    assert len(spy.calls) == calls


def test_a_folder_that_cannot_be_synced_for_lack_of_room_is_fatal(tmp_path):
    storage = storage_with(Spy(failing("fsync", errno.ENOSPC, where="run")), tmp_path / "run")
    with pytest.raises(StorageError, match="cannot sync"):
        storage.create("name", b"data")
    with pytest.raises(StorageError, match="nothing more is written"):
        storage.create("name", b"data")


# ---- opening -----------------------------------------------------------------------------------


def test_opening_makes_the_folder_only_when_asked(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        open_storage(tmp_path / "a" / "b", create=False)
    assert open_storage(tmp_path / "a" / "b", create=True).list("") == []


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_no_run_folder(tmp_path, create):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((UsageError, StorageError), match="is a file"):
        open_storage(tmp_path / "file", create=create)


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make the folder"):
        open_storage(tmp_path / "file" / "run", create=True)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("path", ["run", ".", "file:run"])
def test_a_path_in_a_working_folder_that_was_deleted_is_told(tmp_path, monkeypatch, path, create):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StorageError, match="the working folder is gone"):
        open_storage(path, create=create)


def test_a_file_uri_is_a_local_path(tmp_path):
    open_storage(f"file://{tmp_path}/a%20b", create=True).publish("c", b"1")
    assert (tmp_path / "a b" / "c").read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["file://host/run", "", "a\0b"])
def test_nonsense_addresses_are_usage_errors(uri):
    with pytest.raises(UsageError):
        open_storage(uri, create=True)
