"""Judging a run's candidates again from the numbers in its rows: other limits, no image generated.

Once the rules have changed, every row that is judged tells of the new ones: its limit, its score, what was
not judged, and why it was rejected. Rows that say so already are not written again.

A slot keeps what a run under the new limits would have given it, as far as images were kept: its lowest
passing attempt. A candidate that passes by now but whose image was not kept is made again only if its slot
has no other image; until then its row is void.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from balancer.cells import Candidate, Cell
from balancer.config.load import validated
from balancer.config.schema import Config
from balancer.config.yaml_reading import Document
from balancer.dataset.near_duplicates import COMPARED, copies_among, known_images
from balancer.errors import BalancerError, FencedError, UsageError
from balancer.manifest.columns import names_read_by, names_where
from balancer.manifest.log.fragment import State
from balancer.manifest.log.view import LogView, read_log, read_rows
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import (
    ACCEPTED,
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
from balancer.manifest.status import SILENT_AFTER_S, find_state
from balancer.runs.resume import (
    accepted_in_order,
    candidate_of,
    cells_of_plan,
    config_of,
    facts_of,
    schedule_of,
)
from balancer.scheduling.prompts import Rung, ladder
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage
from balancer.verification.verdict import Flaw, ImageFlags, Measurement, Nearest, Verdict, criteria_for, judge

SUPERSEDED = "superseded"
"""Reason of a candidate that passes by now, but another attempt of its slot gives the image."""

COMMIT_ROWS = 1024
"""About as many verdicts are committed at once; those of one slot always together."""

PARTS_AT_ONCE = 32
"""Whole rows of so many commits are in memory at once; for each lot the log is gone through again."""

_COLUMNS = names_read_by("rejudge")

_HISTORY = pa.schema(
    [(name, pa.string()) for name in ("source", "cell", "slot", "status", "reason")]
    + [("attempt", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class Change:
    """A row that is written again: of a candidate whose status is another one now, or which is still judged
    the same, by other rules. `reason` is that of a rejection."""

    candidate: Candidate
    before: str
    status: str
    reason: str | None
    score: float | None
    nearest: Nearest | None
    rung: Rung

    @property
    def is_new_verdict(self) -> bool:
        return self.status != self.before

    def as_columns(self) -> Row:
        return {"status": self.status, "reason": self.reason}

    def applied_to(self, row: Row, facts: RunFacts) -> Row:
        accepted = self.status == ACCEPTED
        return {
            **row,
            **self.as_columns(),
            "review": accepted and facts.is_for_review(self.candidate.slot),
            **_judged_by(self.candidate.slot.cell, self.rung, self.score, facts.config),
            **(nearest_columns(self.nearest) if self.nearest else {}),
            **(dict.fromkeys(names_where(lambda column: column.of_file)) if self.status == VOID else {}),
        }


def _judged_by(cell: Cell, rung: Rung, score: float | None, config: Config) -> Row:
    """What a row says of the rules it was judged by."""
    return {
        "score": score,
        "threshold": rung.threshold,
        "fallback": rung.fallback,
        "unjudged": unjudged_in(cell, config),
    }


@dataclass(frozen=True, slots=True)
class CellChange:
    """Images of a cell: accepted so far, of these no longer, again from those kept, and those that the next
    run makes again because they pass by now but were not kept. `open` are the slots it works on."""

    cell: Cell
    accepted: int
    revoked: int
    restored: int
    made_again: int
    open: int


@dataclass(frozen=True, slots=True)
class Rejudgement:
    """What judging a run again changes. `rewritten` are its rows that change. `rules` are those it was judged
    by, `state` is how the run stands once they are applied; `pending` says whether anything is left to commit
    for that."""

    info: RunInfo
    rules: Rules
    config: Config
    rewritten: tuple[Change, ...]
    cells: tuple[CellChange, ...]
    state: State
    pending: bool

    @property
    def changes(self) -> tuple[Change, ...]:
        """Verdicts that are other ones now."""
        return tuple(change for change in self.rewritten if change.is_new_verdict)

    @property
    def updated(self) -> int:
        """Rows whose verdict stays, and which tell of the new rules."""
        return len(self.rewritten) - len(self.changes)


# ---- looking -------------------------------------------------------------------------------------


def rejudge(storage: Storage, settings: Sequence[str] = ()) -> Rejudgement:
    """What would change in a run under `settings` (`verification.threshold=0.7`); nothing is written.

    Raises ConfigError for settings that make no sense, UsageError for those that cannot be judged by.
    """
    return _look(storage, read_run(storage), read_log(storage, _COLUMNS), settings)


def _look(
    storage: Storage, info: RunInfo, known: LogView | ManifestLog, settings: Sequence[str]
) -> Rejudgement:
    table = known.table if isinstance(known, LogView) else known.table(_COLUMNS)
    config, overrides = _overridden(config_of(info, known.rules), settings)
    rules = Rules(merged(known.rules.overrides, overrides))
    changed_copies = "copies" in rules.overrides.get("verification", {})
    rows = [row for row in table.select(list(_COLUMNS)).to_pylist() if row["source"] == SYNTHETIC]
    pixels = dict(zip(*(table[name].to_pylist() for name in ("id", "pixel_sha256")), strict=True))
    cells = cells_of_plan(info)
    copies: dict[str, Nearest] = {}

    def nearest_of(row: Row) -> Nearest | None:
        return copies.get(row["id"]) or nearest_in(row, pixels)

    while True:
        changes = new_verdicts(
            rows, cells, config, nearest_of, storage.exists, other_rules=rules != known.rules
        )
        after = _schedule_after(info, config, rows, changes)
        restored = any(change.is_new_verdict and change.status == ACCEPTED for change in changes)
        if after.open or not (restored or changed_copies):
            break  # with open slots, the next run compares all images when it has filled them
        found = _copies_among_accepted(after, storage, info, config)
        if not found:
            break
        copies |= found
    state: State = "interrupted" if after.open else "short" if after.short else "complete"
    return Rejudgement(
        info=info,
        rules=rules,
        config=config,
        rewritten=tuple(changes),
        cells=_cell_changes(rows, changes, after),
        state=state,
        pending=bool(changes) or rules != known.rules,
    )


def _schedule_after(
    info: RunInfo, config: Config, rows: Iterable[Row], changes: Iterable[Change]
) -> Schedule:
    changed = {change.candidate.id: change for change in changes}
    judged = [
        row if (change := changed.get(row["id"])) is None else row | change.as_columns() for row in rows
    ]
    return schedule_of(info, config, pa.Table.from_pylist(judged, schema=_HISTORY), None)


def _copies_among_accepted(
    after: Schedule, storage: Storage, info: RunInfo, config: Config
) -> dict[str, Nearest]:
    """In the plan's order, as at the end of a run."""
    accepted = accepted_in_order(after, facts_of(info, config))
    images = known_images(read_rows(storage, [candidate.id for candidate in accepted], COMPARED))
    return copies_among(images, config.verification.copies)


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
    nearest_of: Callable[[Row], Nearest | None],
    is_there: Callable[[str], bool],
    other_rules: bool = False,
) -> list[Change]:
    """What becomes of candidates under `config`, slot after slot. Left out are those whose status stays;
    under `other_rules` only if their row tells of these already.

    `nearest_of` gives the image that a candidate may copy, `is_there` says whether a file still is.
    """
    rungs = ladder(config)
    changes: list[Change] = []
    in_order = sorted(rows, key=lambda row: (row["slot"], row["attempt"]))
    for _, attempts in itertools.groupby(in_order, key=lambda row: row["slot"]):
        judged = [_judged_again(row, cells, config, rungs, nearest_of(row)) for row in attempts]
        changes += _changes_of_slot(judged, is_there, config if other_rules else None)
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
        return self.nearest is not None and self.nearest.id != self.row["nearest_id"]

    def has_image(self, is_there: Callable[[str], bool]) -> bool:
        file_name = self.row["file_name"]
        return self.status == ACCEPTED or (file_name is not None and is_there(file_name))

    def tells_of(self, config: Config) -> bool:
        """Whether the row says what it would say if it was judged under `config` at first."""
        own = _judged_by(self.candidate.slot.cell, self.rung, self.verdict.score, config)
        before = {name: self.row[name] for name in own}
        before["unjudged"] = before["unjudged"] or []  # null in rows of earlier versions
        both_nan = all(isinstance(of["score"], float) and math.isnan(of["score"]) for of in (own, before))
        return before == own | ({"score": before["score"]} if both_nan else {})

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
        if self.row["reason"] == Flaw.DUPLICATE:  # of a hold-out image: nothing else in the row says so
            return Flaw.DUPLICATE
        return self.verdict.reason or SUPERSEDED


