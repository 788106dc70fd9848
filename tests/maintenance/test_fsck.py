from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.errors import BalancerError, ManifestError, UsageError
from balancer.manifest import check_run, fsck, read_run
from balancer.manifest.layout import (
    DATA_DIR,
    HEAD_FILE,
    INDEX_FILE,
    LOG_DIR,
    RUN_FILE,
    fragment_path,
    head_path,
    typicality_path,
)
from balancer.manifest.rows import revoked
from balancer.manifest.runfile import load_heads, load_typicality
from balancer.manifest.snapshot.build import Files, compact, publish_index
from balancer.manifest.snapshot.index import read_index
from balancer.storage import open_storage, slug_of_before
from balancer.verification import heads
from balancer.verification.heads import Head
from balancer.verification.typicality import fit_typicality, to_bytes
from tests.manifest_samples import CONFIG, HEAD, NOON, image_bytes, real, rejected, row, start, void

ONE, TWO = "basic/dim/0000", "burnt/dim/severe/0000"
IMAGE = f"images/{ONE}-1.png"

Fault = Callable[[Path], None]


def commit(root: Path, *rows: dict[str, Any]) -> None:
    """Commit rows with their images to the run in a folder."""
    storage = open_storage(root, create=True)
    for one in rows:
        if one["file_name"] is not None:
            storage.publish(one["file_name"], image_bytes(one["file_name"][len("images/") : -len(".png")]))
    start(storage).commit(rows)


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound") / "run"
    commit(root, row(ONE), rejected(TWO))
    commit(root, row(TWO, 2), real("a.png"))
    start(open_storage(root, create=False)).close("complete")
    return root


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    """A sound run: fragments 1, 3 and 5 open, 2 holds two rows, 4 two more, 6 closes."""
    return Path(shutil.copytree(sound_run, tmp_path / "run"))


def test_a_sound_run_has_no_problems(run):
    found = check_run(open_storage(run, create=False))
    assert (found.problems, found.notes) == ((), ())
    assert (found.fragments, found.rows, found.images) == (6, 4, 3)


def test_a_sound_run_whose_verdicts_changed_has_no_problems(run):
    """Revoked and refilled by the next attempt, revoked and accepted again, made again after void."""
    storage = open_storage(run, create=False)
    log = start(storage)
    log.commit_verdicts([revoked(row(ONE), "class"), revoked(row(TWO, 2), "class"), void(TWO)])
    log.commit_verdicts([row(TWO, 2)])
    log.close("interrupted")
    commit(run, row(ONE, 2), rejected(TWO))
    found = check_run(storage)
    assert (found.problems, found.notes) == ((), ())
    assert (found.rows, found.images) == (5, 4)


def test_checking_changes_nothing(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fsck(open_storage(run, create=False))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def with_typicality(root: Path) -> str:
    """The path of what the run's candidates are compared with."""
    distances = {"few": np.random.default_rng(0).normal(0, 1, (20, 4))}
    data = to_bytes(fit_typicality(distances, np.arange(20), ["few"]))
    sha256 = hashlib.sha256(data).hexdigest()
    challenge = {
        "accepted_share": 0.0,
        "images": 32,
        "by_kind": {"blobs": {"images": 32, "before": 0.9, "accepted": 0.0}},
        "true_lost": 0.02,
        "labelled_images": 20,
        "by_class": {"basic": 20},
        "typicality": sha256,
        "features": ["few"],
        "min_typicality": 0.02,
        "min_domain_score": None,
        "notes": [],
    }
    run_file = root / RUN_FILE
    run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"challenge": challenge}))
    path = typicality_path(sha256)
    open_storage(root, create=False).publish(path, data)
    return path


def test_what_candidates_are_compared_with_is_the_file_that_the_run_names(run):
    with_typicality(run)
    storage = open_storage(run, create=False)
    assert load_typicality(storage, read_run(storage)) is not None
    found = check_run(storage)
    assert (found.problems, found.notes) == ((), ())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.unlink(), "it is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its content is not what its name says"),
    ],
)
def test_a_lost_or_changed_typicality_is_found_and_stops_the_run(run, damage, problem):
    path = with_typicality(run)
    damage(run / path)
    storage = open_storage(run, create=False)
    [found] = check_run(storage).problems
    assert (found.rule, found.path) == ("typicality is what run.json names", path)
    assert found.detail == f"{path}: {problem}"
    with pytest.raises(ManifestError, match=problem):
        load_typicality(storage, read_run(storage))


