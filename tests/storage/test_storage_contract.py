"""What every place of a run folder does, and does alike: a file system, a bucket, a bucket in bad weather,
and the stand-in that other tests use."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balancer.errors import StorageError
from balancer.storage import (
    MissingFileError,
    OtherContentError,
    Storage,
    open_storage,
    refuse_without_create_only,
)
from tests.fault_proxy import CONFLICT, LOST, RESET, UNAVAILABLE
from tests.manifest_samples import MemoryStorage

NOT_INSIDE = ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a//b", "a/./b", "./a", "a/", "a\0b"]
FOLDERS, NAMES = ["a", "a/b", "manifest/log", "a-b"], ["1", "2.png", ".x.tmp", "ü", "with space"]

Make = Callable[[], Storage]


@pytest.fixture(params=["file system", "bucket", "bucket with faults", "bucket of Google", "memory"])
def place(request) -> str:
    return request.param


@pytest.fixture
def make(place, request, tmp_path, monkeypatch) -> Make:
    """Makes an empty run folder each time it is called."""
    if place == "memory":
        return MemoryStorage
    if place == "file system":
        return lambda: open_storage(tmp_path / uuid.uuid4().hex, create=True)
    proxy = request.getfixturevalue("proxy")
    if place == "bucket with faults":
        proxy.fail_at_random(0.2, 1, UNAVAILABLE, RESET, LOST, CONFLICT)
    scheme = "s3"
    if place == "bucket of Google":  # the library's other client; behind the proxy there is the same server
        scheme = "gs"
        monkeypatch.setenv("GOOGLE_BASE_URL", proxy.url)
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "a token")
    return lambda: open_storage(f"{scheme}://bucket/contract/{uuid.uuid4().hex}", create=True)


@pytest.fixture
def storage(make) -> Storage:
    return make()


def another(storage: Storage) -> Storage:
    """The same folder, as another process sees it."""
    return storage if isinstance(storage, MemoryStorage) else open_storage(storage.uri, create=False)


# ---- paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOT_INSIDE)
@pytest.mark.parametrize(
    "method", ["publish", "replace", "create", "read", "read_range", "info", "exists", "delete"]
)
def test_no_path_leads_out_of_the_run_folder(storage, method, path):
    writing = dict.fromkeys(("publish", "replace", "create"), (b"data",))
    arguments = {**writing, "read_range": (0, 1)}.get(method, ())
    with pytest.raises(StorageError, match="is not a path inside the run folder"):
        getattr(storage, method)(path, *arguments)
    assert storage.list("") == []


@pytest.mark.parametrize("prefix", NOT_INSIDE[1:])
def test_nothing_outside_the_run_folder_is_listed(storage, prefix):
    with pytest.raises(StorageError, match="is not a path inside the run folder"):
        storage.list(prefix)


# ---- reading and writing -----------------------------------------------------------------------


def test_a_published_file_never_changes(storage):
    storage.publish("a", b"first")
    another(storage).publish("a", b"first")
    for data in (b"other", b"", b"firs", b"first "):
        with pytest.raises(OtherContentError, match="a"):
            another(storage).publish("a", data)
    assert (storage.read("a"), storage.list("")) == (b"first", ["a"])


@pytest.mark.parametrize("method", ["create", "replace"])
def test_nothing_that_is_there_is_published_over(storage, method):
    getattr(storage, method)("a", b"first")
    with pytest.raises(OtherContentError):
        storage.publish("a", b"second")
    assert storage.read("a") == b"first"


def test_of_many_who_publish_different_bytes_one_is_heard_and_the_others_are_told(storage):
    results: dict[bytes, bool] = {}
    barrier = threading.Barrier(8)

    def attempt(number: int) -> None:
        mine, data = another(storage), str(number % 2).encode()
        barrier.wait()
        try:
            mine.publish("images/1", data)
            results[data] = True
        except OtherContentError:
            results.setdefault(data, False)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {data: data == storage.read("images/1") for data in (b"0", b"1")}


def test_what_is_replaced_is_read_back(storage):
    storage.replace("a/b/c", b"1")
    storage.replace("a/b/c", b"2")
    assert another(storage).read("a/b/c") == b"2"
    assert another(storage).list("") == ["a/b/c"]


@pytest.mark.parametrize("size", [0, 1, 6_000_000])
def test_a_file_of_any_size_comes_back_whole(storage, size):
    data = (b"\0\n\xff" * size)[:size]
    storage.publish("published", data)
    storage.create("created", data)
    assert another(storage).read("published") == another(storage).read("created") == data


def test_a_file_is_created_once(storage, place):
    assert storage.create("a", b"first") or place == "bucket with faults"  # the answer may have got lost
    assert another(storage).create("a", b"second") is False
    assert (storage.read("a"), storage.list("")) == (b"first", ["a"])


def test_a_published_file_is_not_created_either(storage):
    storage.publish("a", b"first")
    assert storage.create("a", b"second") is False
    assert storage.read("a") == b"first"


def test_a_deleted_file_can_be_created_again(storage):
    storage.create("a", b"first")
    storage.delete("a")
    storage.create("a", b"second")
    assert storage.read("a") == b"second"


def test_of_many_creators_one_wins_and_its_data_stay(storage, place):
    results: dict[bytes, bool] = {}
    barrier = threading.Barrier(8)

    def attempt(number: int) -> None:
        mine, data = another(storage), str(number).encode()
        barrier.wait()
        results[data] = mine.create("log/1", data)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [data for data, won in results.items() if won]
    assert len(results) == 8
    assert len(winners) == 1 or (place == "bucket with faults" and not winners)
    assert storage.read("log/1") in (winners or results)


def test_a_part_of_a_file_is_as_long_as_the_file_has_it(storage):
    storage.publish("a", b"0123456789")
    parts = {(0, 3): b"012", (8, 9): b"89", (20, 1): b"", (10, 1): b"", (4, 0): b"", (0, 10): b"0123456789"}
    assert {part: storage.read_range("a", *part) for part in parts} == parts
    with pytest.raises(MissingFileError):
        storage.read_range("b", 0, 1)


def test_a_file_has_a_size_and_a_time_in_utc(storage):
    storage.publish("a", b"123")
    found = storage.info("a")
    assert (found.num_bytes, found.modified_at.utcoffset()) == (3, dt.timedelta(0))
    with pytest.raises(MissingFileError):
        storage.info("b")


def test_a_missing_file_is_told_from_other_errors(storage):
    storage.publish("folder/a", b"")
    for path in ("no/such", "folder/b", "nothing"):
        with pytest.raises(MissingFileError, match=path):
            storage.read(path)
    with pytest.raises(StorageError, match="folder"):
        storage.read("folder")


def test_only_files_exist(storage):
    storage.publish("a/b", b"")
    assert [storage.exists(path) for path in ("a/b", "a", "a/c", "a/b/c")] == [True, False, False, False]


def test_listing_is_sorted_deep_and_keeps_to_its_folder(storage):
    paths = ["a/.hidden.tmp", "a/y/x", "a/z", "ab/c", "b"]
    for path in reversed(paths):
        storage.publish(path, b"")
    assert storage.list("") == paths
    assert storage.list("a") == ["a/.hidden.tmp", "a/y/x", "a/z"]
    assert storage.list("a/y") == ["a/y/x"]
    assert storage.list("nothing/here") == storage.list("b") == []


def test_a_long_listing_lacks_nothing_and_repeats_nothing(storage):
    paths = sorted(f"folder-{number % 3}/{number:04d}" for number in range(64))
    for path in paths:
        storage.create(path, b"")
    assert storage.list("") == paths
    assert storage.list("folder-1") == [path for path in paths if path.startswith("folder-1/")]


def test_deleting_twice_is_no_error(storage):
    storage.publish("a", b"")
    storage.delete("a")
    storage.delete("a")
    assert not storage.exists("a")
    assert storage.list("") == []


def test_the_probe_passes_and_leaves_nothing_behind(storage):
    refuse_without_create_only(storage)
    assert storage.list("") == []


# ---- any sequence of calls -------------------------------------------------------------------------

PATHS = [f"{folder}/{name}" for folder in FOLDERS for name in NAMES]
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "replace", "create", "delete", "read", "list"]), st.sampled_from(PATHS)
    ),
    max_size=12,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_any_sequence_of_calls_leaves_what_a_dictionary_would_hold(make, calls):
    storage, held = make(), dict[str, bytes]()
    for number, (call, path) in enumerate(calls):
        data = f"{number} {path}".encode()
        if call == "publish" and path in held:
            storage.publish(path, held[path])
            with pytest.raises(OtherContentError):
                storage.publish(path, data)
        elif call in ("publish", "replace"):
            getattr(storage, call)(path, data)
            held[path] = data
        elif call == "create":
            won = storage.create(path, data)
            assert not (won and path in held)
            held.setdefault(path, data)
        elif call == "delete":
            storage.delete(path)
            held.pop(path, None)
        elif call == "read" and path in held:
            assert storage.read(path) == held[path]
        else:
            assert storage.exists(path) == (path in held)
    assert another(storage).list("") == sorted(held)
    assert {path: another(storage).read(path) for path in held} == held
