"""Runs whose checksums and chain are right, and whose values no run writes: one line, from every reader."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pyarrow as pa
import pytest

from balancer.errors import MAX_LINE, BalancerError, ManifestError, UsageError
from balancer.manifest import read_run
from balancer.manifest.layout import HEAD_FILE, INDEX_FILE, MAX_SEQ, RUN_FILE, fragment_path, fragment_seq
from balancer.manifest.log.fragment import (
    CHECKSUM_KEY,
    BrokenFragmentError,
    _digest,
    _to_metadata,
    decode,
    encode,
)
from balancer.manifest.log.head import read_head
from balancer.manifest.log.view import read_log
from balancer.manifest.maintenance.fsck import MISSING_TOLD, check_run
from balancer.manifest.maintenance.repair import look
from balancer.manifest.row_values import FORMS, RANGES, Known, wrong_values
from balancer.manifest.runfile import _Cell, create_run
from balancer.manifest.schema import rows_to_table
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.dataset import RowSource
from balancer.manifest.snapshot.index import DamagedCopyError, encode_index, read_index
from balancer.planning.plan import Priority
from balancer.text.json_reading import json_sha256
from tests.manifest_samples import MemoryStorage, real, rejected, row, run_info, start, void

SLOT = "burnt/dim/severe/0000"
SCHEMA = run_info().schema()
KNOWN = Known.of(run_info())


def wrong_of(*rows: dict[str, Any]) -> list[str]:
    return [detail for _, detail in wrong_values(rows_to_table(rows, SCHEMA), KNOWN)]


def test_rows_that_a_run_writes_are_sound():
    unjudged = row(SLOT, score=None, unjudged=["class", "lighting", "burn_level"])
    odd = real("0001", lighting="twilight", num_bytes=None, sha256=None, file_name=None, status="void")
    nan = rejected(SLOT, 2, brightness=float("nan"), deviation=float("nan"), nonfinite=3)
    assert wrong_of(row(SLOT), nan, void(SLOT, 3), real("0000"), unjudged, odd) == []


IMPOSSIBLE: list[dict[str, Any]] = [
    {"id": None},
    *({name: None} for name in ("class", "source", "status", "cell", "slot", "attempt", "scores")),
    *({name: None} for name in ("brightness", "deviation", "nonfinite", "num_bytes", "sha256", "file_name")),
    *({name: low - 1} for name, (low, _) in RANGES.items()),
    *({name: min(high + 1, 2**31 - 1)} for name, (_, high) in RANGES.items() if high < 2**31 - 1),
    {"num_bytes": 10**12 + 1},
    *({name: "not so"} for name in FORMS),
    {"slot": "burnt/dim/severe/" + "9" * 400},
    {"file_name": "images/" + "a" * 5000},
    {"class": "../up"},
    {"cell": "../up"},
    {"status": "evil"},
    {"source": "evil"},
    {"scores": {"class": 0.9, "lighting": 0.9, "burn_level": None}},
]


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=lambda changes: str(changes)[:40])
def test_a_row_that_no_run_writes_is_named_with_its_column(changes):
    (column,) = changes
    (detail,) = wrong_of(row(SLOT, 2), row(SLOT) | changes)
    assert "row" in detail
    assert ("burn_level" if column == "scores" and changes[column] else column) in detail or column == "id"
    assert len(detail) < 600


def test_a_time_that_python_has_no_date_for_is_named():
    table = rows_to_table([row(SLOT)], SCHEMA)
    place = SCHEMA.get_field_index("generated_at")
    late = pa.array([2**62], pa.int64()).cast(SCHEMA.field(place).type)
    (wrong,) = wrong_values(table.set_column(place, SCHEMA.field(place), late))
    assert "generated_at" in wrong[1]


def test_columns_that_are_not_read_are_not_looked_at():
    table = rows_to_table([row(SLOT, attempt=2**31 - 1, id=None)], SCHEMA)
    assert list(wrong_values(table.select(["class", "score"]), KNOWN)) == []


def test_a_name_of_megabytes_that_every_row_has_is_refused_before_it_is_copied():
    (wrong,) = wrong_of(*(row(f"burnt/dim/severe/{n:04}", lighting="x" * 20_000) for n in range(3)))
    assert wrong == "a row has a lighting of more than 10,000 bytes"


def forged(**changes: Any) -> MemoryStorage:
    """A log that takes what it is given."""
    storage = MemoryStorage()
    log = start(storage)
    log.commit([row(SLOT)])
    log.commit([row("basic/dim/0000", **changes)])
    log.close("complete")
    return storage


FORGED = [{"attempt": 2**31 - 1}, {"class": "evil"}, {"phash": "evil"}, {"cell": "evil"}, {"num_bytes": None}]


@pytest.mark.parametrize("changes", [*FORGED, {"source": "evil"}], ids=str)
def test_rows_of_a_forged_copy_are_refused_before_anyone_gets_them(changes, monkeypatch):
    storage = forged(**changes)
    with monkeypatch.context() as believing:
        believing.setattr("balancer.manifest.log.reader.wrong_values", lambda *_: iter(()))
        believing.setattr("balancer.manifest.log.reader.check_values", lambda *_: None)
        compact(storage)
    dataset = RowSource(storage, read_run(storage)).dataset()
    (name,) = changes
    for read in (
        lambda: dataset.to_table(["id", name, "source", "file_name"]),
        lambda: list(dataset.to_batches()),
        lambda: dataset.head(5),
        lambda: list(dataset.scanner(columns=["file_name", name]).scan_batches()),
    ):
        with pytest.raises(DamagedCopyError, match=f"data: .*{name}") as refused:
            read()
        assert "compact RUN --rebuild" in refused.value.hint


@pytest.mark.parametrize("changes", FORGED, ids=str)
def test_every_reader_names_the_fragment_of_an_impossible_row(changes):
    storage = forged(**changes)
    columns = ["id", "class", "source", "cell", "attempt", "phash", "num_bytes", "file_name"]
    source = RowSource(storage, read_run(storage)) if "attempt" not in changes else None
    readers = [lambda: read_log(storage, columns), lambda: compact(storage)]
    if source is not None:
        readers.append(lambda: source.rows(columns))
    for reader in readers:
        with pytest.raises(BrokenFragmentError) as error:
            reader()
        assert error.value.path == fragment_path(3)


@pytest.mark.parametrize("changes", [*FORGED, {"scores": None}, {"status": "evil"}], ids=str)
def test_fsck_names_the_fragment_of_an_impossible_row(changes):
    assert fragment_path(3) in {problem.path for problem in check_run(forged(**changes)).problems}


# ---- the bytes of a fragment ---------------------------------------------------------------------


def fragment_of(batches: int, compression: str | None) -> bytes:
    storage = forged()
    stamp = decode(storage.files[fragment_path(2)], 2, SCHEMA).stamp
    token = b"c" * 64
    metadata = {
        **(SCHEMA.metadata or {}), **_to_metadata(stamp), CHECKSUM_KEY: b"balancer-sha256:" + token
    }  # fmt: skip
    table = rows_to_table([row(SLOT, prompt="x" * 1_000_000)], SCHEMA).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for _ in range(batches):
            writer.write_table(table)
    data = bytes(sink.getvalue())
    return data.replace(token, _digest(data, token))


def test_a_compressed_fragment_is_refused_before_it_takes_memory():
    data = fragment_of(1, "zstd")
    before = pa.total_allocated_bytes()
    with pytest.raises(BrokenFragmentError, match="compressed"):
        decode(data, 2, SCHEMA)
    assert pa.total_allocated_bytes() - before < 100_000


def test_a_fragment_of_several_batches_is_read():
    assert decode(fragment_of(3, None), 2, SCHEMA).table.num_rows == 3


# ---- stamps, heads, indexes, run.json --------------------------------------------------------------


@pytest.mark.parametrize(
    "detail",
    [{"generators": "x"}, {"generators": 10**400}, {"generators": -1}, {"overrides": 5}, {"complete": "x"},
     {"deleting": [5]}, {"deleting": "x"}, {"stands_for": 7}],
    ids=lambda detail: str(detail)[:30],
)  # fmt: skip
def test_a_stamp_whose_detail_has_other_types_is_named(detail):
    stamp = decode(forged().files[fragment_path(1)], 1, SCHEMA).stamp
    data = encode(SCHEMA.empty_table(), dataclasses.replace(stamp, detail=detail))
    with pytest.raises(BrokenFragmentError, match=f"detail.{next(iter(detail))}"):
        decode(data, 1, SCHEMA)


def with_head(seq: object) -> MemoryStorage:
    storage = forged()
    document = json.loads(storage.files[HEAD_FILE])
    del document["checksum"]
    document["seq"] = seq
    storage.files[HEAD_FILE] = json.dumps({**document, "checksum": json_sha256(document)}).encode()
    return storage


@pytest.mark.parametrize("seq", [10**30, 10**4000, -5, True, MAX_SEQ + 1], ids=lambda seq: str(seq)[:9])
def test_a_head_has_a_number_that_a_log_can_reach(seq):
    with pytest.raises(BrokenFragmentError, match="head of the log is readable") as error:
        read_head(with_head(seq), "run-1")
    assert len(error.value.message) < MAX_LINE


def test_fragments_that_are_missing_by_the_million_take_no_time():
    storage = with_head(MAX_SEQ)
    problems = check_run(storage).problems
    assert MISSING_TOLD <= len(problems) < MISSING_TOLD + 10
    assert "up to 200,000" in look(storage).unsolved[0]


def test_a_file_whose_number_no_log_reaches_is_no_fragment():
    assert fragment_seq(fragment_path(MAX_SEQ)) == MAX_SEQ
    assert fragment_seq(fragment_path(MAX_SEQ + 1)) is None


FILES: list[dict[str, Any]] = [
    {"footer_bytes": 10**15}, {"footer_bytes": -5}, {"num_bytes": 10**18}, {"num_bytes": 0}, {"rows": -1},
    {"values": ()}, *({"path": path} for path in (
        "../../outside.parquet", "/etc/passwd", "", "a\0b", "manifest/data/../../run.json", "manifest/data/",
        "run.json", "manifest/data/a\0b", "manifest/data//x", "manifest/data/" + "a" * 300,
    )),
]  # fmt: skip
INDEXES: list[dict[str, Any]] = [{"covers": 10**30}, {"covers": -3}, {"folders": ("id",)}]


@pytest.mark.parametrize(
    "changes", [*FILES, {"covers": 10**30}, {"covers": -3}, {"folders": ("id",)}], ids=str
)
def test_an_index_of_impossible_numbers_is_named(changes):
    storage = forged()
    compact(storage)
    index = read_index(storage, "run-1")
    assert index is not None
    if "covers" in changes:
        index = dataclasses.replace(index, **changes)
    elif "folders" in changes:
        files = tuple(dataclasses.replace(file, values=file.values[-2:]) for file in index.files)
        layout = dataclasses.replace(index.layout, **changes)
        index = dataclasses.replace(index, layout=layout, files=files)
    else:
        first = dataclasses.replace(index.files[0], **changes)
        index = dataclasses.replace(index, files=(first, *index.files[1:]))
    storage.files[INDEX_FILE] = encode_index(index)
    with pytest.raises(DamagedCopyError) as error:
        RowSource(storage, read_run(storage))
    assert error.value.path == INDEX_FILE
    assert INDEX_FILE in {problem.path for problem in check_run(storage).problems}


def plan_with(**changes: Any) -> list[dict[str, Any]]:
    first, *others = run_info().plan
    return [first | changes, *others]


@pytest.mark.parametrize(
    "changes",
    [{"models": {}}, {"models": {"generator": {}, "verifier": {}}}, {"plan": plan_with(priority="x")},
     {"plan": plan_with(cell="burnt/dim/severe")}],
    ids=str,
)  # fmt: skip
def test_a_run_file_has_models_known_priorities_and_each_cell_once(changes):
    storage = forged()
    storage.files[RUN_FILE] = json.dumps(json.loads(storage.files[RUN_FILE]) | changes).encode()
    with pytest.raises(ManifestError, match="it is damaged"):
        read_run(storage)


@pytest.mark.parametrize(
    "end", [rb', "x": "\ud800"}', b', "x": [' + b"[]," * 2000 + b"[]]}", b', "x": ' + b"[" * 50_000],
    ids=["half a surrogate", "many values", "deep"],
)  # fmt: skip
def test_json_that_cannot_be_used_is_damage(end, monkeypatch):
    storage = forged()
    compact(storage)
    read = {RUN_FILE: read_run, HEAD_FILE: lambda of: read_head(of, "run-1"),
            INDEX_FILE: lambda of: read_index(of, "run-1")}  # fmt: skip
    problem = r"not valid Unicode|more than 1,000 values|nested too deeply"
    monkeypatch.setattr("balancer.text.json_reading.MOST_VALUES", 1000)
    for path, reader in read.items():
        storage.files[path] = storage.files[path].rstrip()[:-1] + end
        with pytest.raises(ManifestError, match=problem):
            reader(storage)


def test_a_plan_that_could_not_be_read_again_is_refused(monkeypatch):
    storage = MemoryStorage()
    monkeypatch.setattr("balancer.manifest.runfile.MOST_VALUES", 10)
    with pytest.raises(UsageError, match="the plan has more than 10 values"):
        create_run(storage, run_info())
    assert storage.files == {}


def test_the_priorities_of_a_run_file_are_those_of_plans():
    assert set(get_args(_Cell.model_fields["priority"].annotation)) == {*map(str, Priority)}


def test_a_message_has_lines_of_bounded_length():
    error = BalancerError(f"short\n{'x' * 1_000_000}")
    assert error.message.startswith("short\nxxx")
    assert len(error.message) < MAX_LINE + 100
