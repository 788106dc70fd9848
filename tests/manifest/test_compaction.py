"""The compacted copy: the same rows as the log has, read column by column, and never wrong ones."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer import open_manifest
from balancer.errors import ManifestError, UsageError
from balancer.manifest import create_run, read_log
from balancer.manifest.layout import DATA_DIR, INDEX_FILE, fragment_path
from balancer.manifest.maintenance.gc import COMPACTED, find_leftovers
from balancer.manifest.rows import revoked
from balancer.manifest.snapshot import build as compaction
from balancer.manifest.snapshot import index as compacted
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.index import DamagedCopyError, read_index
from balancer.run_manifest import Manifest, manifest_in
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, MemoryStorage, at, real, rejected, row, run_info, start, void

SLOTS = [f"{cell}/{index:04d}" for cell in ("basic/dim", "burnt/dim/severe") for index in range(4)]


def committed(*rows: dict[str, Any]) -> MemoryStorage:
    storage = MemoryStorage()
    log = start(storage)
    log.commit(rows)
    log.close("complete")
    return storage


def data_files(storage: MemoryStorage) -> list[str]:
    return [path for path in storage.files if path.startswith(DATA_DIR) and path != INDEX_FILE]


def as_the_log_has_it(storage: Any) -> None:
    """Whatever is asked of the manifest, the answer is that of the log alone."""
    manifest, log = manifest_in(storage), read_log(storage).table
    assert manifest.to_table(status="all").to_pylist() == log.to_pylist()
    for status in ("accepted", "rejected", "void"):
        rows = log.filter(pc.field("status") == status).to_pylist()
        assert manifest.to_table(status=status).to_pylist() == rows
        assert manifest.to_table(filter="score >= 0", status=status).to_pylist() == rows
        assert manifest.count_by(status=status).to_pylist() == [{"count": len(rows)}]
    burnt = [one["id"] for one in log.to_pylist() if one["class"] == "burnt" and one["score"] is not None]
    for condition in (
        "class = 'burnt' and score > 0",
        (pc.field("class") == "burnt") & (pc.field("score") > 0),
    ):
        assert manifest.to_table(["id"], condition, "all")["id"].to_pylist() == burnt
    counted = {(one["class"], one["status"]): one["count"] for one in counts(manifest, None)}
    assert counted == {(one["class"], one["status"]): one["count"] for one in counts(manifest, "true")}
    assert sum(counted.values()) == log.num_rows
    streamed = manifest.dataset().to_table()
    assert streamed.schema.equals(manifest.schema)
    assert sorted(streamed["id"].to_pylist()) == sorted(log["id"].to_pylist())
    assert manifest.sql("select count(distinct id) as n from manifest", "all").to_pylist() == [
        {"n": log.num_rows}
    ]


def counts(manifest: Manifest, condition: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manifest.count_by(
        "class", "status", filter=condition, status="all"
    ).to_pylist()
    return found


# ---- the same rows -------------------------------------------------------------------------------


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["row", "rejected", "revoke", "void"]), st.sampled_from(SLOTS)),
        st.tuples(st.sampled_from(["compact", "open"]), st.none()),
    ),
    max_size=25,
)


@given(steps=STEPS, rows_in_file=st.integers(1, 4), block=st.integers(1, 6))
@settings(max_examples=60)
def test_after_any_history_the_answers_are_those_of_the_log(steps, rows_in_file, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compacted, "FILE_BYTES", rows_in_file * (compacted.ROW_BYTES + 8))
        patch.setattr(compacted, "BUFFER_BYTES", 3 * compacted.FILE_BYTES)
        patch.setattr(compacted, "BLOCK_ROWS", block)
        storage = MemoryStorage()
        log, statuses = start(storage), dict[str, str]()
        for action, slot in steps:
            known = statuses.get(f"{slot}-1")
            if action == "compact":
                compact(storage)
            elif action == "open":
                log = start(storage)
            elif action in ("row", "rejected") and known in (None, "void"):
                log.commit([row(slot) if action == "row" else rejected(slot)])
                statuses[f"{slot}-1"] = "accepted" if action == "row" else "rejected"
            elif action == "revoke" and known == "accepted":
                log.commit_verdicts([revoked(row(slot), "class")])
                statuses[f"{slot}-1"] = "rejected"
            elif action == "void" and known == "rejected":
                log.commit_verdicts([void(slot)])
                statuses[f"{slot}-1"] = "void"
        as_the_log_has_it(storage)


def test_a_log_without_rows_can_be_compacted():
    storage = MemoryStorage()
    start(storage)
    index = compact(storage)
    assert index is not None
    assert (index.covers, index.rows, index.files) == (1, 0, ())
    as_the_log_has_it(storage)


def test_a_log_that_no_driver_opened_is_not_compacted():
    storage = MemoryStorage()
    create_run(storage, run_info())
    assert compact(storage) is None
    assert INDEX_FILE not in storage.files


def test_verdicts_on_compacted_rows_stand_where_these_stood():
    storage = committed(row(SLOTS[0]), rejected(SLOTS[1]), row(SLOTS[4]))
    compact(storage)
    log = start(storage)
    log.commit_verdicts([revoked(row(SLOTS[4]), "class"), void(SLOTS[1])])
    log.commit([row(SLOTS[1]), row(SLOTS[2])])
    found = manifest_in(storage).to_table(["id", "status"], status="all").to_pylist()
    assert [(one["id"], one["status"]) for one in found] == [
        (f"{SLOTS[0]}-1", "accepted"),
        (f"{SLOTS[1]}-1", "accepted"),
        (f"{SLOTS[4]}-1", "rejected"),
        (f"{SLOTS[2]}-1", "accepted"),
    ]
    as_the_log_has_it(storage)
    compact(storage)
    as_the_log_has_it(storage)


def test_a_candidate_that_was_void_when_compacted_is_made_again():
    storage = committed(rejected(SLOTS[0]), row(SLOTS[1]))
    start(storage).commit_verdicts([void(SLOTS[0])])
    compact(storage)
    start(storage).commit([row(SLOTS[0])])
    as_the_log_has_it(storage)
    assert manifest_in(storage).to_table(["id"])["id"].to_pylist() == [f"{SLOTS[0]}-1", f"{SLOTS[1]}-1"]


def test_types_and_values_survive():
    rows = [
        row(
            SLOTS[4], prompt="日本", unjudged=["class"], embedding=b"\1\x3c" * 4, second_scores={"class": 0.5}
        ),
        real("a.png", embedding=None),
    ]
    storage = committed(*rows)
    before = manifest_in(storage).to_table(status="all")
    compact(storage)
    after = manifest_in(storage).to_table(status="all")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.equals(before)


# ---- what is written -----------------------------------------------------------------------------


def test_a_part_is_of_one_class_and_facets_and_what_does_not_apply_is_null():
    storage = committed(row(SLOTS[0]), row(SLOTS[4]), rejected(SLOTS[5]))
    index = compact(storage)
    assert index is not None
    assert index.layout.columns == ("class", "lighting", "burn_level", "status")
    assert {file.values for file in index.files} == {
        ("basic", "dim", None, "accepted"),
        ("burnt", "dim", "severe", "accepted"),
        ("burnt", "dim", "severe", "rejected"),
    }


READERS: dict[str, Callable[[Path], pa.Table]] = {
    "duckdb": lambda root: (
        duckdb.read_parquet(f"{root}/**/*.parquet", hive_partitioning=True)
        .project("class, lighting")
        .to_arrow_table()
    ),
    "pyarrow": lambda root: ds.dataset(root, partitioning="hive").to_table(["class", "lighting"]),
    "pandas": lambda root: pa.Table.from_pandas(pd.read_parquet(root)[["class", "lighting"]].astype(str)),
}
HIVE = "__HIVE_DEFAULT_PARTITION__"
LIKE_OTHERS = ["Dog", "dog", "a=b", "007", "2026-01-02", "true", "null", HIVE, "../up", "_hidden", ".dot"]


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_read_the_folder_as_its_columns_say(reader, tmp_path):
    """Of paths like `class=dog` they take the values, and the types that these look like."""
    storage = open_storage(tmp_path / "run", create=True)
    names = [{"class": name, "lighting": name} for name in LIKE_OTHERS]
    classes = CONFIG["classes"] | dict.fromkeys(LIKE_OTHERS, CONFIG["classes"]["basic"])
    run = {"config": CONFIG | {"classes": classes}, "targets": dict.fromkeys(classes, 1)}
    start(storage, **run).commit([row(f"basic/dim/{n:04d}", **name) for n, name in enumerate(names)])
    compact(storage)
    found = READERS[reader](tmp_path / "run" / DATA_DIR)
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, names))


def test_a_copy_whose_folders_are_named_by_values_is_read_as_before(monkeypatch):
    def path(copy: str, number: int) -> str:
        return f"{DATA_DIR}/class=basic-4e2eca/lighting={HIVE}/accepted-{copy}-{number:05d}.parquet"

    monkeypatch.setattr(compaction, "data_path", path)
    storage = committed(*(row(slot) for slot in SLOTS))
    compact(storage)
    as_the_log_has_it(storage)
    monkeypatch.undo()
    start(storage).commit([row("basic/dim/0009")])
    compact(storage)
    as_the_log_has_it(storage)
    old = [file for file in find_leftovers(storage, timedelta(0), lambda: at(1)) if file.kind == COMPACTED]
    assert old
    assert all("class=" in file.path for file in old)


HOSTILE = ["../../../etc/passwd", "a b/c", "日本", "=1+1", "Foo", "foo", "%2e%2e", "x" * 300, ".", "-"]


def test_names_from_outside_lead_nowhere_and_come_back_as_they_were(tmp_path):
    storage = open_storage(tmp_path / "run", create=True)
    start(storage).commit(
        [row(f"basic/dim/{index:04d}", lighting=name) for index, name in enumerate(HOSTILE)]
    )
    compact(storage)
    assert manifest_in(storage).to_table()["lighting"].to_pylist() == HOSTILE
    for name in HOSTILE:
        of_name = pc.field("lighting") == name
        assert manifest_in(storage).count_by(filter=of_name).to_pylist() == [{"count": 1}]
    files = list((tmp_path / "run").rglob("*.parquet"))
    assert len(files) == len(HOSTILE)
    assert all(path.is_relative_to(tmp_path / "run" / DATA_DIR) for path in files)


def test_parts_end_where_they_would_hold_too_few_rows(monkeypatch):
    monkeypatch.setattr(compacted, "LEAST_PARTS", 1)
    storage = committed(*(row(slot) for slot in reversed(SLOTS)))
    index = compact(storage)
    assert index is not None
    assert index.layout.folders == ()
    (file,) = data_files(storage)
    table = pq.read_table(pa.BufferReader(storage.files[file]))
    assert table["class"].to_pylist() == ["basic"] * 4 + ["burnt"] * 4  # sorted by what is no part
    as_the_log_has_it(storage)


def test_row_groups_have_statistics_and_pages_checksums():
    storage = committed(row(SLOTS[0], score=0.75), row(SLOTS[1], score=0.875))
    compact(storage)
    (file,) = data_files(storage)
    group = pq.ParquetFile(pa.BufferReader(storage.files[file])).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert (columns["score"].statistics.min, columns["score"].statistics.max) == (0.75, 0.875)
    assert columns["embedding.list.element"].compression == "UNCOMPRESSED"
    assert columns["prompt"].compression == "ZSTD"


def test_the_index_is_published_last():
    storage = committed(row(SLOTS[0]), row(SLOTS[4]))
    written: list[str] = []
    publish, replace = storage.publish, storage.replace
    storage.publish = lambda path, data: (written.append(path), publish(path, data))[1]
    storage.replace = lambda path, data: (written.append(path), replace(path, data))[1]
    compact(storage)
    assert written[-1] == INDEX_FILE
    assert len(written) == 3


def test_the_index_says_what_it_covers():
    storage = committed(row(SLOTS[0]))
    index = compact(storage)
    assert index is not None
    assert read_index(storage, "run-1") == index
    assert (index.covers, index.rows) == (3, 1)
    last = read_log(storage).last
    assert last is not None
    assert last.seq == index.covers


# ---- again and again -----------------------------------------------------------------------------


def test_what_is_compacted_already_is_left_alone():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    before = dict(storage.files)
    assert compact(storage) is None
    assert storage.files == before
    assert compact(storage, rebuild=True) is not None


def test_files_of_an_earlier_copy_stay_for_readers_who_have_it_open():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    earlier = manifest_in(storage)
    start(storage).commit([row(SLOTS[1])])
    compact(storage)
    assert earlier.to_table(["id"])["id"].to_pylist() == [f"{SLOTS[0]}-1"]
    assert manifest_in(storage).to_table(["id"]).num_rows == 2


@pytest.mark.parametrize("missing", ["file", "size"])
def test_a_copy_of_which_a_file_is_gone_is_not_up_to_date(missing):
    storage = committed(row(SLOTS[0]))
    compact(storage)
    (file,) = data_files(storage)
    if missing == "file":
        del storage.files[file]
    else:
        storage.files[file] += b"x"
    assert compact(storage) is not None
    as_the_log_has_it(storage)


def test_a_damaged_log_is_not_compacted():
    storage = committed(row(SLOTS[0]), row(SLOTS[1]))
    compact(storage)
    storage.files[fragment_path(2)] = storage.files[fragment_path(2)][:-1]
    before = dict(storage.files)
    with pytest.raises(ManifestError, match="fragment is whole"):
        compact(storage, rebuild=True)
    assert storage.files == before


# ---- lazily --------------------------------------------------------------------------------------


class Counting(MemoryStorage):
    """Says what was read, and how much of it."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        data = super().read_range(path, start, length)
        self.asked.append((path, len(data)))
        return data

    asked: list[tuple[str, int]]

    def of(self, work: Callable[[], object]) -> int:
        self.asked = []
        work()
        return sum(length for _, length in self.asked)


