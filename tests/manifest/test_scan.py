"""A scan of a manifest: who reads the files, when, and how much of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from balancer import open_manifest
from balancer.manifest.layout import fragment_path
from balancer.manifest.log.fragment import BrokenFragmentError
from balancer.manifest.snapshot import ending, scan
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.ending import Gate, well_ended
from balancer.manifest.snapshot.index import DamagedCopyError
from balancer.run_manifest import Manifest, manifest_in
from balancer.storage import open_storage
from tests.manifest_samples import MemoryStorage, row, start


class Watched(MemoryStorage):
    """Says what was asked of it, and by which threads."""

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        self.asked.append(path)
        self.threads.add(threading.current_thread().name)
        return super().read(path, max_bytes)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self.read(path)[start : start + length]

    asked: list[str]
    threads: set[str]

    def forget(self) -> None:
        self.asked, self.threads = [], set()


FRAGMENTS = 30
ROWS = 4


def filled(storage: Any, *, compacted: bool) -> None:
    log = start(storage)
    for number in range(FRAGMENTS):
        cell = ("basic/dim", "burnt/dim/severe")[number % 2]
        log.commit([row(f"{cell}/{ROWS * number + index:04d}") for index in range(ROWS)])
    if compacted:
        compact(storage)


@pytest.fixture(params=["log", "compacted"])
def storage(request: pytest.FixtureRequest) -> Watched:
    storage = Watched()
    storage.forget()
    filled(storage, compacted=request.param == "compacted")
    return storage


@pytest.fixture
def manifest(storage: Watched) -> Manifest:
    manifest = manifest_in(storage)
    storage.forget()
    return manifest


def by_sql(manifest: Manifest) -> int:
    return manifest.to_table(["id"], "score > 0").num_rows


def by_duckdb(manifest: Manifest) -> int:
    import duckdb

    with duckdb.connect() as database:
        database.register("rows", manifest.dataset(["id", "score"]))
        return len(database.sql("select id from rows where score > 0").fetchall())


WAYS: list[Callable[[Manifest], int]] = [
    by_sql,
    by_duckdb,
    lambda manifest: manifest.to_table(["id"]).num_rows,
    lambda manifest: manifest.dataset().count_rows(),
    lambda manifest: manifest.dataset().head(1000).num_rows,
    lambda manifest: sum(batch.num_rows for batch in manifest.dataset().to_batches()),
    lambda manifest: sum(one.record_batch.num_rows for one in manifest.dataset().scanner().scan_batches()),
    lambda manifest: manifest.dataset().scanner().to_reader().read_all().num_rows,
    lambda manifest: manifest.dataset().take(list(range(FRAGMENTS * ROWS))).num_rows,
    lambda manifest: manifest.dataset(["id"]).sort_by("id").to_table().num_rows,
]


@pytest.mark.parametrize("ask", WAYS)
def test_arrow_has_no_thread_that_reads_a_file(storage, manifest, ask):
    """Threads that Python did not start are dummies to it."""
    assert ask(manifest) == FRAGMENTS * ROWS
    assert storage.asked
    assert not [name for name in storage.threads if name.startswith("Dummy")]


@pytest.mark.parametrize("ask", WAYS)
def test_what_changed_since_the_manifest_was_opened_is_refused_by_name(storage, manifest, ask):
    path = next(reversed([path for path in storage.files if path.endswith((".arrow", ".parquet"))]))
    storage.files[path] = storage.files[path][:-9] + b"x" + storage.files[path][-8:]
    if not path.endswith(".parquet"):
        path = fragment_path(2)
        storage.files[path] = b"x" + storage.files[path][1:]
    damage = (DamagedCopyError, BrokenFragmentError)
    with pytest.raises(Exception if ask is by_duckdb else damage):  # DuckDB has its own words for it
        ask(manifest)
    assert isinstance(manifest.rows._source.files.problem, damage)


def test_a_scan_reads_nothing_before_it_begins(storage, manifest):
    scan = manifest.dataset().scanner(columns=["id"], filter=pc.field("score") > 0)
    assert scan.projected_schema.names == ["id"]
    assert not storage.asked
    assert scan.to_table().num_rows == FRAGMENTS * ROWS


def test_the_first_rows_do_not_wait_for_the_whole_log():
    storage = Watched()
    storage.forget()
    filled(storage, compacted=False)
    manifest = manifest_in(storage)
    storage.forget()
    batches = manifest.dataset().to_batches()
    next(batches)
    assert len(storage.asked) == 1
    assert sum(batch.num_rows for batch in batches) == ROWS * (FRAGMENTS - 1)


@pytest.mark.parametrize(("share_bytes", "share_files"), [(1, 32), (1 << 30, 1), (1 << 30, 5)])
def test_however_files_are_shared_out_the_rows_are_the_same(manifest, monkeypatch, share_bytes, share_files):
    wanted = manifest.to_table(status="all")
    monkeypatch.setattr(scan, "SHARE_BYTES", share_bytes)
    monkeypatch.setattr(scan, "SHARE_FILES", share_files)
    monkeypatch.setattr(scan, "AT_ONCE_BYTES", share_bytes)
    assert manifest.to_table(status="all").equals(wanted)


def test_a_scan_has_a_few_shares_in_memory(monkeypatch):
    """The one that is read by its user, the one Arrow works on, and the one that is being read."""
    storage = Watched()
    storage.forget()
    filled(storage, compacted=False)
    manifest = manifest_in(storage)
    monkeypatch.setattr(scan, "SHARE_FILES", 2)
    monkeypatch.setattr(scan, "REQUESTS", 1)
    storage.forget()
    for number, _ in enumerate(manifest.dataset().to_batches()):
        assert len(storage.asked) - number <= 6


def test_rows_of_a_reader_are_those_that_were_there_when_it_was_made(storage, manifest):
    reader = manifest.dataset().scanner(columns=["id"]).to_reader()
    for path in list(storage.files):
        storage.files[path] = bytes(len(storage.files[path]))
    assert reader.read_all().num_rows == FRAGMENTS * ROWS


@pytest.mark.parametrize("name", ["log", "data"])
def test_files_that_are_swapped_after_a_scan_began_do_no_harm(tmp_path, name):
    """What counts are the bytes that were checked."""
    run = open_storage(tmp_path, create=True)
    filled(run, compacted=name == "data")
    reader = open_manifest(tmp_path).dataset().scanner().to_reader()
    for path in (tmp_path / "manifest" / name).rglob("*.*"):
        path.write_bytes(b"")  # cut off in place: whoever had it mapped into memory would be killed
    assert reader.read_all().num_rows == FRAGMENTS * ROWS


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_fragment_that_became_no_file_is_refused(tmp_path, kind):
    filled(open_storage(tmp_path, create=True), compacted=False)
    manifest = open_manifest(tmp_path)
    path = tmp_path / fragment_path(2)
    other = path.rename(tmp_path / "other")
    if kind == "link":
        path.symlink_to(other)
    else:
        os.mkfifo(path)
    with pytest.raises(Exception, match=path.name):
        manifest.to_table(["id"])


def test_a_compacted_file_costs_a_request_for_its_footer_and_one_for_columns_that_are_neighbours():
    storage = Watched()
    storage.forget()
    filled(storage, compacted=True)
    manifest = manifest_in(storage)
    storage.forget()
    assert manifest.dataset().to_table(columns=["class", "lighting"]).num_rows == FRAGMENTS * ROWS
    files = {path for path in storage.asked if path.endswith(".parquet")}
    assert len(files) == 2
    assert len(storage.asked) <= 2 * len(files)


def test_arrow_finds_no_file_by_itself(manifest):
    """Whoever hands the dataset to Arrow's own scanner gets an error, not rows that nobody checked."""
    with pytest.raises(FileNotFoundError, match="by the methods of its dataset"):
        ds.Scanner.from_dataset(manifest.dataset()).to_table()


