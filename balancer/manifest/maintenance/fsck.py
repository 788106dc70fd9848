"""Every rule a manifest keeps, checked from the files: the log, its rows, and each image they name.

Some rules hold for every row that was ever committed, those that verdicts replaced since included; others
for the rows that stand, which are what readers see.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import Config, CopiesConfig
from balancer.dataset.leakage import Leak, find_leaks
from balancer.dataset.near_duplicates import COMPARED, KnownImage, known_images
from balancer.errors import BalancerError, ManifestError, StorageError
from balancer.manifest.columns import names_read_by, names_where
from balancer.manifest.image_files import ImageFiles
from balancer.manifest.layout import (
    CURRENT_FILE,
    DATA_DIR,
    IMAGES_DIR,
    INDEX_FILE,
    LOG_DIR,
    PENDING_DIR,
    REJECTED_DIR,
    REVISIONS_DIR,
    RUN_FILE,
    fragment_path,
    fragment_seq,
    head_path,
    typicality_path,
)
from balancer.manifest.log.fragment import BrokenFragmentError, Fragment, check_successor
from balancer.manifest.log.head import LOG_IS_THERE, Head, check_head, lost_log, read_head
from balancer.manifest.log.reader import Entry, last_seq, load_fragment
from balancer.manifest.log.view import reread_rows
from balancer.manifest.maintenance.snapshot_check import check_files, check_rows
from balancer.manifest.row_values import HAS_ID, HAS_IMAGE, MEMBERSHIP, PLANNED, Known, wrong_values
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC, VOID
from balancer.manifest.rules import Rules, collect_rules
from balancer.manifest.runfile import RunInfo, load_head, load_typicality, read_run
from balancer.manifest.snapshot.current import problem_of_current
from balancer.manifest.snapshot.index import DamagedCopyError, Index, check_folders, read_index
from balancer.manifest.unjudged import lacks_a_score
from balancer.review.decisions import Decision, count_unreadable, from_details
from balancer.review.effects import REVIEWED
from balancer.review.pending import read_pending
from balancer.storage import MissingFileError, Storage, is_temporary, slug, slug_of_before
from balancer.text.quantities import counted
from balancer.text.safetext import shortened

READERS = 8
"""Images hashed at once."""

MISSING_TOLD = 1000
"""Missing fragments in a row that are listed one by one."""

_THERE = "images are there"
_READABLE = "images can be read"

_FILE_COLUMNS = names_where(lambda column: column.of_file)

_OWN_RULES = (HAS_ID, MEMBERSHIP, PLANNED, HAS_IMAGE)
"""Of values, that are looked at row by row."""

# What a verdict may not touch; the file, too, unless the row becomes void, or people want an image that was
# rejected.
_LASTING = names_where(lambda column: column.lasting)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A rule that is broken, the file where, and how."""

    rule: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Findings:
    """`notes` are leftovers that do no harm. `rows` counts those that stand, `images` the files that were
    hashed: also those of candidates that were accepted once and are no more. `compacted` are the rows of the
    compacted copy, None if there is none."""

    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    fragments: int
    rows: int
    images: int
    compacted: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A committed row and the fragment that holds it, which may be one of verdicts."""

    path: str
    values: dict[str, Any]
    is_verdict: bool

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    @property
    def accepted(self) -> bool:
        return bool(self["status"] == ACCEPTED)

    @property
    def is_by_people(self) -> bool:
        """Whether people accepted it, whatever the verifier said."""
        return bool(self.values.get(REVIEWED) == ACCEPTED)

    def picked(self, columns: Sequence[str]) -> dict[str, Any]:
        return {column: self[column] for column in columns}

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
    index, of_copy = _index(storage, info)
    fragments, problems = _check_log(storage, info, index.covers if index else 0)
    unread = _find_unread(problems, fragments)
    rules = collect_rules([fragment.stamp for fragment in fragments])
    revised = _revised(info, rules, problems)
    problems.extend(_config(revised))
    problems.extend(_typicality(storage, revised))
    problems.extend(_heads(storage, revised))
    known = Known.of(info)
    values = [problem for fragment in fragments for problem in _values(fragment, known)]
    values += _misnamed(fragments, info)
    fragments = [fragment.narrowed(names_read_by("fsck", info.format)) for fragment in fragments]
    unsound = bool(problems or values)
    of_copy += _copy(storage, info, index, () if unsound else fragments)
    rows = [row for fragment in fragments for row in _rows(fragment)]
    repaired = any(fragment.stamp.event == "repair" for fragment in fragments)
    whole = not problems and not repaired
    problems.extend(_ids(rows, whole))
    problems.extend(problem for problem in values if problem.rule not in _OWN_RULES)
    for rule in (_verdicts, _membership, _files):
        problems.extend(rule(rows))
    problems.extend(_decisions(fragments, rows, whole))
    standing = list({row["id"]: row for row in rows}.values())
    of_copy += _current(storage, info, () if problems or unsound or of_copy else fragments)
    problems.extend(_slots(standing))
    problems.extend(_file_names(standing))
    problems.extend(_quotas(standing, revised, rules.complete))
    listed: list[Problem] = []
    for leak, problem in () if values else _leaks(standing, storage, fragments, revised):
        (listed if leak.listed else problems).append(problem)
    images = [row for row in standing if row["file_name"] is not None]
    files = ImageFiles.of(storage.uri, revised)
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(lambda row: _check_image(row, storage, files), images):
            problems.extend(found)
    compacted = {file.path for file in index.files} if index else None
    paths = storage.list("")
    notes = [*listed, *_leftovers(paths, {row["file_name"] for row in images}, compacted, unread)]
    notes += _rejected_images(paths, rows, info)
    notes += _pending(storage, info)
    unchecked = sum(problem.rule in (_THERE, _READABLE) for problem in problems)
    return Findings(
        problems=(*problems, *of_copy),
        notes=tuple(notes),
        fragments=len(fragments),
        rows=len(standing),
        images=len(images) - unchecked,
        compacted=index.rows if index else None,
    )


def _index(storage: Storage, info: RunInfo) -> tuple[Index | None, list[Problem]]:
    try:
        index = read_index(storage, info.run_id)
        if index is not None:
            check_folders(index, info)
        return index, []
    except DamagedCopyError as error:
        return None, [Problem(error.rule, error.path, error.detail)]


def _copy(
    storage: Storage, info: RunInfo, index: Index | None, fragments: Sequence[Fragment]
) -> list[Problem]:
    """What is wrong with the compacted copy; its rows are compared if the log and its files are sound."""
    if index is None:
        return []
    found = list(check_files(storage, index))
    if fragments and not found:
        found += check_rows(storage, index, [Entry.of(fragment) for fragment in fragments], info)
    return [Problem(error.rule, error.path, error.detail) for error in found]


def _current(storage: Storage, info: RunInfo, fragments: Sequence[Fragment]) -> list[Problem]:
    """What is wrong with the file of accepted rows, if the log is sound."""
    if not fragments:
        return []
    detail = problem_of_current(storage, info.run_id, fragments[-1])
    return [Problem("current rows are those of the log", CURRENT_FILE, detail)] if detail else []


def _check_log(storage: Storage, info: RunInfo, copied: int) -> tuple[list[Fragment], list[Problem]]:
    """The fragments that can be read, each with what is wrong in the log."""
    head, problems = _head(storage, info)
    try:
        last = last_seq(storage)
    except BalancerError as error:
        return [], [*problems, Problem("log is a folder", LOG_DIR, error.message)]
    if not last and (lost := lost_log(storage, head, copied)):
        return [], [*problems, Problem(LOG_IS_THERE, LOG_DIR, lost)]
    fragments: list[Fragment] = []
    previous: Fragment | None = None
    schema = info.schema()
    trusted = True  # whether `previous` is really the fragment before
    there = sorted(filter(None, map(fragment_seq, storage.list(LOG_DIR))))
    for seq in _numbers(there, max(last, copied, head.seq if head else 0)):
        try:
            fragment = load_fragment(storage, seq, schema)
            fragments.append(fragment)
            if trusted:
                check_successor(fragment, previous, info.run_id)
            check_head(head, fragment)
            previous, trusted = fragment, True
        except BrokenFragmentError as error:
            problems.append(Problem(error.rule, error.path, error.detail))
            readable = bool(fragments) and fragments[-1].stamp.seq == seq
            previous, trusted = (fragments[-1], True) if readable else (None, False)
    return fragments, problems


def _numbers(there: Sequence[int], last: int) -> Iterator[int]:
    """The numbers 1 to `last`, of many that are missing in a row the first ones."""
    before = 0
    for seq in (*there, last + 1):
        yield from range(before + 1, min(seq, before + 1 + MISSING_TOLD))
        if seq <= last:
            yield seq
        before = seq


def _head(storage: Storage, info: RunInfo) -> tuple[Head | None, list[Problem]]:
    try:
        return read_head(storage, info.run_id), []
    except BrokenFragmentError as error:
        return None, [Problem(error.rule, error.path, error.detail)]


def _values(fragment: Fragment, known: Known) -> Iterator[Problem]:
    """What readers refuse."""
    path = fragment_path(fragment.stamp.seq)
    return (Problem(rule, path, detail) for rule, detail in wrong_values(fragment.table, known))


def _typicality(storage: Storage, info: RunInfo) -> Iterator[Problem]:
    """The file without which the run cannot go on."""
    try:
        load_typicality(storage, info)
    except BalancerError as error:
        yield Problem(
            "typicality is what run.json names", typicality_path(info.typicality or ""), error.message
        )


def _heads(storage: Storage, info: RunInfo) -> Iterator[Problem]:
    """The files without which the run cannot go on."""
    for name, sha256 in info.head_files.items():
        try:
            load_head(storage, info, name)
        except BalancerError as error:
            yield Problem("heads are what run.json names", head_path(sha256), error.message)


def _revised(info: RunInfo, rules: Rules, problems: list[Problem]) -> RunInfo:
    """The run in its last plan revision."""
    try:
        return info.under(rules)
    except ManifestError as error:
        problems.append(Problem("plan revisions are there", REVISIONS_DIR, error.message))
        return info


def _config(info: RunInfo) -> Iterator[Problem]:
    """A config that reports, exports and later runs do not understand."""
    try:
        info.config_as(Config)
    except ManifestError as error:
        yield Problem("run.json is readable", RUN_FILE, error.message)


def _misnamed(fragments: Sequence[Fragment], info: RunInfo) -> Iterator[Problem]:
    """Candidates whose class or facet values are not those of their cell."""
    names = ["cell", CLASS_PROPERTY, *info.facets]
    keys = [f"column {number}" for number in range(len(names))]  # Arrow takes `.dot` for a path
    planned = {
        cell["cell"]: [cell.get(name) for name in names[1:]]
        for revision in (info, *info.later.values())
        for cell in revision.plan
    }
    for fragment in fragments:
        table = fragment.table
        columns = [table[name].cast(pa.string()) for name in names]
        is_made = pc.equal(table["source"].cast(pa.string()), SYNTHETIC)
        named = pa.table(columns, names=keys).filter(is_made)
        for row in named.group_by(keys, use_threads=False).aggregate([]).to_pylist():
            cell, *values = (row[key] for key in keys)
            if cell in planned and planned[cell] != values:
                detail = f"a row of cell {cell!r} says it is {shortened(', '.join(map(str, values)))}"
                yield Problem("candidates are of their cell", fragment_path(fragment.stamp.seq), detail)


def _rows(fragment: Fragment) -> Iterator[_Row]:
    path = fragment_path(fragment.stamp.seq)
    for values in fragment.table.to_pylist():
        yield _Row(path, values, fragment.stamp.replaces_rows)


def _ids(rows: Sequence[_Row], whole: bool) -> Iterator[Problem]:
    """An id is committed once, or again after it became void; a verdict is one on a row that is there,
    and changes the verdict alone. Unless the log is `whole`, that row may be lost, and is not looked for; or
    the verdict, and one that follows says which row counts."""
    before: dict[str, _Row] = {}
    twice: dict[str, _Row] = {}
    for row in rows:
        known = before.get(row["id"])
        if row["id"] is None:
            yield row.breaks(HAS_ID, "has none")
        elif row.is_verdict:
            if whole:
                yield from _only_the_verdict_changed(known, row)
            else:
                twice.pop(row["id"], None)
        elif known is not None and known["status"] != VOID:
            twice.setdefault(row["id"], row)
        before[row["id"]] = row
    for row in twice.values():
        yield row.breaks("ids are unique", "is there twice")


def _only_the_verdict_changed(before: _Row | None, after: _Row) -> Iterator[Problem]:
    if before is None:
        yield after.breaks("verdicts are on committed rows", "is on none")
        return
    gets_file = before["file_name"] is None and after.is_by_people
    lasting = _LASTING if after["status"] == VOID or gets_file else (*_LASTING, *_FILE_COLUMNS)
    for column in lasting:
        if before[column] != after[column]:
            detail = f"has another {column}: {after[column]!r}, not {before[column]!r}"
            yield after.breaks("a verdict changes only the verdict", detail)


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
        if row["status"] == REJECTED and row["reason"] is None:
            yield row.breaks("rejected for a reason", "has none")
        if row["status"] == VOID and not row.is_verdict:
            yield row.breaks("void by a verdict", "was never judged otherwise")
        if row.accepted and row["source"] == SYNTHETIC and not (row.is_by_people or _reaches_threshold(row)):
            yield row.breaks(
                "accepted at its threshold", f"scored {row['score']}, its threshold is {row['threshold']}"
            )


def _reaches_threshold(row: _Row) -> bool:
    score, threshold = row["score"], row["threshold"]
    if score is None:
        return threshold is not None and lacks_a_score(row["scores"], row["unjudged"])
    return threshold is not None and bool(score >= threshold)


def _decisions(fragments: Sequence[Fragment], rows: Sequence[_Row], whole: bool) -> Iterator[Problem]:
    """What people decided is in the details of verdicts, about rows that are there: of a log that is not
    `whole`, these may be lost."""
    ids = {row["id"] for row in rows}
    seen: dict[str, Decision] = {}
    for fragment in fragments:
        path = fragment_path(fragment.stamp.seq)
        if unreadable := count_unreadable(fragment.stamp.detail):
            yield Problem("decisions can be read", path, f"{counted(unreadable, 'entry', 'entries')} cannot")
        for decision in from_details([fragment.stamp.detail]):
            # The same one twice is one whose acknowledgement was lost, and counts once.
            if seen.setdefault(decision.key, decision) != decision:
                yield Problem("decisions have keys of their own", path, f"two have {decision.key}")
            if whole and decision.item not in ids:
                detail = (
                    f"decision {decision.key} is about {shortened(repr(decision.item))}, which has no row"
                )
                yield Problem("decisions are on committed rows", path, detail)


def _pending(storage: Storage, info: RunInfo) -> Iterator[Problem]:
    """Decisions that wait for somebody to take them into the log, and files in which nobody can read any."""
    files = read_pending(storage, info.run_id)
    waiting = sum(len(file.decisions) for file in files)
    if waiting:
        detail = (
            f"{counted(waiting, 'decision')} in {counted(len(files), 'file')}; the next start takes them in"
        )
        yield Problem("decisions are in the log", PENDING_DIR, detail)
    for file in files:
        if file.problem:
            yield Problem("waiting decisions can be read", file.path, file.problem)


def _membership(rows: Sequence[_Row]) -> Iterator[Problem]:
    for row in rows:
        if row["status"] not in (ACCEPTED, REJECTED, VOID) or row["source"] not in (REAL, SYNTHETIC):
            yield row.breaks(MEMBERSHIP, f"is {row['status']!r}, {row['source']!r}")


def _files(rows: Sequence[_Row]) -> Iterator[Problem]:
    """A rejected candidate names an image only if it was accepted before: so by a verdict, which keeps it."""
    for row in rows:
        name = row["file_name"]
        if row.accepted and name is None:
            yield row.breaks(HAS_IMAGE, "names no file")
        if name is not None and row["status"] == REJECTED and not row.is_verdict:
            yield row.breaks("rejected rows have no image", f"names {name}")
        if name is not None and row["status"] == VOID:
            yield row.breaks("void rows have no image", f"names {name}")


def _file_names(rows: Sequence[_Row]) -> Iterator[Problem]:
    named: set[str] = set()
    for row in rows:
        name = row["file_name"]
        if name in named:
            yield row.breaks("one row an image", f"names {name}, as another row does")
        if name is not None:
            named.add(name)


def _quotas(rows: Sequence[_Row], info: RunInfo, is_complete: bool) -> Iterator[Problem]:
    quotas = {cell["cell"]: cell["quota"] for cell in info.plan}
    generated = [row for row in rows if row["source"] == SYNTHETIC]
    for row in generated:
        if row["run_id"] != info.run_id:
            yield row.breaks("rows belong to the run", f"is of run {row['run_id']!r}")
        if row["cell"] not in quotas:
            yield row.breaks(PLANNED, f"is of cell {row['cell']!r}, which the plan lacks")
    counts = Counter(row["cell"] for row in generated if row.accepted) if is_complete else {}
    for cell, count in counts.items():  # a revision that was interrupted has images of the plan before
        if count > quotas.get(cell, count):
            detail = f"cell {cell!r} has {counted(count, 'accepted image')}, its quota is {quotas[cell]}"
            yield Problem("no more images than planned", RUN_FILE, detail)


def _leaks(
    rows: Sequence[_Row], storage: Storage, fragments: Sequence[Fragment], info: RunInfo
) -> Iterator[tuple[Leak, Problem]]:
    limits = info.config_as(CopiesConfig, "verification", "copies")

    def load(ids: Sequence[str]) -> list[KnownImage]:
        entries = [Entry.of(fragment) for fragment in fragments]
        return known_images(reread_rows(entries, storage, info.schema(), ids, COMPARED))

    by_id = {row["id"]: row for row in rows}
    for leak in find_leaks(rows, load, limits):
        yield leak, by_id[leak.row_id].breaks(leak.rule, leak.detail)


def _check_image(row: _Row, storage: Storage, files: ImageFiles) -> list[Problem]:
    name: str = row["file_name"]
    try:
        data = files.read_from(storage, name, row["source"])
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


def _rejected_images(files: Sequence[str], rows: Sequence[_Row], info: RunInfo) -> Iterator[Problem]:
    """Reasons of which no rejected image is left, although the config has some kept for the report. A crash
    may cost a few of them, because no verdict waits for their files; it seldom costs all."""
    kept = info.config.get("output", {}).get("rejected_per_reason", 0)
    if not isinstance(kept, int) or kept <= 0:
        return
    there = {path.split("/")[1] for path in files if path.startswith(f"{REJECTED_DIR}/")}
    rejected = Counter(
        row["reason"] for row in rows if row["status"] == REJECTED and row["reason"] and not row.is_verdict
    )
    for reason, count in rejected.items():
        if there.isdisjoint((slug(reason), slug_of_before(reason))):
            detail = f"none is left of up to {min(kept, count)} that were kept for the report"
            yield Problem("rejected images are there", f"{REJECTED_DIR}/{slug(reason)}", detail)


def _find_unread(problems: Sequence[Problem], fragments: Sequence[Fragment]) -> list[str]:
    """The fragments whose rows are unknown, or the folder of the log if all of it is gone."""
    known = {fragment_path(fragment.stamp.seq) for fragment in fragments}
    paths = dict.fromkeys(problem.path for problem in problems)
    return [path for path in paths if path.startswith(LOG_DIR) and path not in known]


def _leftovers(
    files: Sequence[str], referenced: set[str], compacted: set[str] | None, unread: Sequence[str]
) -> Iterator[Problem]:
    unnamed = []
    for path in files:
        if is_temporary(path):
            yield Problem(
                "no temporary files", path, "a writer was stopped before it was done, or is at work"
            )
        elif path.startswith(f"{IMAGES_DIR}/") and path not in referenced:
            unnamed.append(path)
        elif path.startswith(f"{DATA_DIR}/") and path != INDEX_FILE and path not in (compacted or ()):
            yield Problem("no superseded compacted files", path, "no reader looks at it any more, or not yet")
        elif path.startswith(f"{LOG_DIR}/") and fragment_seq(path) is None:
            yield Problem("nothing foreign in the log", path, "it is no fragment, and is not read")
    yield from _unnamed_images(unnamed, unread)


def _unnamed_images(paths: Sequence[str], unread: Sequence[str]) -> Iterator[Problem]:
    """Images that no row names; of a log with unreadable fragments, in one line with their number."""
    rule = "no unreferenced images"
    if not unread:
        for path in paths:
            yield Problem(rule, path, "no row names it, at least not yet")
    elif paths:
        where = unread[0] if len(unread) == 1 else f"{counted(len(unread), 'fragment')}, such as {unread[0]}"
        detail = (
            f"{counted(len(paths), 'image')}, such as {paths[0]}, may be named by rows that cannot be read"
            f" (in {where}); no other row names {'it' if len(paths) == 1 else 'them'}"
        )
        yield Problem(rule, IMAGES_DIR, detail)
