"""Judge a run's candidates again from the numbers in its rows, under other limits, without generating images.

Once the rules have changed, every judged row records the new ones: its limit, its score, what was not judged,
and why it was rejected. Rows that already do are not written again.

A slot gets the image that a run under the new limits would have given it: its lowest passing attempt with a
kept image. A candidate that now passes, but whose image was not kept, is made again only if its slot has no
other image; until then its row is void.
"""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from balancer.cells import Candidate, Cell
from balancer.config.load import validate_document
from balancer.config.schema import Config
from balancer.config.yaml_reading import Document
from balancer.dataset.near_duplicates import (
    COMPARED,
    KnownImage,
    find_near_duplicates,
    find_near_duplicates_across,
    known_images,
)
from balancer.errors import UsageError
from balancer.manifest.columns import names_read_by, names_where
from balancer.manifest.log.closing import closing_on_error
from balancer.manifest.log.fragment import State
from balancer.manifest.log.view import LogView, read_log, read_rows
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import (
    ACCEPTED,
    NEAREST_COLUMNS,
    REAL,
    REJECTED,
    SYNTHETIC,
    VOID,
    Row,
    RunFacts,
    nearest_columns,
    unjudged_in,
    utc_now,
)
from balancer.manifest.rules import JUDGEABLE, Rules, is_judgeable, merged
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.snapshot.current import renew_current
from balancer.manifest.status import refuse_running
from balancer.review.effects import REVIEWED
from balancer.review.taking import take_in
from balancer.runs.resume import (
    accepted_in_order,
    cells_of_plan,
    effective_config,
    parse_candidate,
    restore_schedule,
    run_facts,
)
from balancer.scheduling.prompts import Rung, ladder
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage
from balancer.verification.verdict import (
    NO_LIMITS,
    DomainLimits,
    Flaw,
    ImageFlags,
    Measurement,
    Nearest,
    Verdict,
    criteria_for,
    judge,
)

SUPERSEDED = "superseded"
"""Reason of a candidate that now passes, while another attempt of its slot gives the image."""

SURPLUS = "surplus"
"""Reason of a candidate that passes, in a slot that the plan no longer has. Its image is kept."""

ORPHANED = "orphaned"
"""Reason of a candidate whose parent has left the dataset: it may be tested on by now, or was removed for a
reason."""

COMMIT_ROWS = 1024
"""Verdicts per commit, approximately; those of one slot stay together."""

PARTS_AT_ONCE = 32
"""Commits whose whole rows are in memory at once; each lot reads the log again."""