@pytest.fixture
def wide() -> Counting:
    """2,000 rows with embeddings of 256 numbers: about 1 MB of them."""
    storage = Counting()
    storage.asked = []
    log = start(storage, embedding_dim=256)
    rows = [
        row(f"{cell}/{index:04d}", embedding=bytes(range(256)) * 2)
        for cell in ("basic/dim", "burnt/dim/severe")
        for index in range(1000)
    ]
    log.commit(rows)
    compact(storage)
    return storage


def test_embeddings_are_read_when_they_are_asked_for(wide):
    manifest = manifest_in(wide)
    narrow = wide.of(lambda: manifest.to_table(["id", "score"]))
    assert wide.of(lambda: manifest.sql("select avg(score) from manifest")) < 200_000
    assert narrow < 200_000
    assert wide.of(lambda: manifest.to_table(["embedding"])) > 1_000_000
    assert wide.of(lambda: manifest.sql("select avg(embedding[1]) from manifest")) > 1_000_000


def test_files_of_other_classes_are_not_opened(wide):
    manifest = manifest_in(wide)
    of_burnt = (pc.field("class") == "burnt") & (pc.field("score") > 0)
    index = read_index(wide, "run-1")
    assert index is not None
    burnt = {file.path for file in index.files if file.values[0] == "burnt"}
    for work in (
        lambda: manifest.to_table(["id"], of_burnt),
        lambda: manifest.count_by("lighting", filter=of_burnt),
        lambda: manifest.dataset().to_table(columns=["id"], filter=of_burnt),
        lambda: manifest.to_table(["id"], "class = 'burnt' and score > 0"),
    ):
        wide.of(work)
        assert wide.asked
        assert {path for path, _ in wide.asked} <= burnt