def _changes_of_slot(
    attempts: Sequence[_Judged], is_there: Callable[[str], bool], other_rules: Config | None
) -> Iterator[Change]:
    """Lowest attempt first. A slot has one image at most: that of the lowest attempt that passes and has
    one. Without any, the lowest attempt that passes is to be made again."""
    passing = [made for made in attempts if made.passes]
    winner = next((made for made in passing if made.has_image(is_there)), None)
    to_make = passing[0] if passing and winner is None else None
    for made in attempts:
        if made is winner:
            change = made.becomes(ACCEPTED)
        elif made is to_make or (made.status == VOID and made.passes):
            change = made.becomes(VOID)
        else:
            change = made.becomes(REJECTED)
        if change.is_new_verdict or made.has_new_nearest or _is_outdated(made, change, other_rules):
            yield change


def _is_outdated(made: _Judged, now: Change, other_rules: Config | None) -> bool:
    """Whether a row whose verdict stays has to be written again, to tell of the rules it is judged by."""
    if other_rules is None or now.status == VOID:
        return False
    return now.reason != made.row["reason"] or not made.tells_of(other_rules)


def _judged_again(
    row: Row,
    cells: Mapping[str, Cell],
    config: Config,
    rungs: Sequence[Rung],
    nearest: Nearest | None,
) -> _Judged:
    candidate = candidate_of(row, cells)
    rung = rungs[min(candidate.attempt, len(rungs)) - 1]
    cell = candidate.slot.cell
    verdict = judge(measurement_of(row, cell), cell, criteria_for(cell, rung.threshold, config), nearest)
    return _Judged(candidate, row, verdict, nearest, rung)