def test_a_manifest_is_joined_with_other_tables(manifest):
    other = ds.InMemoryDataset(pa.table({"id": ["basic/dim/0000-1"], "mark": ["a"]}))
    joined = manifest.dataset(["id", "score"]).join(other, "id", join_type="inner").to_table()
    assert joined.to_pylist() == [{"id": "basic/dim/0000-1", "score": 0.75, "mark": "a"}]


NAMES = pa.schema([(name, pa.int64()) for name in ("id", "is", "class", "we ird.x", "a-b", "ü", "class_")])


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"columns": ["id"]}, ["id"]),
        ({"columns": ["id"], "filter": pc.field("class").is_valid()}, ["id", "class"]),
        ({"columns": [], "filter": pc.field("class_") > 1}, ["class_"]),
        ({"columns": {"x": pc.field("we ird.x") + pc.field("ü")}}, ["we ird.x", "ü"]),
        ({"columns": [], "filter": pc.field("a-b").isin([1, 2])}, ["a-b"]),
        ({"columns": [], "filter": pc.field("class", "inner") == 1}, ["class"]),
        ({"columns": [], "filter": pc.field(2) == 1}, NAMES.names),
        ({"columns": None}, NAMES.names),
        ({}, NAMES.names),
    ],
)
def test_a_scan_looks_at_the_columns_that_it_mentions(options, columns):
    assert scan._columns_looked_at(NAMES, options).names == columns