def test_rows_that_are_wanted_whole_cost_their_row_groups_only(wide, monkeypatch):
    monkeypatch.setattr(compaction, "ROW_GROUP_ROWS", 100)
    compact(wide, rebuild=True)
    manifest = manifest_in(wide)
    assert wide.of(lambda: manifest.to_table(filter="id = 'basic/dim/0500-1'")) < 600_000


def test_opening_looks_into_no_compacted_file(wide):
    assert wide.of(lambda: manifest_in(wide)) == 0


def test_counting_by_what_parts_share_takes_little(wide):
    manifest = manifest_in(wide)
    assert wide.of(lambda: manifest.count_by("class", "lighting")) < 200_000
    assert manifest.count_by("class", "lighting").to_pylist() == [
        {"class": name, "lighting": "dim", "count": 1000} for name in ("basic", "burnt")
    ]


def test_a_dataset_can_be_pickled_for_workers_that_read_by_themselves(tmp_path):
    storage = open_storage(tmp_path, create=True)
    log = start(storage)
    log.commit([row(SLOTS[0]), row(SLOTS[1])])
    compact(storage)
    log.commit_verdicts([revoked(row(SLOTS[0]), "class")])
    log.commit([row(SLOTS[2])])
    dataset = pickle.loads(pickle.dumps(open_manifest(tmp_path).dataset()))
    found = dataset.to_table(columns=["id", "status"]).to_pylist()
    assert sorted((one["id"], one["status"]) for one in found) == [
        (f"{SLOTS[0]}-1", "rejected"),
        (f"{SLOTS[1]}-1", "accepted"),
        (f"{SLOTS[2]}-1", "accepted"),
    ]