_HISTORY = pa.schema(
    [(name, pa.string()) for name in ("source", "cell", "slot", "status", "reason")]
    + [("attempt", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class Change:
    """A row to be written again: its status changes, or stays the same under other rules. `reason` is that
    of a rejection. `rung` is the one that it was judged by, None if it was not judged again."""

    candidate: Candidate
    before: str
    status: str
    reason: str | None
    score: float | None
    nearest: Nearest | None
    rung: Rung | None

    @property
    def is_new_verdict(self) -> bool:
        return self.status != self.before

    @property
    def id(self) -> str:
        return self.candidate.id

    @property
    def unit(self) -> str:
        """What is committed together."""
        return self.candidate.slot.key

    def as_columns(self) -> Row:
        return {"status": self.status, "reason": self.reason}

    def applied_to(self, row: Row, facts: RunFacts) -> Row:
        if self.rung is None:
            return {**row, **self.as_columns(), "review": False}
        accepted = self.status == ACCEPTED
        return {
            **row,
            **self.as_columns(),
            "review": accepted and facts.is_for_review(self.candidate.slot),
            **_judged_by(self.candidate.slot.cell, self.rung, self.score, facts.config),
            **(nearest_columns(self.nearest) if self.nearest else dict.fromkeys(NEAREST_COLUMNS)),
            **(dict.fromkeys(names_where(lambda column: column.of_file)) if self.status == VOID else {}),
        }


@dataclass(frozen=True, slots=True)
class Departure:
    """A real image that is no longer in the dataset as its row has it: `removed` or `replaced`."""

    id: str
    reason: str

    @property
    def unit(self) -> str:
        return self.id

    def applied_to(self, row: Row, facts: RunFacts) -> Row:
        no_file = dict.fromkeys(names_where(lambda column: column.of_file))
        return {**row, "status": VOID, "reason": self.reason, **no_file}


def _judged_by(cell: Cell, rung: Rung, score: float | None, config: Config) -> Row:
    """The columns that record the rules a row was judged by."""
    return {
        "score": score,
        "threshold": rung.threshold,
        "fallback": rung.fallback,
        "unjudged": unjudged_in(cell, config),
    }


@dataclass(frozen=True, slots=True)
class CellChange:
    """Counts of a cell's images: accepted before, of these revoked, restored from kept files, and made again
    by the next run because they now pass but were not kept. `open` are the slots it will fill."""

    cell: Cell
    accepted: int
    revoked: int
    restored: int
    made_again: int
    open: int


@dataclass(frozen=True, slots=True)
class Rejudgement:
    """The result of judging a run again: the `rewritten` rows, the `rules` it was judged by, and the `state`
    of the run once they are applied. `pending` says whether anything is left to commit. `info` is the run in
    the plan revision of these rules, `departures` are the real images that leave with it."""

    info: RunInfo
    rules: Rules
    config: Config
    rewritten: tuple[Change, ...]
    cells: tuple[CellChange, ...]
    state: State
    pending: bool
    departures: tuple[Departure, ...] = ()

    @property
    def lost(self) -> int:
        """How many accepted images would leave, without those that another image of the cell replaces."""
        return sum(max(change.revoked - change.restored, 0) for change in self.cells)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Rows whose verdict changes."""
        return tuple(change for change in self.rewritten if change.is_new_verdict)

    @property
    def updated(self) -> int:
        """The number of rows that keep their verdict and record the new rules."""
        return len(self.rewritten) - len(self.changes)


# ---- looking -------------------------------------------------------------------------------------


def rejudge(storage: Storage, settings: Sequence[str] = ()) -> Rejudgement:
    """What would change in a run under `settings` (`verification.threshold=0.7`); nothing is written.

    Raises ConfigError for invalid settings, UsageError for settings that stored numbers cannot decide.
    """
    info = read_run(storage)
    return _look(storage, info, read_log(storage, columns_of_judging(info)), settings)


def columns_of_judging(info: RunInfo) -> tuple[str, ...]:
    """The columns that `judge_under` reads."""
    return names_read_by("rejudge", info.format)


def _look(
    storage: Storage, info: RunInfo, known: LogView | ManifestLog, settings: Sequence[str]
) -> Rejudgement:
    info = info.under(known.rules)
    config, overrides = _overridden(effective_config(info, known.rules), settings)
    rules = Rules(merged(known.rules.overrides, overrides), revision=known.rules.revision)
    return judge_under(rules, info, config, storage, known)


def judge_under(
    rules: Rules,
    info: RunInfo,
    config: Config,
    storage: Storage,
    known: LogView | ManifestLog,
    departures: Sequence[Departure] = (),
    arrivals: Sequence[KnownImage] = (),
) -> Rejudgement:
    """Judge every candidate under `rules`, which `info` and `config` are in effect with. `departures` leave
    the dataset at the same time, `arrivals` come: no accepted image may be a copy of these."""
    columns = columns_of_judging(info)
    table = known.table if isinstance(known, LogView) else known.table(columns)
    changed_copies = rules.revision is not None or "copies" in rules.overrides.get("verification", {})
    rows = [row for row in table.select(list(columns)).to_pylist() if row["source"] == SYNTHETIC]
    pixels = dict(zip(*(table[name].to_pylist() for name in ("id", "pixel_sha256")), strict=True))
    cells = cells_of_plan(info)
    quotas = {str(item["cell"]): int(item["quota"]) for item in info.plan}
    gone = _find_gone(table, quotas, departures)
    is_orphan = _find_orphans(table, departures)
    copies = _copies_of_arrivals(rows, arrivals, storage, config)

    def find_nearest(row: Row) -> Nearest | None:
        if row["id"] in copies:
            return copies[row["id"]]
        return None if row["nearest_id"] in gone else read_nearest(row, pixels)

    while True:
        changes = new_verdicts(
            rows,
            cells,
            config,
            find_nearest,
            storage.exists,
            other_rules=rules != known.rules,
            domain=info.domain_limits,
            quotas=quotas,
            is_orphan=is_orphan,
        )
        after = _schedule_after(info, config, rows, changes)
        restored = any(change.is_new_verdict and change.status == ACCEPTED for change in changes)
        if after.open or not (restored or changed_copies):
            break  # the next run fills the open slots, and then compares all images
        new_copies = _copies_among_accepted(after, storage, info, config)
        if not new_copies:
            break
        copies |= new_copies
    state: State = "interrupted" if after.open else "short" if after.short else "complete"
    return Rejudgement(
        info=info,
        rules=rules,
        config=config,
        rewritten=tuple(changes),
        cells=_cell_changes(rows, changes, after),
        state=state,
        pending=bool(changes or departures) or rules != known.rules,
        departures=tuple(departures),
    )


def _copies_of_arrivals(
    rows: Iterable[Row], arrivals: Sequence[KnownImage], storage: Storage, config: Config
) -> dict[str, Nearest]:
    if not arrivals:
        return {}
    accepted = [row["id"] for row in rows if row["status"] == ACCEPTED]
    images = known_images(read_rows(storage, accepted, COMPARED))
    return find_near_duplicates_across(images, arrivals, config.verification.copies)


def _find_gone(table: pa.Table, quotas: Mapping[str, int], departures: Iterable[Departure]) -> set[str]:
    """Images that count no more, so that nothing is a copy of them: real ones that left the dataset, and
    those in slots that the plan no longer has."""
    gone = {departure.id for departure in departures}
    columns = (table[name].to_pylist() for name in ("id", "source", "status", "slot"))
    for row_id, source, status, slot in zip(*columns, strict=True):
        if (status == VOID) if source != SYNTHETIC else not _is_wanted(slot, quotas):
            gone.add(row_id)
    return gone


def _find_orphans(table: pa.Table, departures: Iterable[Departure]) -> Callable[[Row], bool]:
    """Whether a candidate was made from a picture that is no longer in the dataset."""
    columns = (table[name].to_pylist() for name in ("id", "source", "status", "pixel_sha256"))
    pictures = {
        row_id: picture
        for row_id, source, status, picture in zip(*columns, strict=True)
        if source != SYNTHETIC and status != VOID
    }
    for departure in departures:
        pictures.pop(departure.id, None)

    def is_orphan(row: Row) -> bool:
        parent_id, picture = row["parent_id"], row.get("parent_pixel_sha256")
        if parent_id is None or not parent_id.startswith(f"{REAL}/"):
            return False
        return parent_id not in pictures or picture not in (None, pictures[parent_id])

    return is_orphan


def _is_wanted(slot: str, quotas: Mapping[str, int]) -> bool:
    cell, _, index = slot.rpartition("/")
    return int(index) < quotas[cell]


def _schedule_after(
    info: RunInfo, config: Config, rows: Iterable[Row], changes: Iterable[Change]
) -> Schedule:
    changed = {change.candidate.id: change for change in changes}
    judged = [
        row if (change := changed.get(row["id"])) is None else row | change.as_columns() for row in rows
    ]
    return restore_schedule(info, config, pa.Table.from_pylist(judged, schema=_HISTORY), None)


def _copies_among_accepted(
    after: Schedule, storage: Storage, info: RunInfo, config: Config
) -> dict[str, Nearest]:
    """Compared in the plan's order, as at the end of a run."""
    accepted = accepted_in_order(after, run_facts(info, config))
    images = known_images(read_rows(storage, [candidate.id for candidate in accepted], COMPARED))
    return find_near_duplicates(images, config.verification.copies)


def _cell_changes(rows: Iterable[Row], changes: Iterable[Change], after: Schedule) -> tuple[CellChange, ...]:
    settled = Counter(slot.cell for slot in (*after.accepted, *after.short))
    accepted = Counter(row["cell"] for row in rows if row["status"] == ACCEPTED)
    moves = Counter((change.candidate.slot.cell, change.before, change.status) for change in changes)
    return tuple(
        CellChange(
            cell=cell,
            accepted=accepted[cell.key],
            revoked=moves[cell, ACCEPTED, REJECTED],
            restored=moves[cell, REJECTED, ACCEPTED],
            made_again=moves[cell, REJECTED, VOID],
            open=quota - settled[cell],
        )
        for cell, quota, _ in after.quotas
    )


def new_verdicts(
    rows: Iterable[Row],
    cells: Mapping[str, Cell],
    config: Config,
    find_nearest: Callable[[Row], Nearest | None],
    exists: Callable[[str], bool],
    other_rules: bool = False,
    domain: DomainLimits = NO_LIMITS,
    quotas: Mapping[str, int] | None = None,
    is_orphan: Callable[[Row], bool] = lambda row: False,
) -> list[Change]:
    """Judge all candidates under `config`, slot by slot; returns the rows that change. With `other_rules`
    these include rows that keep their status but do not yet record the rules.

    `find_nearest` gives the image that a candidate may copy, `exists` says whether a file is still there.
    `quotas` are the slots of each cell; without, every slot is one of the plan.
    """
    rungs = ladder(config)
    changes: list[Change] = []
    in_order = sorted(rows, key=lambda row: (row["slot"], row["attempt"]))
    for slot, attempts in itertools.groupby(in_order, key=lambda row: row["slot"]):
        if quotas is None or _is_wanted(slot, quotas):
            judged = [_judge_again(row, cells, config, rungs, find_nearest(row), domain) for row in attempts]
            judged = [_orphaned(each) if is_orphan(each.row) else _as_people_say(each) for each in judged]
            changes += _slot_changes(judged, exists, config if other_rules else None)
        else:
            changes += _surplus_changes(attempts, cells)
    return changes


@dataclass(frozen=True, slots=True)
class _Judged:
    candidate: Candidate
    row: Row
    verdict: Verdict
    nearest: Nearest | None
    rung: Rung

    @property
    def status(self) -> str:
        return str(self.row["status"])

    @property
    def passes(self) -> bool:
        return self.verdict.accepted

    @property
    def has_new_nearest(self) -> bool:
        nearest_id = None if self.nearest is None else self.nearest.id
        return bool(nearest_id != self.row["nearest_id"])

    def has_image(self, exists: Callable[[str], bool]) -> bool:
        file_name = self.row["file_name"]
        return self.status == ACCEPTED or (file_name is not None and exists(file_name))

    def records(self, config: Config) -> bool:
        """Whether the row records what it would if it had first been judged under `config`."""
        new = _judged_by(self.candidate.slot.cell, self.rung, self.verdict.score, config)
        old = {name: self.row[name] for name in new}
        old["unjudged"] = old["unjudged"] or []  # null in rows of earlier versions
        both_nan = all(isinstance(row["score"], float) and math.isnan(row["score"]) for row in (new, old))
        return old == new | ({"score": old["score"]} if both_nan else {})

    def becomes(self, status: str) -> Change:
        return Change(
            candidate=self.candidate,
            before=self.status,
            status=status,
            reason=self._rejected_for() if status == REJECTED else None,
            score=self.verdict.score,
            nearest=self.nearest,
            rung=self.rung,
        )

    def _rejected_for(self) -> str:
        if self.row["reason"] == Flaw.DUPLICATE:  # of a hold-out image, which only the reason records
            return Flaw.DUPLICATE
        return self.verdict.reason or SUPERSEDED


def _slot_changes(
    attempts: Sequence[_Judged], exists: Callable[[str], bool], other_rules: Config | None
) -> Iterator[Change]:
    """Lowest attempt first. The slot's image is that of the lowest passing attempt that has one. If none
    has, the lowest passing attempt is made again."""
    passing = [attempt for attempt in attempts if attempt.passes]
    winner = next((attempt for attempt in passing if attempt.has_image(exists)), None)
    to_make = passing[0] if passing and winner is None else None
    for attempt in attempts:
        if attempt is winner:
            change = attempt.becomes(ACCEPTED)
        elif attempt is to_make or (attempt.status == VOID and attempt.passes):
            change = attempt.becomes(VOID)
        else:
            change = attempt.becomes(REJECTED)
        if change.is_new_verdict or attempt.has_new_nearest or _is_outdated(attempt, change, other_rules):
            yield change


def _surplus_changes(attempts: Iterable[Row], cells: Mapping[str, Cell]) -> Iterator[Change]:
    """No attempt gives an image to a slot that the plan no longer has. They are not judged again: the config
    may no longer have its class."""
    for row in attempts:
        if row["status"] != REJECTED:
            candidate = parse_candidate(row, cells)
            yield Change(candidate, row["status"], REJECTED, SURPLUS, row["score"], None, None)


def _is_outdated(attempt: _Judged, change: Change, other_rules: Config | None) -> bool:
    """Whether a row that keeps its verdict must be written again to record the rules it is judged by."""
    if other_rules is None or change.status == VOID:
        return False
    return change.reason != attempt.row["reason"] or not attempt.records(other_rules)


def _judge_again(
    row: Row,
    cells: Mapping[str, Cell],
    config: Config,
    rungs: Sequence[Rung],
    nearest: Nearest | None,
    domain: DomainLimits,
) -> _Judged:
    candidate = parse_candidate(row, cells)
    rung = rungs[min(candidate.attempt, len(rungs)) - 1]
    cell = candidate.slot.cell
    criteria = criteria_for(cell, rung.threshold, config, domain)
    verdict = judge(read_measurement(row, cell), cell, criteria, nearest, read_parent(row))
    return _Judged(candidate, row, verdict, nearest, rung)


def _orphaned(judged: _Judged) -> _Judged:
    return replace(judged, verdict=replace(judged.verdict, accepted=False, reason=ORPHANED))


def _as_people_say(judged: _Judged) -> _Judged:
    """What people decided stands under any rules, as far as it is about what the image shows."""
    row, verdict = judged.row, judged.verdict
    if row["reason"] == REVIEWED:
        return replace(judged, verdict=replace(verdict, accepted=False, reason=REVIEWED))
    if row.get(REVIEWED) == ACCEPTED and verdict.reason in verdict.scores:
        return replace(judged, verdict=replace(verdict, accepted=True, reason=None))
    return judged


def read_measurement(row: Row, cell: Cell) -> Measurement:
    """The measurements that decide a verdict. Of the scores of both judges a row has the lower one."""
    return Measurement(
        probabilities={name: {wanted: row["scores"][name]} for name, wanted in cell.properties},
        brightness=row["brightness"],
        deviation=row["deviation"],
        flags=ImageFlags(nonfinite=row["nonfinite"], unsafe=row["unsafe"]),
        phash="",
        embedding=b"",
        unsafe=row["unsafe"],
        typicality=row.get("typicality"),  # runs of earlier versions have neither
        domain_score=row.get("domain_score"),
    )


def read_nearest(row: Row, pixels: Mapping[str, str | None]) -> Nearest | None:
    if row["nearest_id"] is None:
        return None
    same = bool(row["pixel_sha256"]) and pixels.get(row["nearest_id"]) == row["pixel_sha256"]
    return Nearest(
        id=row["nearest_id"],
        distance=row["nearest_distance"],
        similarity=row["nearest_similarity"],
        same_pixels=same or row["reason"] == Flaw.DUPLICATE,  # of a hold-out image, which has no row
    )


def read_parent(row: Row) -> Nearest | None:
    """The real image that a candidate was made from. A near-copy of it stays one when it leaves the
    dataset."""
    if row.get("parent_distance") is None:
        return None
    return Nearest(row["parent_id"], row["parent_distance"], row["parent_similarity"])


# ---- changing ------------------------------------------------------------------------------------


def apply(
    storage: Storage, settings: Sequence[str] = (), now: Callable[[], dt.datetime] = utc_now
) -> Rejudgement:
    """Commit the changes that `rejudge` returns, and close the log; the next `balancer run` fills the gaps.

    If it is interrupted, the same call completes it. Raises UsageError while a driver seems to be running.
    """
    info = read_run(storage)
    view = read_log(storage, columns_of_judging(info))
    refuse_running(storage, view.last, now(), "its verdicts can be changed")
    result = _look(storage, info, view, settings)
    if not result.pending:
        renew_current(storage)
        return result
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=now)
    with closing_on_error(log):
        take_in(storage, log, info, restoring=True)
        result = _look(storage, info, log, settings)
        commit_judgement(log, result)
    log.close(result.state, {"reason": "judged again"})
    return result


def commit_judgement(log: ManifestLog, result: Rejudgement) -> None:
    """Only the last part records that all verdicts follow the new rules."""
    facts = run_facts(result.info, result.config)
    parts = list(_parts((*result.departures, *result.rewritten))) or [[]]
    for start in range(0, len(parts), PARTS_AT_ONCE):
        lot = parts[start : start + PARTS_AT_ONCE]
        rows = log.rows([change.id for part in lot for change in part])
        for number, part in enumerate(lot, start=start + 1):
            old, rows = rows.slice(0, len(part)).to_pylist(), rows.slice(len(part))
            verdicts = [change.applied_to(row, facts) for change, row in zip(part, old, strict=True)]
            rules = replace(result.rules, complete=number == len(parts))
            log.commit_verdicts(verdicts, rules.as_detail())


def _parts(changes: Iterable[Change | Departure]) -> Iterator[list[Change | Departure]]:
    part: list[Change | Departure] = []
    for _, together in itertools.groupby(changes, key=lambda change: change.unit):
        part += together
        if len(part) >= COMMIT_ROWS:
            yield part
            part = []
    if part:
        yield part


# ---- settings ------------------------------------------------------------------------------------


def _overridden(config: Config, settings: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The config under other settings, and the settings that changed, nested as in the config."""
    before = config.model_dump(mode="json")
    changed = validate_document(Document(copy.deepcopy(before), {(): "run.json"}), settings)
    after = changed.model_dump(mode="json")
    paths = list(_changed(before, after))
    if odd := [path for path in paths if not is_judgeable(path)]:
        raise UsageError(
            f"{', '.join(_dotted(path) for path in odd)} cannot be judged from the stored numbers",
            hint=f"these can: {', '.join(map(_dotted, JUDGEABLE))}; for anything else start a new run",
        )
    overrides: dict[str, Any] = {}
    for path in paths:
        names = tuple(itertools.takewhile(lambda part: isinstance(part, str), path))
        overrides = merged(overrides, _nested(names, after))
    return changed, overrides


def _changed(before: Any, after: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of the settings that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _changed(before.get(name), after.get(name), (*path, name))
    elif _sections(before) and _sections(after) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changed(old, new, (*path, index))
    elif before != after:
        yield path


def _sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _nested(path: Sequence[str | int], values: Any) -> Any:
    """The value at `path`, alone in its sections."""
    return {path[0]: _nested(path[1:], values[path[0]])} if path else values


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))