def with_head(root: Path) -> str:
    """The path of the head that judges the class."""
    head = Head(("basic", "burnt"), (0, 1), {"final": np.ones((4, 2))}, np.zeros(2), 1.0, 1.0, 0.02)
    data = heads.to_bytes(head)
    sha256 = hashlib.sha256(data).hexdigest()
    recorded = HEAD | {"sha256": sha256, "bytes": len(data)}
    run_file = root / RUN_FILE
    run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"heads": {"class": recorded}}))
    open_storage(root, create=False).publish(head_path(sha256), data)
    return head_path(sha256)


def test_a_head_is_the_file_that_the_run_names(run):
    with_head(run)
    storage = open_storage(run, create=False)
    loaded = load_heads(storage, read_run(storage))
    assert loaded["class"].values == ("basic", "burnt")
    found = check_run(storage)
    assert (found.problems, found.notes) == ((), ())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.unlink(), "it is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its content is not what its name says"),
        (lambda file: file.write_bytes(bytes(heads.MAX_HEAD_BYTES + 1)), "bytes"),
    ],
)
def test_a_lost_or_changed_head_is_found_and_stops_the_run(run, damage, problem):
    path = with_head(run)
    damage(run / path)
    storage = open_storage(run, create=False)
    [found] = check_run(storage).problems
    assert (found.rule, found.path) == ("heads are what run.json names", path)
    assert problem in found.detail
    with pytest.raises(BalancerError, match=problem):
        load_heads(storage, read_run(storage))


def rows(*planted: dict[str, Any]) -> Fault:
    return lambda run: commit(run, *planted)


def remove(path: str) -> Fault:
    return lambda run: (run / path).unlink()


def change(path: str, how: Callable[[bytes], bytes]) -> Fault:
    def plant(run: Path) -> None:
        (run / path).write_bytes(how((run / path).read_bytes()))

    return plant


def overwrite(path: str, data: bytes) -> Fault:
    return change(path, lambda _: data)


def flip(data: bytes) -> bytes:
    return data[:-300] + bytes([data[-300] ^ 4]) + data[-299:]


def copy(source: str, target: str) -> Fault:
    def plant(run: Path) -> None:
        shutil.copyfile(run / source, run / target)

    return plant


def verdicts(*changed: dict[str, Any]) -> Fault:
    """Verdicts as committed by a driver that takes no care whether their rows are there."""

    def plant(run: Path) -> None:
        log = start(open_storage(run, create=False))
        log._ids.ids.update(row["id"] for row in changed)
        log.commit_verdicts(changed)

    return plant


def steps(*faults: Fault) -> Fault:
    def plant(run: Path) -> None:
        for fault in faults:
            fault(run)

    return plant


def link_outside(run: Path) -> None:
    (run.parent / "secret").write_bytes(image_bytes(f"{ONE}-1"))
    (run / IMAGE).unlink()
    (run / IMAGE).symlink_to(run.parent / "secret")


def head_of(run_id: str, seq: int = 1) -> Fault:
    """A head that is whole, and names another fragment."""

    def plant(run: Path) -> None:
        other = run.parent / "other"
        log = start(open_storage(other, create=True), run_id=run_id)
        for _ in range(seq - 1):
            log.commit_verdicts([], {"why": "none"})
        shutil.copyfile(other / HEAD_FILE, run / HEAD_FILE)

    return plant


ANOTHER = row("basic/dim/0009")
OUTSIDE = {"file_name": "../secret.png"}
REVOKED = verdicts(revoked(row(ONE), "class"))