def test_a_dataset_is_one_for_every_library_that_takes_them():
    storage = committed(row(SLOTS[0]), row(SLOTS[4]))
    compact(storage)
    start(storage).commit_verdicts([revoked(row(SLOTS[0]), "class")])
    manifest = manifest_in(storage)
    dataset = manifest.dataset()
    assert isinstance(dataset, ds.Dataset)
    assert dataset.count_rows() == 2
    assert dataset.filter(pc.field("status") == "accepted").count_rows() == 1
    assert dataset.head(1, columns=["id"]).num_rows == 1
    assert [batch.num_rows for batch in dataset.to_batches(columns=["id"]) if batch.num_rows] == [1, 1]
    import duckdb

    with duckdb.connect() as database:
        database.register("rows", manifest.dataset(["class", "status"]))
        assert database.sql("select class from rows where status = 'rejected'").fetchall() == [("basic",)]
        assert database.sql("select * from rows limit 1").columns == ["class", "status"]


# ---- damage --------------------------------------------------------------------------------------


ASKS: list[Callable[[Manifest], object]] = [
    lambda manifest: manifest.to_table(["id", "score"]),
    lambda manifest: manifest.to_table(["score"], "score > 0"),
    lambda manifest: manifest.to_table(["score"], pc.field("score") > 0),
    lambda manifest: manifest.count_by("attempt"),
    lambda manifest: manifest.count_by("attempt", filter="attempt > 0"),
    lambda manifest: manifest.sql("select avg(score) from manifest"),
]