# ---- daemon threads ------------------------------------------------------------------------------


def begun(work: Callable[[], object], *, daemon: bool = True) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=daemon)
    thread.start()
    return thread


def test_a_gate_is_closed_when_nobody_is_behind_it():
    gate, inside, leave = Gate(), threading.Event(), threading.Event()

    def step() -> None:
        with gate.passed():
            inside.set()
            leave.wait()

    thread = begun(step)
    inside.wait()
    closing = begun(gate.close)
    closing.join(0.1)
    assert closing.is_alive()
    leave.set()
    closing.join()
    thread.join()


def test_nobody_passes_a_gate_that_is_closed():
    gate, passed = Gate(), threading.Event()
    gate.close()

    def step() -> None:
        with gate.passed():
            passed.set()

    begun(step)
    assert not passed.wait(0.1)


def test_a_step_that_does_not_end_is_not_waited_for_at_exit():
    gate, inside, leave = Gate(), threading.Event(), threading.Event()

    def step() -> None:
        with gate.passed():
            inside.set()
            leave.wait()

    thread = begun(step)
    inside.wait()
    gate.close(wait_s=0.01)
    leave.set()
    thread.join()


def numbers(*, closed: threading.Event | None = None) -> Generator[int, None, None]:
    try:
        yield from (1, 2, 3)
    finally:
        if closed is not None:
            closed.set()


def test_only_daemon_threads_stop_at_a_closed_gate(monkeypatch):
    gate = Gate()
    gate.close()
    monkeypatch.setattr(ending, "_gate", gate)
    seen: list[int] = []
    begun(lambda: seen.extend(well_ended(numbers())), daemon=False).join()
    assert seen == [1, 2, 3]
    begun(lambda: seen.extend(well_ended(numbers()))).join(0.1)
    assert seen == [1, 2, 3]


def test_steps_are_closed_when_they_are_left():
    closed = threading.Event()
    next(well_ended(numbers(closed=closed)))
    assert closed.is_set()


def test_at_exit_steps_are_closed_that_somebody_holds(monkeypatch):
    monkeypatch.setattr(ending, "_gate", Gate())
    closed = threading.Event()
    held = well_ended(numbers(closed=closed))
    next(held)
    ending._end()
    assert closed.is_set()
    assert list(held) == []


def test_a_scan_that_is_left_has_finished_what_arrow_began(manifest, monkeypatch):
    started: list[Iterator[Any]] = []
    start = ds.Scanner.to_batches

    def to_batches(one: scan.Scan) -> Iterator[pa.RecordBatch]:
        def noted(scanner: ds.Scanner) -> Iterator[pa.RecordBatch]:
            started.append(start(scanner))
            return started[-1]

        return well_ended(one._pipelined(noted))

    monkeypatch.setattr(scan.Scan, "to_batches", to_batches)
    batches = manifest.dataset().to_batches()
    next(batches)
    next(batches)
    assert len(started) >= 2
    del batches
    assert all(next(one, None) is None for one in started)