FAULTS = [
    ("run.json is readable", RUN_FILE, overwrite(RUN_FILE, b"{")),
    (
        "run.json is readable",
        RUN_FILE,
        change(RUN_FILE, lambda data: data.replace(b'"target"', b'"targets"', 1)),
    ),
    ("candidates are of their cell", fragment_path(8), rows({**ANOTHER, "lighting": "harsh"})),
    ("candidates are of their cell", fragment_path(8), rows({**ANOTHER, "class": "burnt"})),
    ("log without gaps", fragment_path(3), remove(fragment_path(3))),
    ("log without gaps", fragment_path(6), remove(fragment_path(6))),
    ("log without gaps", fragment_path(5), steps(*map(remove, (fragment_path(5), fragment_path(6))))),
    ("log is there", LOG_DIR, lambda run: shutil.rmtree(run / LOG_DIR)),
    ("head of the log is readable", HEAD_FILE, overwrite(HEAD_FILE, b"{")),
    ("head of the log is readable", HEAD_FILE, change(HEAD_FILE, lambda data: data.replace(b"6", b"5", 1))),
    ("head belongs to the run", HEAD_FILE, head_of("run-2")),
    ("hash chain", fragment_path(3), head_of("run-1", seq=3)),
    ("fragment is whole", fragment_path(2), change(fragment_path(2), lambda data: data[:-1])),
    ("fragment is whole", fragment_path(6), overwrite(fragment_path(6), b"")),
    ("checksum", fragment_path(4), change(fragment_path(4), flip)),
    ("checksum", fragment_path(6), change(fragment_path(6), flip)),
    ("fragment is the one its name says", fragment_path(3), copy(fragment_path(2), fragment_path(3))),
    ("images are there", IMAGE, remove(IMAGE)),
    ("images can be read", IMAGE, link_outside),
    ("images have their size", IMAGE, overwrite(IMAGE, b"short")),
    ("images have their sha256", IMAGE, change(IMAGE, lambda data: data[:-1] + b"?")),
    ("one accepted image a slot", fragment_path(8), rows(row(ONE, 2))),
    ("accepted without a reason", fragment_path(8), rows({**ANOTHER, "reason": "lighting"})),
    ("accepted at its threshold", fragment_path(8), rows({**ANOTHER, "score": 0.59})),
    ("accepted at its threshold", fragment_path(8), rows({**ANOTHER, "score": float("nan")})),
    ("accepted at its threshold", fragment_path(8), rows({**ANOTHER, "threshold": None})),
    ("rejected for a reason", fragment_path(8), rows(rejected("basic/dim/0009", reason=None))),  # type: ignore[arg-type]
    ("known status and source", fragment_path(8), rows({**ANOTHER, "status": "maybe"})),
    ("accepted rows have an image", fragment_path(8), rows({**ANOTHER, "file_name": None})),
    (
        "rejected rows have no image",
        fragment_path(8),
        rows({**rejected("basic/dim/0009"), "file_name": IMAGE}),
    ),
    ("one row an image", fragment_path(8), rows({**ANOTHER, "file_name": IMAGE})),
    ("rows belong to the run", fragment_path(8), rows({**ANOTHER, "run_id": "run-2"})),
    ("cells are planned", fragment_path(8), rows(row("basic/harsh/0000"))),
    ("void by a verdict", fragment_path(8), rows(void("basic/dim/0009"))),
    ("verdicts are on committed rows", fragment_path(8), verdicts(ANOTHER)),
    ("one accepted image a slot", fragment_path(10), steps(REVOKED, rows(row(ONE, 2)), verdicts(row(ONE)))),
    ("accepted rows have an image", fragment_path(8), verdicts(row(ONE, file_name=None))),
    ("void rows have no image", fragment_path(8), verdicts(void(ONE) | {"file_name": IMAGE})),
    ("rejected for a reason", fragment_path(8), verdicts(row(ONE, status="rejected"))),
    ("accepted at its threshold", fragment_path(8), verdicts(row(ONE, threshold=0.8))),
    *(
        (
            "a verdict changes only the verdict",
            fragment_path(8),
            verdicts(revoked(row(ONE) | other, "class")),
        )
        for other in (
            {"file_name": None},
            {"file_name": f"images/{TWO}-2.png"},
            {"sha256": "0" * 64},
            {"num_bytes": 1},
            {"slot": TWO},
            {"cell": "burnt/dim/severe"},
            {"attempt": 2},
            {"seed": 1},
            {"run_id": "run-2"},
            {"source": "real"},
        )
    ),
    ("images are there", IMAGE, steps(REVOKED, remove(IMAGE))),
    (
        "images have their sha256",
        IMAGE,
        steps(REVOKED, change(IMAGE, lambda data: data[:-1] + b"?")),
    ),
    ("no more images than planned", RUN_FILE, rows(*(row(f"basic/dim/{index:04d}") for index in (1, 2, 3)))),
]