@pytest.mark.parametrize("ask", ASKS)
def test_a_file_that_went_meanwhile_is_one_clear_line(ask):
    storage = committed(row(SLOTS[0]))
    compact(storage)
    manifest = manifest_in(storage)
    (file,) = data_files(storage)
    del storage.files[file]
    with pytest.raises(ManifestError, match=f"{file}: compacted files are there: it is missing") as caught:
        ask(manifest)
    assert "\n" not in caught.value.message
    assert "balancer compact RUN --rebuild" in caught.value.hint


@pytest.mark.parametrize("ask", ASKS)
def test_a_fragment_that_changed_meanwhile_is_one_clear_line(ask):
    storage = committed(row(SLOTS[0]))
    manifest = manifest_in(storage)
    data = storage.files[fragment_path(2)]
    storage.files[fragment_path(2)] = data[:-300] + bytes([data[-300] ^ 4]) + data[-299:]
    with pytest.raises(ManifestError, match=f"{fragment_path(2)}: checksum"):
        ask(manifest)
    del storage.files[fragment_path(2)]
    with pytest.raises(ManifestError, match=f"{fragment_path(2)}: log without gaps"):
        ask(manifest)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_is_cut_off_is_refused_by_name(length):
    storage = committed(row(SLOTS[0]))
    compact(storage)
    (file,) = data_files(storage)
    storage.files[file] = storage.files[file][:length]
    with pytest.raises(DamagedCopyError, match=f"{file}: compacted files have their size"):
        manifest_in(storage).to_table()


@pytest.fixture(scope="module")
def compacted_rows() -> MemoryStorage:
    storage = committed(*(row(f"basic/dim/{index:04d}", score=0.6 + index / 1000) for index in range(60)))
    compact(storage)
    return storage


def column_bytes(data: bytes, column: str) -> range:
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema == column]
    begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    return range(begin, begin + chunk.total_compressed_size)


@pytest.mark.parametrize("column", ["score", "attempt", "id", "review", "__place"])
def test_no_flipped_bit_makes_a_wrong_row_or_a_missing_one(compacted_rows, column):
    """The page heads are in it, which no checksum covers: there, a column can become too short."""
    storage = MemoryStorage(files=dict(compacted_rows.files))
    (file,) = data_files(storage)
    data = storage.files[file]
    shown = [column] if column != "__place" else ["score"]
    wanted = manifest_in(storage).to_table(shown)
    refused = 0
    for position in column_bytes(data, column):
        for bit in range(0, 8, 3):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            storage.files[file] = bytes(changed)
            manifest = manifest_in(storage)
            try:
                assert manifest.to_table(shown).equals(wanted)
                assert manifest.dataset().to_table(columns=shown).equals(wanted)
                assert manifest.count_by().to_pylist() == [{"count": 60}]
            except (DamagedCopyError, OSError, pa.ArrowInvalid):  # Arrow's own from the dataset itself
                refused += 1
    assert refused > len(column_bytes(data, column))


