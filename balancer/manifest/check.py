"""Every rule a manifest keeps, checked from the files: the log, its rows, and each image they name."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from balancer.errors import ManifestError, StorageError
from balancer.manifest.fragment import BrokenFragmentError, Fragment, check_successor
from balancer.manifest.layout import IMAGES_DIR, LOG_DIR, RUN_FILE, fragment_path, fragment_seq
from balancer.manifest.log import last_seq, load_fragment
from balancer.manifest.runfile import RunInfo, read_run
from balancer.storage import MissingFileError, Storage

READERS = 8
"""Images hashed at once."""

_THERE = "images are there"
_READABLE = "images can be read"

_COLUMNS = (
    "id", "file_name", "cell", "slot", "source", "status", "reason", "score", "threshold",
    "sha256", "num_bytes", "run_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A rule that is broken, the file where, and how."""

    rule: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Findings:
    """`notes` are leftovers that do no harm. `images` counts the files that were hashed."""

    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    fragments: int
    rows: int
    images: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A committed row and the fragment that holds it."""

    path: str
    values: dict[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    @property
    def accepted(self) -> bool:
        return bool(self["status"] == "accepted")

    def breaks(self, rule: str, detail: str) -> Problem:
        return Problem(rule, self.path, f"row {self['id']!r} {detail}")


def fsck(storage: Storage) -> list[Problem]:
    """Every broken rule of a run; empty if it is sound. UsageError if the folder holds no run."""
    return list(check_run(storage).problems)


def check_run(storage: Storage) -> Findings:
    """As `fsck`, with harmless leftovers and what was looked at."""
    try:
        info = read_run(storage)
    except ManifestError as error:
        return Findings((Problem("run.json is readable", RUN_FILE, error.message),), (), 0, 0, 0)
    fragments, problems = _check_log(storage, info)
    rows = [row for fragment in fragments for row in _rows(fragment)]
    for rule in (_ids, _slots, _verdicts, _membership, _file_names):
        problems.extend(rule(rows))
    problems.extend(_quotas(rows, info))
    images = [row for row in rows if row["file_name"] is not None]
    by_reference = info.config.get("output", {}).get("real_images") == "reference"
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(lambda row: _check_image(row, storage, by_reference), images):
            problems.extend(found)
    notes = _leftovers(storage, {row["file_name"] for row in images})
    unread = sum(problem.rule in (_THERE, _READABLE) for problem in problems)
    return Findings(tuple(problems), tuple(notes), len(fragments), len(rows), len(images) - unread)


def _check_log(storage: Storage, info: RunInfo) -> tuple[list[Fragment], list[Problem]]:
    """The fragments that can be read, each with what is wrong in the log."""
    fragments: list[Fragment] = []
    problems: list[Problem] = []
    previous: Fragment | None = None
    trusted = True  # whether `previous` is really the fragment before
    for seq in range(1, last_seq(storage) + 1):
        try:
            fragment = load_fragment(storage, seq, info.schema())
            fragments.append(fragment)
            if trusted:
                check_successor(fragment, previous, info.run_id)
            previous, trusted = fragment, True
        except BrokenFragmentError as error:
            problems.append(Problem(error.rule, error.path, error.detail))
            readable = bool(fragments) and fragments[-1].stamp.seq == seq
            previous, trusted = (fragments[-1], True) if readable else (None, False)
    return fragments, problems


def _rows(fragment: Fragment) -> Iterator[_Row]:
    path = fragment_path(fragment.stamp.seq)
    for values in fragment.table.select(list(_COLUMNS)).to_pylist():
        yield _Row(path, values)


def _ids(rows: Sequence[_Row]) -> Iterator[Problem]:
    seen: set[str] = set()
    for row in rows:
        if row["id"] is None:
            yield row.breaks("every row has an id", "has none")
        elif row["id"] in seen:
            yield row.breaks("ids are unique", "is there twice")
        seen.add(row["id"])


def _slots(rows: Sequence[_Row]) -> Iterator[Problem]:
    filled: set[str] = set()
    for row in rows:
        if row.accepted and row["slot"] is not None:
            if row["slot"] in filled:
                yield row.breaks("one accepted image a slot", f"is another one of slot {row['slot']!r}")
            filled.add(row["slot"])


def _verdicts(rows: Sequence[_Row]) -> Iterator[Problem]:
    for row in rows:
        if row.accepted and row["reason"] is not None:
            yield row.breaks(
                "accepted without a reason", f"is accepted, yet {row['reason']!r} speaks against it"
            )
        if row["status"] == "rejected" and row["reason"] is None:
            yield row.breaks("rejected for a reason", "has none")
        if row.accepted and row["source"] == "synthetic" and not _reaches_threshold(row):
            yield row.breaks(
                "accepted at its threshold", f"scored {row['score']}, its threshold is {row['threshold']}"
            )


def _reaches_threshold(row: _Row) -> bool:
    score, threshold = row["score"], row["threshold"]
    return score is not None and threshold is not None and bool(score >= threshold)


def _membership(rows: Sequence[_Row]) -> Iterator[Problem]:
    for row in rows:
        if row["status"] not in ("accepted", "rejected") or row["source"] not in ("real", "synthetic"):
            yield row.breaks("known status and source", f"is {row['status']!r}, {row['source']!r}")


def _file_names(rows: Sequence[_Row]) -> Iterator[Problem]:
    named: set[str] = set()
    for row in rows:
        name = row["file_name"]
        if row.accepted and name is None:
            yield row.breaks("accepted rows have an image", "names no file")
        if not row.accepted and name is not None:
            yield row.breaks("rejected rows have no image", f"names {name}")
        if name in named:
            yield row.breaks("one row an image", f"names {name}, as another row does")
        if name is not None:
            named.add(name)


def _quotas(rows: Sequence[_Row], info: RunInfo) -> Iterator[Problem]:
    quotas = {cell["cell"]: cell["quota"] for cell in info.plan}
    generated = [row for row in rows if row["source"] == "synthetic"]
    for row in generated:
        if row["run_id"] != info.run_id:
            yield row.breaks("rows belong to the run", f"is of run {row['run_id']!r}")
        if row["cell"] not in quotas:
            yield row.breaks("cells are planned", f"is of cell {row['cell']!r}, which the plan lacks")
    for cell, count in Counter(row["cell"] for row in generated if row.accepted).items():
        if count > quotas.get(cell, count):
            detail = f"cell {cell!r} has {count} accepted images, its quota is {quotas[cell]}"
            yield Problem("no more images than planned", RUN_FILE, detail)


def _check_image(row: _Row, storage: Storage, by_reference: bool) -> list[Problem]:
    name: str = row["file_name"]
    try:
        if by_reference and row["source"] == "real" and os.path.isabs(name):
            data = _read_referenced(name)
        else:
            data = storage.read(name)
    except MissingFileError:
        return [Problem(_THERE, name, f"row {row['id']!r} names it, it is missing")]
    except StorageError as error:
        return [Problem(_READABLE, name, error.message)]
    problems = []
    if len(data) != row["num_bytes"]:
        detail = f"it has {len(data)} bytes, row {row['id']!r} says {row['num_bytes']}"
        problems.append(Problem("images have their size", name, detail))
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        detail = f"its content is not what row {row['id']!r} was written for"
        problems.append(Problem("images have their sha256", name, detail))
    return problems


def _read_referenced(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise MissingFileError(f"{name} is missing") from error
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror}") from error


def _leftovers(storage: Storage, referenced: set[str]) -> Iterator[Problem]:
    for path in storage.list(""):
        name = path.rpartition("/")[2]
        if name.startswith(".") and name.endswith(".tmp"):
            yield Problem(
                "no temporary files", path, "a writer was stopped before it was done, or is at work"
            )
        elif path.startswith(f"{IMAGES_DIR}/") and path not in referenced:
            yield Problem("no unreferenced images", path, "no row names it, at least not yet")
        elif path.startswith(f"{LOG_DIR}/") and fragment_seq(path) is None:
            yield Problem("nothing foreign in the log", path, "it is no fragment, and is not read")