@pytest.mark.parametrize(("rule", "path", "plant"), FAULTS)
def test_a_planted_fault_is_found_with_its_rule_and_its_file(run, rule, path, plant):
    plant(run)
    found = fsck(open_storage(run, create=False))
    assert (rule, path) in {(problem.rule, problem.path) for problem in found}


@pytest.mark.parametrize(("rule", "path", "plant"), FAULTS)
def test_the_command_names_the_rule_and_the_file_and_exits_with_1(run, rule, path, plant):
    plant(run)
    result = CliRunner().invoke(main, ["fsck", str(run)])
    assert result.exit_code == 1
    assert f"{path}: {rule}: " in result.stdout


def test_an_id_that_is_there_twice_is_found(run):
    """No driver commits one, so the fragment is written by hand."""
    from balancer.manifest import read_log, read_run
    from balancer.manifest.log.fragment import Stamp, encode
    from balancer.manifest.schema import rows_to_table

    storage = open_storage(run, create=False)
    log = start(storage)
    last = read_log(storage).last
    assert last is not None
    previous = hashlib.sha256(storage.read(fragment_path(last.seq))).hexdigest()
    stamp = Stamp("run-1", last.seq + 1, log.epoch, last.writer, "c", previous, "rows", NOON)
    table = rows_to_table([rejected(TWO)], read_run(storage).schema())
    storage.create(fragment_path(stamp.seq), encode(table, stamp))
    (problem,) = fsck(storage)
    assert (problem.rule, problem.path) == ("ids are unique", fragment_path(stamp.seq))


def test_a_replaced_fragment_breaks_the_chain_of_the_next(run, tmp_path):
    other = tmp_path / "other"
    commit(other, row(ONE))
    shutil.copyfile(other / fragment_path(1), run / fragment_path(1))
    (problem, *_) = fsck(open_storage(run, create=False))
    assert (problem.rule, problem.path) == ("hash chain", fragment_path(2))


def test_rows_after_a_broken_fragment_are_still_checked(run):
    remove(fragment_path(3))(run)
    remove(f"images/{TWO}-2.png")(run)
    rules = {problem.rule for problem in fsck(open_storage(run, create=False))}
    assert rules == {"log without gaps", "images are there"}


def test_verdicts_on_rows_that_are_lost_are_no_problem_of_their_own(run):
    REVOKED(run)
    remove(fragment_path(2))(run)
    assert {problem.rule for problem in fsck(open_storage(run, create=False))} == {"log without gaps"}