def test_a_flipped_bit_of_a_footer_is_noticed_wherever_it_is(compacted_rows):
    storage = MemoryStorage(files=dict(compacted_rows.files))
    (file,) = data_files(storage)
    data = storage.files[file]
    index = read_index(storage, "run-1")
    assert index is not None
    for position in range(len(data) - index.files[0].footer_bytes, len(data), 17):
        storage.files[file] = (
            data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
        )
        with pytest.raises(DamagedCopyError, match="footer"):
            manifest_in(storage).to_table(["score"])


@pytest.mark.parametrize("ask", ASKS)
def test_damage_is_told_from_a_mistake_in_the_question(ask, compacted_rows):
    storage = MemoryStorage(files=dict(compacted_rows.files))
    (file,) = data_files(storage)
    data = bytearray(storage.files[file])
    for column in ("score", "attempt"):
        data[column_bytes(storage.files[file], column)[-1]] ^= 255
    storage.files[file] = bytes(data)
    with pytest.raises(DamagedCopyError, match="compacted files have their sha256"):
        ask(manifest_in(storage))
    with pytest.raises(UsageError, match="lightning"):
        manifest_in(storage).to_table(filter="lightning = 'dim'")


def test_an_index_with_any_byte_changed_is_refused():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    data = storage.files[INDEX_FILE]
    for position in range(len(data)):
        storage.files[INDEX_FILE] = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(ManifestError, match=INDEX_FILE) as caught:
            manifest_in(storage)
        assert "rebuild" in caught.value.hint


def test_a_damaged_index_is_made_anew():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    storage.files[INDEX_FILE] = storage.files[INDEX_FILE][:-9]
    assert compact(storage) is not None
    as_the_log_has_it(storage)


def test_without_an_index_the_log_is_read():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    del storage.files[INDEX_FILE]
    as_the_log_has_it(storage)


def test_a_copy_of_another_run_is_refused():
    storage, other = committed(row(SLOTS[0])), MemoryStorage()
    start(other, run_id="run-2").commit([row(SLOTS[0], run_id="run-2")])
    compact(other)
    storage.files[INDEX_FILE] = other.files[INDEX_FILE]
    with pytest.raises(DamagedCopyError, match="it is of run 'run-2'"):
        manifest_in(storage)


def test_a_copy_of_another_log_is_refused():
    storage, other = committed(row(SLOTS[0])), committed(row(SLOTS[1]))
    compact(other)
    storage.files |= {path: data for path, data in other.files.items() if path.startswith(DATA_DIR)}
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: hash chain"):
        manifest_in(storage)


def test_a_log_shorter_than_its_copy_is_refused():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    del storage.files[fragment_path(3)]
    with pytest.raises(ManifestError, match=f"{fragment_path(3)}: log without gaps"):
        manifest_in(storage)


@pytest.mark.parametrize(
    "changes",
    [
        {"covers": []},
        {"layout": 3},
        {"files": [3]},
        {"files": [{"path": []}]},
        {"rows": float("inf")},
        {"format": []},
    ],
    ids=str,
)
def test_an_index_of_other_types_is_damaged(changes):
    storage = committed(row(SLOTS[0]))
    compact(storage)
    document = json.loads(storage.files[INDEX_FILE]) | changes
    del document["checksum"]
    checksum = hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()
    storage.files[INDEX_FILE] = json.dumps(document | {"checksum": checksum}).encode()
    with pytest.raises(DamagedCopyError, match="index of the compacted copy is readable"):
        read_index(storage, "run-1")


def test_a_copy_made_by_a_newer_version_is_named_so():
    storage = committed(row(SLOTS[0]))
    compact(storage)
    document = json.loads(storage.files[INDEX_FILE])
    storage.files[INDEX_FILE] = json.dumps(document | {"format": 2}).encode()
    with pytest.raises(ManifestError, match="format 2 is newer than 1"):
        manifest_in(storage)