def measurement_of(row: Row, cell: Cell) -> Measurement:
    """What was measured, as far as verdicts follow from it: `scores` are the lower of both judges."""
    return Measurement(
        probabilities={name: {wanted: row["scores"][name]} for name, wanted in cell.properties},
        brightness=row["brightness"],
        deviation=row["deviation"],
        flags=ImageFlags(nonfinite=row["nonfinite"], unsafe=row["unsafe"]),
        phash="",
        embedding=b"",
        unsafe=row["unsafe"],
    )


def nearest_in(row: Row, pixels: Mapping[str, str | None]) -> Nearest | None:
    if row["nearest_id"] is None:
        return None
    same = bool(row["pixel_sha256"]) and pixels.get(row["nearest_id"]) == row["pixel_sha256"]
    return Nearest(
        id=row["nearest_id"],
        distance=row["nearest_distance"],
        similarity=row["nearest_similarity"],
        same_pixels=same or row["reason"] == Flaw.DUPLICATE,  # of a hold-out image, which has no row
    )


# ---- changing ------------------------------------------------------------------------------------


def apply(
    storage: Storage, settings: Sequence[str] = (), now: Callable[[], dt.datetime] = utc_now
) -> Rejudgement:
    """Commit what `rejudge` finds, and close the log; the next `balancer run` fills the gaps.

    Stopped half way, it is completed by the same call. Raises UsageError while a driver seems to be at work.
    """
    info, view = read_run(storage), read_log(storage, _COLUMNS)
    if find_state(view, now()) == "running":
        raise UsageError(
            f"{storage.uri}: the run is going on; its verdicts can be changed when it has ended",
            hint=f"stop it first; one that was killed counts as running for {SILENT_AFTER_S:.0f} s more",
        )
    found = _look(storage, info, view, settings)
    if not found.pending:
        renew_current(storage)
        return found
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=now)
    found = _look(storage, info, log, settings)
    try:
        _commit(log, found)
    except FencedError:
        raise  # the log belongs to another driver now
    except BalancerError as error:
        with contextlib.suppress(BalancerError):  # the first error is the one to tell
            log.close("failed", {"reason": error.message})
        raise
    log.close(found.state, {"reason": "judged again"})
    return found


def _commit(log: ManifestLog, found: Rejudgement) -> None:
    """Only the last part says that the verdicts follow the new rules, all of them."""
    facts = facts_of(found.info, found.config)
    parts = list(_parts(found.rewritten)) or [[]]
    for start in range(0, len(parts), PARTS_AT_ONCE):
        lot = parts[start : start + PARTS_AT_ONCE]
        rows = log.rows([change.candidate.id for part in lot for change in part])
        for number, part in enumerate(lot, start=start + 1):
            own, rows = rows.slice(0, len(part)).to_pylist(), rows.slice(len(part))
            verdicts = [change.applied_to(row, facts) for change, row in zip(part, own, strict=True)]
            rules = Rules(found.rules.overrides, complete=number == len(parts))
            log.commit_verdicts(verdicts, rules.as_detail())


def _parts(changes: Iterable[Change]) -> Iterator[list[Change]]:
    part: list[Change] = []
    for _, of_slot in itertools.groupby(changes, key=lambda change: change.candidate.slot):
        part += of_slot
        if len(part) >= COMMIT_ROWS:
            yield part
            part = []
    if part:
        yield part


# ---- settings ------------------------------------------------------------------------------------


def _overridden(config: Config, settings: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The config under other settings, and what changed of it, nested as it is."""
    before = config.model_dump(mode="json")
    changed = validated(Document(copy.deepcopy(before), {(): "run.json"}), settings)
    after = changed.model_dump(mode="json")
    paths = list(_changed(before, after))
    if odd := [path for path in paths if not is_judgeable(path)]:
        raise UsageError(
            f"{', '.join(_dotted(path) for path in odd)} cannot be judged from the stored numbers",
            hint=f"these can: {', '.join(map(_dotted, JUDGEABLE))}; for anything else begin another run",
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