def test_an_image_outside_the_run_is_not_even_read(run, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    start(open_storage(run, create=False)).commit([{**ANOTHER, **OUTSIDE}])
    (problem,) = fsck(open_storage(run, create=False))
    assert (problem.rule, problem.path) == ("images can be read", "../secret.png")


# ---- the compacted copy --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound_compacted(sound_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(sound_run, tmp_path_factory.mktemp("compacted") / "run"))
    storage = open_storage(root, create=False)
    compact(storage)
    log = start(storage)
    log.commit_verdicts([revoked(row(ONE), "class"), void(TWO)])
    log.close("interrupted")
    commit(root, row(ONE, 2), rejected(TWO))
    return root


@pytest.fixture
def compacted(sound_compacted: Path, tmp_path: Path) -> Path:
    """The sound run with a compacted copy, of which verdicts and rows came later."""
    return Path(shutil.copytree(sound_compacted, tmp_path / "run"))


def test_a_sound_compacted_copy_is_looked_at_and_has_no_problems(compacted):
    found = check_run(open_storage(compacted, create=False))
    assert (found.problems, found.notes) == ((), ())
    assert (found.rows, found.compacted) == (5, 4)
    result = CliRunner().invoke(main, ["fsck", str(compacted)])
    assert ", 5 rows, 4 compacted rows and " in result.stdout
    assert result.stdout.endswith(" checked: no problems\n")


def data_file(run: Path, number: int = 0) -> Path:
    return sorted((run / DATA_DIR).rglob("*.parquet"))[number]


def with_other_rows(run: Path) -> None:
    """A file whose rows someone changed, and an index that says all is well."""
    storage = open_storage(run, create=False)
    index = read_index(storage, "run-1")
    assert index is not None
    file = index.files[0]
    table = pq.read_table(pa.BufferReader(storage.read(file.path)))
    changed = table.set_column(table.column_names.index("phash"), "phash", pa.array(["0" * 16] * len(table)))
    written = Files(storage, info_of(run).schema()).write(file.values, changed)
    publish_index(storage, dataclasses.replace(index, files=(written, *index.files[1:])))


def index_with(change: Callable[[Any], dict[str, Any]]) -> Fault:
    def plant(run: Path) -> None:
        storage = open_storage(run, create=False)
        index = read_index(storage, "run-1")
        assert index is not None
        publish_index(storage, dataclasses.replace(index, **change(index)))

    return plant


def change_file(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


def info_of(run: Path) -> Any:
    return read_run(open_storage(run, create=False))


SAME = "compacted rows are those of the log"

COPY_FAULTS: list[tuple[str, Callable[[Path], object]]] = [
    ("index of the compacted copy is readable", overwrite(INDEX_FILE, b"{")),
    ("compacted copy belongs to the run", index_with(lambda index: {"run_id": "run-2"})),
    ("compacted copy is of this log", index_with(lambda index: {"sha256": "0" * 64})),
    ("log without gaps", index_with(lambda index: {"covers": 99})),
    ("compacted files are there", lambda run: data_file(run).unlink()),
    ("compacted files have their size", lambda run: data_file(run).write_bytes(b"PAR1")),
    ("compacted files have their sha256", lambda run: change_file(data_file(run), flip)),
    (SAME, with_other_rows),
    (SAME, index_with(lambda index: {"rows": 3})),
    (SAME, index_with(lambda index: {"files": index.files[:-1]})),
    (SAME, index_with(lambda index: {"files": (*index.files, index.files[0])})),
    (SAME, index_with(lambda index: {"files": index.files[::-1]})),
]


@pytest.mark.parametrize(("rule", "plant"), COPY_FAULTS)
def test_a_fault_planted_in_the_compacted_copy_is_found_by_its_rule(compacted, rule, plant):
    plant(compacted)
    assert rule in {problem.rule for problem in fsck(open_storage(compacted, create=False))}
    result = CliRunner().invoke(main, ["fsck", str(compacted)])
    assert result.exit_code == 1
    assert f": {rule}: " in result.stdout


def test_numbers_that_are_none_are_no_difference(run):
    storage = open_storage(run, create=False)
    start(storage).commit([rejected("basic/dim/0009", score=float("nan"))])
    compact(storage)
    assert fsck(storage) == []


def referenced(tmp_path: Path, data: bytes) -> Path:
    """A run that records where its real image is instead of copying it."""
    root, image = tmp_path / "run", tmp_path / "a.png"
    image.write_bytes(data)
    config = CONFIG | {"output": {"real_images": "reference"}}
    right = image_bytes("a")
    there: dict[str, Any] = {"sha256": hashlib.sha256(right).hexdigest(), "num_bytes": len(right)}
    log = start(open_storage(root, create=True), config=config)
    log.commit([real("a.png", file_name=str(image), **there)])
    return root


def test_real_images_kept_elsewhere_are_hashed_there(tmp_path):
    found = check_run(open_storage(referenced(tmp_path, image_bytes("a")), create=False))
    assert (found.problems, found.images) == ((), 1)


def test_a_real_image_kept_elsewhere_that_changed_is_found(tmp_path):
    root = referenced(tmp_path, image_bytes("b"))
    assert [problem.rule for problem in fsck(open_storage(root, create=False))] == [
        "images have their sha256"
    ]
    (tmp_path / "a.png").unlink()
    assert [problem.rule for problem in fsck(open_storage(root, create=False))] == ["images are there"]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        (f"{LOG_DIR}/.{'0' * 19}9.arrow.ab.tmp", "no temporary files"),
        ("images/basic/.0001-1.png.ab.tmp", "no temporary files"),
        ("images/basic/dim/0009-1.png", "no unreferenced images"),
        (f"{LOG_DIR}/notes.txt", "nothing foreign in the log"),
        (f"{DATA_DIR}/earlier/00001.parquet", "no superseded compacted files"),
    ],
)
def test_leftovers_are_notes_and_no_problems(run, path, rule):
    open_storage(run, create=False).publish(path, b"left over")
    found = check_run(open_storage(run, create=False))
    assert found.problems == ()
    assert [(note.rule, note.path) for note in found.notes] == [(rule, path)]
    result = CliRunner().invoke(main, ["fsck", str(run)])
    assert result.exit_code == 0
    assert path in result.stderr


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(flip(path.read_bytes())), Path.unlink])
def test_images_whose_rows_cannot_be_read_are_counted_and_not_called_unnamed(run, damage):
    open_storage(run, create=False).publish("images/basic/dim/0009-1.png", b"left over")
    damage(run / fragment_path(2))
    [note] = check_run(open_storage(run, create=False)).notes
    assert (note.rule, note.path) == ("no unreferenced images", "images")
    assert note.detail == (
        f"2 images, such as {IMAGE}, may be named by rows that cannot be read (in {fragment_path(2)});"
        " no other row names them"
    )


