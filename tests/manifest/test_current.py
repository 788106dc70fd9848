"""manifest/current.parquet: what other programs read is what counts, after every command that commits."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.manifest import check_run, create_run
from balancer.manifest.layout import CURRENT_FILE, HEAD_FILE, fragment_path
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.maintenance import repair
from balancer.manifest.maintenance.gc import delete_leftovers
from balancer.manifest.rows import revoked
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.current import METADATA, renew_current
from balancer.manifest.status import read_status
from balancer.run_manifest import manifest_in
from balancer.runs import rejudge
from balancer.storage import Storage, open_storage
from tests.manifest_samples import MemoryStorage, at, image_bytes, real, rejected, row, run_info, start, void

DIM, SEVERE = "basic/dim/0000", "burnt/dim/severe/0000"


def closed(storage: Storage, *rows: dict[str, Any]) -> None:
    log = start(storage)
    log.commit(rows)
    log.close("complete")


def current(storage: Storage) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(CURRENT_FILE)))


def is_right(storage: Storage) -> None:
    """It has the accepted rows of the log, and reaches its end."""
    table, manifest = current(storage), manifest_in(storage)
    assert sorted(table["id"].to_pylist()) == sorted(manifest.to_table(["id"])["id"].to_pylist())
    reach, head = json.loads(table.schema.metadata[METADATA]), json.loads(storage.read(HEAD_FILE))
    assert {name: head[name] for name in ("run_id", "seq", "sha256")} == reach
    assert "current rows are those of the log" not in {one.rule for one in check_run(storage).problems}


def judged_again(storage: Storage) -> None:
    rejudge.apply(storage, ["verification.threshold=0.8"], now=lambda: at(10))


def gone_over(storage: Storage) -> None:
    storage.publish("images/basic/left-over.png", b"no row names it")
    assert delete_leftovers(storage, timedelta(0), now=lambda: at(10))


def repaired(storage: Storage) -> None:
    storage.delete(fragment_path(2))
    assert repair.apply(storage, lambda: at(10)).damages


def gone_on(storage: Storage) -> None:
    log = start(storage)
    log.commit([row("basic/dim/0001")])
    log.close("interrupted")


COMMITS: dict[str, Callable[[Storage], None]] = {
    "run": gone_on, "rejudge --apply": judged_again, "gc --delete": gone_over, "repair --apply": repaired,
}  # fmt: skip


@pytest.mark.parametrize("compacted", [False, True], ids=["log", "compacted"])
@pytest.mark.parametrize("command", COMMITS)
def test_after_every_command_that_commits_it_is_what_counts(command, compacted):
    storage = MemoryStorage()
    closed(storage, row(DIM), row(SEVERE, score=0.9), rejected(DIM, 2), real("0001"))
    is_right(storage)
    assert current(storage).num_rows == 3
    if compacted:
        compact(storage)
    before = storage.read(CURRENT_FILE)
    COMMITS[command](storage)
    assert storage.read(CURRENT_FILE) != before
    is_right(storage)


@pytest.mark.parametrize("command", ["rejudge --apply", "repair --apply", "gc --delete"])
def test_the_same_command_again_completes_one_that_was_stopped_before_it_was_written(command):
    storage = MemoryStorage()
    closed(storage, row(DIM), row(SEVERE, score=0.9), real("0001"))
    before = storage.read(CURRENT_FILE)
    COMMITS[command](storage)
    storage.replace(CURRENT_FILE, before)
    again = {
        "rejudge --apply": judged_again,
        "repair --apply": lambda storage: repair.apply(storage, lambda: at(20)),
        "gc --delete": lambda storage: delete_leftovers(storage, timedelta(0), now=lambda: at(20)),
    }
    again[command](storage)
    is_right(storage)


def test_whoever_opens_a_log_for_writing_closes_it(project: Path):
    """The file is written where a log is closed, so every module that opens one must close it."""
    for folder in ("balancer", "actors"):
        for path in (project / folder).rglob("*.py"):
            if "ManifestLog.open(" in (text := path.read_text()) and path.name != "log.py":
                assert "log.close(" in text, path


def test_a_verdict_that_revokes_a_row_takes_it_out():
    storage = MemoryStorage()
    closed(storage, row(DIM), row(SEVERE))
    log = start(storage)
    log.commit_verdicts([revoked(row(DIM), "class")])
    log.close("complete")
    assert current(storage)["id"].to_pylist() == [f"{SEVERE}-1"]


def test_types_are_those_of_every_reader_and_seeds_are_exact(tmp_path):
    storage = open_storage(tmp_path / "run", create=True)
    closed(storage, row(DIM, seed=2**64 - 3), real("0001"))
    path = tmp_path / "run" / CURRENT_FILE
    schema = pq.read_schema(path)
    assert not any(pa.types.is_dictionary(field.type) for field in schema)
    assert {"embedding", "probabilities"} == {*run_info().schema().names} - {*schema.names}
    assert pd.read_parquet(path)["seed"].dropna().to_list() == [str(2**64 - 3)]
    asked = f"select seed, class, scores['class'] from '{path}' where source = 'synthetic'"
    assert duckdb.execute(asked).fetchall() == [(str(2**64 - 3), "basic", 0.75)]


def test_a_run_without_an_accepted_image_has_a_table_without_rows():
    storage = MemoryStorage()
    closed(storage, rejected(DIM))
    assert current(storage).num_rows == 0
    is_right(storage)


def test_many_small_commits_are_one_row_group():
    storage = MemoryStorage()
    log = start(storage)
    for index in range(20):
        log.commit([row(f"basic/dim/{index:04d}")])
    log.close("complete")
    assert pq.ParquetFile(pa.BufferReader(storage.read(CURRENT_FILE))).num_row_groups == 1


def test_while_a_run_goes_on_status_says_how_far_it_is_behind():
    storage = MemoryStorage()
    closed(storage, row(DIM))
    assert read_status(storage, at(0))["current"] == {"fragments": 3, "behind": 0}
    log = start(storage)
    log.commit([row(SEVERE)])
    assert read_status(storage, at(0))["current"] == {"fragments": 3, "behind": 2}
    assert {one.rule for one in check_run(storage).problems} == {"images are there"}


def test_status_and_compact_mend_what_a_killed_driver_left(tmp_path):
    storage = open_storage(tmp_path / "run", create=True)
    start(storage).commit([row(DIM)])
    storage.publish("images/basic/dim/0000-1.png", image_bytes(f"{DIM}-1"))
    told = CliRunner().invoke(main, ["status", str(tmp_path / "run")])
    assert "manifest/current.parquet is missing or damaged" in told.stderr
    assert CliRunner().invoke(main, ["compact", str(tmp_path / "run")]).exit_code == 0
    is_right(storage)
    assert "current.parquet" not in CliRunner().invoke(main, ["status", str(tmp_path / "run")]).stderr


def test_it_is_written_anew_only_if_it_has_to_be():
    storage = MemoryStorage()
    create_run(storage, run_info())
    assert not renew_current(storage)
    closed(storage, row(DIM))
    assert not renew_current(storage)
    storage.replace(CURRENT_FILE, b"nonsense")
    assert renew_current(storage)
    storage.delete(CURRENT_FILE)
    assert renew_current(storage)
    is_right(storage)


def test_another_driver_that_closes_meanwhile_is_not_overwritten_with_less():
    storage = MemoryStorage()
    closed(storage, row(DIM))
    replace, others = storage.replace, [lambda: gone_on(storage)]

    def replaced_late(path: str, data: bytes) -> None:
        if path == CURRENT_FILE and others:
            others.pop()()
        replace(path, data)

    storage.replace = replaced_late
    renew_current(storage, rebuild=True)
    assert not others
    is_right(storage)


def test_a_log_is_closed_although_the_file_cannot_be_written():
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(DIM)])
    replace = storage.replace

    def refused(path: str, data: bytes) -> None:
        if path == CURRENT_FILE:
            raise OSError("no space left")
        replace(path, data)

    storage.replace = refused
    log.close("complete")
    assert read_status(storage, at(0))["state"] == "complete"
    assert read_status(storage, at(0))["current"] is None


def with_rows(storage: MemoryStorage) -> None:
    table = current(storage)
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, 1), sink)
    storage.replace(CURRENT_FILE, sink.getvalue().to_pybytes())


def test_texts_are_not_repeated_in_memory_before_their_size_is_that_of_the_log(monkeypatch):
    """A file of 70 kB can name one text of 100 MB in every row."""
    storage = MemoryStorage()
    closed(storage, row(DIM, loras=["a"]), row(SEVERE, loras=["a"]))
    table = current(storage)
    monkeypatch.setattr("balancer.manifest.snapshot.current.same_rows", lambda *_: pytest.fail("too late"))
    for name, value in {"prompt": "x" * 1000, "loras": ["x" * 1000]}.items():
        place = table.schema.get_field_index(name)
        column = pa.array([value] * len(table), table.schema.field(place).type)
        sink = pa.BufferOutputStream()
        pq.write_table(table.set_column(place, table.schema.field(place), column), sink)
        storage.replace(CURRENT_FILE, sink.getvalue().to_pybytes())
        assert "it has other rows than the log" in {one.detail for one in check_run(storage).problems}


def of_another_run(storage: MemoryStorage) -> None:
    other = MemoryStorage()
    closed_as(other, "run-2")
    storage.replace(CURRENT_FILE, other.read(CURRENT_FILE))


def of_another_log(storage: MemoryStorage) -> None:
    other = MemoryStorage()
    closed(other, row(DIM), row(SEVERE))
    storage.replace(CURRENT_FILE, other.read(CURRENT_FILE))


def closed_as(storage: MemoryStorage, run_id: str) -> None:
    log = start(storage, run_id=run_id)
    log.close("complete")


def damaged(storage: MemoryStorage) -> None:
    storage.replace(CURRENT_FILE, storage.read(CURRENT_FILE)[:-9])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (damaged, "cannot be read"),
        (of_another_run, "it is of run 'run-2'"),
        (of_another_log, "made of another log"),
        (with_rows, "other rows than the log"),
    ],
)
def test_fsck_finds_a_file_that_is_not_what_the_log_says(harm, told):
    storage = MemoryStorage()
    closed(storage, row(DIM), row(SEVERE))
    for slot in (DIM, SEVERE):
        storage.publish(f"images/{slot}-1.png", image_bytes(f"{slot}-1"))
    assert check_run(storage).problems == ()
    harm(storage)
    (problem,) = check_run(storage).problems
    assert (problem.rule, problem.path) == ("current rows are those of the log", CURRENT_FILE)
    assert told in problem.detail
    renew_current(storage, rebuild=True)
    assert check_run(storage).problems == ()


def test_gc_leaves_it_alone():
    storage = MemoryStorage()
    closed(storage, row(DIM))
    assert delete_leftovers(storage, timedelta(0), now=lambda: at(10)) == []


def test_a_void_row_is_no_image():
    storage = MemoryStorage()
    closed(storage, rejected(DIM))
    log: ManifestLog = start(storage)
    log.commit_verdicts([void(DIM)])
    log.close("interrupted")
    assert current(storage).num_rows == 0
