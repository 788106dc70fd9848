"""Judging a run's candidates again from the numbers in its rows: other limits, no image generated.

A slot keeps what a run under the new limits would have given it, as far as images were kept: its lowest
passing attempt. A candidate that passes by now but whose image was not kept is made again only if its slot
has no other image; until then its row is void.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from balancer.cells import Candidate, Cell
from balancer.config import Config
from balancer.configfile import validated
from balancer.copies import COMPARED, copies_among, known_images
from balancer.errors import BalancerError, FencedError, UsageError
from balancer.manifest.current import renew_current
from balancer.manifest.fragment import State
from balancer.manifest.log import LogView, ManifestLog, read_log, rows_of
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
from balancer.manifest.status import SILENT_AFTER_S, state_of
from balancer.prompts import Rung, ladder
from balancer.resume import (
    accepted_in_order,
    candidate_of,
    cells_of_plan,
    config_of,
    facts_of,
    schedule_of,
)
from balancer.schedule import Schedule
from balancer.storage import Storage
from balancer.verdict import Flaw, ImageFlags, Measurement, Nearest, Verdict, criteria_for, judge
from balancer.yamltext import Document

SUPERSEDED = "superseded"
"""Reason of a candidate that passes, but a lower attempt of its slot passes as well by now."""

COMMIT_ROWS = 1024
"""About as many verdicts are committed at once; those of one slot always together."""

PARTS_AT_ONCE = 32
"""Whole rows of so many commits are in memory at once; for each lot the log is gone through again."""

_COLUMNS = (
    "id", "cell", "slot", "attempt", "source", "status", "reason", "file_name", "scores", "brightness",
    "deviation", "nonfinite", "unsafe", "pixel_sha256", "nearest_id", "nearest_distance",
    "nearest_similarity", "unjudged",
)  # fmt: skip

_HISTORY = pa.schema(
    [(name, pa.string()) for name in ("source", "cell", "slot", "status", "reason")]
    + [("attempt", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class Change:
    """A candidate whose verdict is another one now. `reason` is that of a rejection."""

    candidate: Candidate
    before: str
    status: str
    reason: str | None
    verdict: Verdict
    nearest: Nearest | None
    rung: Rung

    def as_columns(self) -> Row:
        return {"status": self.status, "reason": self.reason}

    def applied_to(self, row: Row, facts: RunFacts) -> Row:
        accepted = self.status == ACCEPTED
        return {
            **row,
            **self.as_columns(),
            "review": accepted and facts.is_for_review(self.candidate.slot),
            "score": self.verdict.score,
            "threshold": self.rung.threshold,
            "fallback": self.rung.fallback,
            "unjudged": unjudged_in(self.candidate.slot.cell, facts.config),
            **(nearest_columns(self.nearest) if self.nearest else {}),
            **(dict.fromkeys(("file_name", "sha256", "num_bytes")) if self.status == VOID else {}),
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
    """What judging a run again changes. `rules` are those it was judged by, `state` is how the run stands
    once they are applied; `pending` says whether anything is left to commit for that."""

    info: RunInfo
    rules: Rules
    config: Config
    changes: tuple[Change, ...]
    cells: tuple[CellChange, ...]
    state: State
    pending: bool


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
        changes = new_verdicts(rows, cells, config, nearest_of, storage.exists)
        after = _schedule_after(info, config, rows, changes)
        restored = any(change.status == ACCEPTED for change in changes)
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
        changes=tuple(changes),
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
    images = known_images(rows_of(storage, [candidate.id for candidate in accepted], COMPARED))
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
) -> list[Change]:
    """What becomes of candidates under `config`, slot after slot. Left out are those whose status stays,
    unless an accepted image is judged on other properties by now: its score is another one.

    `nearest_of` gives the image that a candidate may copy, `is_there` says whether a file still is.
    """
    rungs = ladder(config)
    changes: list[Change] = []
    in_order = sorted(rows, key=lambda row: (row["slot"], row["attempt"]))
    for _, attempts in itertools.groupby(in_order, key=lambda row: row["slot"]):
        judged = [_judged_again(row, cells, config, rungs, nearest_of(row)) for row in attempts]
        changes += _changes_of_slot(judged, is_there)
    return changes


@dataclass(frozen=True, slots=True)
class _Judged:
    candidate: Candidate
    status: str
    file_name: str | None
    verdict: Verdict
    nearest: Nearest | None
    is_news: bool  # that this is the nearest image
    is_asked_otherwise: bool
    rung: Rung

    @property
    def passes(self) -> bool:
        return self.verdict.accepted

    def has_image(self, is_there: Callable[[str], bool]) -> bool:
        return self.status == ACCEPTED or (self.file_name is not None and is_there(self.file_name))

    def becomes(self, status: str, reason: str | None = None) -> Change:
        return Change(self.candidate, self.status, status, reason, self.verdict, self.nearest, self.rung)


def _changes_of_slot(attempts: Sequence[_Judged], is_there: Callable[[str], bool]) -> Iterator[Change]:
    """Lowest attempt first. A slot has one image at most: that of the lowest attempt that passes and has
    one. Without any, the lowest attempt that passes is to be made again."""
    passing = [made for made in attempts if made.passes]
    winner = next((made for made in passing if made.has_image(is_there)), None)
    to_make = passing[0] if passing and winner is None else None
    for made in attempts:
        if made is winner:
            status, reason = ACCEPTED, None
        elif made is to_make:
            status, reason = VOID, None
        elif made.status == ACCEPTED:
            status, reason = REJECTED, made.verdict.reason or SUPERSEDED
        elif made.is_news or (made.status == VOID and not made.passes):
            status, reason = REJECTED, made.verdict.reason
        else:
            continue
        if made.is_news or status != made.status or (made is winner and made.is_asked_otherwise):
            yield made.becomes(status, reason)


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
    is_news = nearest is not None and nearest.id != row["nearest_id"]
    otherwise = set(row["unjudged"] or ()) != set(unjudged_in(cell, config))
    return _Judged(candidate, row["status"], row["file_name"], verdict, nearest, is_news, otherwise, rung)


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
    if state_of(view, now()) == "running":
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
    parts = list(_parts(found.changes)) or [[]]
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