def test_several_unreadable_fragments_are_counted(run):
    (run / fragment_path(5)).unlink()
    (run / fragment_path(2)).unlink()
    [note] = check_run(open_storage(run, create=False)).notes
    assert "2 fragments, such as " in note.detail
    assert note.detail.endswith("; no other row names it")


def test_the_command_says_what_it_looked_at(run):
    result = CliRunner().invoke(main, ["fsck", str(run)])
    assert result.stdout == "6 fragments, 4 rows and 3 images checked: no problems\n"


# ---- rejected images -----------------------------------------------------------------------------

KEEPS = CONFIG | {"output": {"rejected_per_reason": 2}}


def with_rejected_images(root: Path, *paths: str, reasons: str = "lighting class") -> Any:
    storage = open_storage(root, create=True)
    log = start(storage, config=KEEPS)
    for number, reason in enumerate(reasons.split()):
        log.commit([rejected(f"basic/dim/{number:04d}", reason=reason)])
    for path in paths:
        storage.replace(path, b"an image")
    return [(note.path, note.detail) for note in check_run(storage).notes]


def test_rejected_images_that_were_kept_and_are_gone_are_noted_by_reason(tmp_path):
    assert with_rejected_images(tmp_path, "rejected/class/basic/dim/0001-1.png") == [
        ("rejected/lighting", "none is left of up to 1 that were kept for the report")
    ]


def test_rejected_images_under_the_names_of_earlier_versions_are_found(tmp_path):
    reason = "A Facet"
    storage = open_storage(tmp_path, create=True)
    start(storage, config=KEEPS).commit([rejected(ONE, reason=reason)])
    assert [note.rule for note in check_run(storage).notes] == ["rejected images are there"]
    storage.replace(f"rejected/{slug_of_before(reason)}/basic/dim/0000-1.png", b"an image")
    assert check_run(storage).notes == ()


def test_a_rejection_by_a_later_verdict_kept_no_image(tmp_path):
    log = start(open_storage(tmp_path, create=True), config=KEEPS)
    log.commit([row(ONE)])
    log.commit_verdicts([revoked(row(ONE), "near_copy")])
    assert check_run(open_storage(tmp_path, create=False)).notes == ()


# ---- for other programs ----------------------------------------------------------------------------


def test_json_has_all_that_was_found_and_the_exit_code_is_the_same(run):
    sound = CliRunner().invoke(main, ["fsck", str(run), "--json"])
    found = {"problems": [], "notes": [], "fragments": 6, "rows": 4, "images": 3, "compacted": None}
    assert (sound.exit_code, json.loads(sound.stdout)) == (0, found)
    (run / IMAGE).unlink()
    (run / "images" / ".x.tmp").write_bytes(b"half")
    damaged = CliRunner().invoke(main, ["fsck", str(run), "--json"])
    found = json.loads(damaged.stdout)
    detail = f"row '{ONE}-1' names it, it is missing"
    assert (damaged.exit_code, found["images"]) == (1, 2)
    assert found["problems"] == [{"rule": "images are there", "path": IMAGE, "detail": detail}]
    assert [note["rule"] for note in found["notes"]] == ["no temporary files"]


def test_a_problem_cannot_steer_a_terminal(run):
    commit(run, {**ANOTHER, "file_name": "images/\x1b[2J.png"})
    (run / "images" / "\x1b[2J.png").unlink()
    assert "\x1b" not in CliRunner().invoke(main, ["fsck", str(run)]).stdout


def test_a_folder_without_a_run_is_not_checked(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        fsck(open_storage(tmp_path, create=False))
