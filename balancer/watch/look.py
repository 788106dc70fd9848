"""What the live page shows of a run: counts, pace, the last images, and whether its driver is still there."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from balancer.config.schema import PlanningConfig
from balancer.manifest.layout import rejected_paths
from balancer.manifest.log.view import LogView
from balancer.manifest.measured import compute_measured, count_values, judged_rows, made_rows, with_origin
from balancer.manifest.rows import ACCEPTED, REJECTED
from balancer.manifest.rules import config_under
from balancer.manifest.runfile import RunInfo
from balancer.manifest.status import COLUMNS as STATUS
from balancer.manifest.status import Counts, accepted_per_s, count_rows, find_state
from balancer.planning.plan import per_image
from balancer.report.facts import CellTable, cell_table, count_cells
from balancer.report.over_time import Timeline, over_time
from balancer.review.summary import read_summary
from balancer.review.words import describe_review
from balancer.runs.runlog import read_lines
from balancer.scheduling.progress import ClassCounts, Snapshot, eta_s
from balancer.storage import LocalStorage, Storage

COLUMNS = (*dict.fromkeys((*STATUS, "id", "class", "cell", "reason", "score", "threshold")),)

RECENT = 12

LINES = 8

_PROGRESS = re.compile(r"^\S+ \S+ accepted \d+/\d+ ")


@dataclass(frozen=True, slots=True)
class RecentImage:
    """`files` are the places where its image may be, the first that is there counts."""

    files: tuple[str, ...]
    cell: str
    reason: str | None
    score: float | None
    threshold: float | None
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a run. `generators` is how many the last driver opened with; `free_bytes` are None where
    the run is not on a disk of this machine; `lines` are the last messages of run.log, `progress_line` what
    its driver said last of its progress."""

    info: RunInfo
    state: str
    last_commit: dt.datetime | None
    opened_at: dt.datetime | None
    snapshot: Snapshot
    cells: CellTable
    timeline: Timeline | None
    accepted: Sequence[RecentImage]
    rejected: Sequence[RecentImage]
    cost: float | None
    cost_basis: str
    seconds_per_image: float | None
    generators: int | None
    free_bytes: int | None
    lines: Sequence[str]
    progress_line: str
    review: Sequence[str]
    """What people found out, in words."""


def columns_of(info: RunInfo) -> tuple[str, ...]:
    return with_origin(COLUMNS, info)


def look_at(storage: Storage, info: RunInfo, view: LogView, now: dt.datetime) -> Look:
    """`view` has the `columns_of` the run."""
    judged = judged_rows(view.table)
    counts = count_rows(view, info)
    made = made_rows(judged).sort_by("generated_at")
    measured = per_image(
        info.config_as(PlanningConfig, "planning"), compute_measured(judged, view.opened, "")
    )
    lines = read_lines(storage)
    progress = [line for line in lines if _PROGRESS.match(line)]
    return Look(
        info=info,
        state=find_state(view, now) if view.last else "not begun",
        last_commit=view.last.committed_at if view.last else None,
        opened_at=view.opened_at,
        snapshot=_snapshot(info, view, judged, counts, now),
        cells=_cells(info, view, judged),
        timeline=over_time(made),
        accepted=_recent(made.filter(pc.field("status") == ACCEPTED)),
        rejected=_recent(made.filter(pc.field("status") == REJECTED)),
        cost=measured.cost_per_image,
        cost_basis=measured.cost_per_image_basis,
        seconds_per_image=measured.seconds_per_image,
        generators=(view.opened[-1].detail or {}).get("generators") if view.opened else None,
        free_bytes=shutil.disk_usage(storage.uri).free if isinstance(storage, LocalStorage) else None,
        lines=[line for line in lines if line not in set(progress)][-LINES:],
        progress_line=progress[-1] if progress else "",
        review=describe_review(read_summary(storage, info, view)),
    )


def _snapshot(info: RunInfo, view: LogView, judged: pa.Table, counts: Counts, now: dt.datetime) -> Snapshot:
    """As a driver shows it, but with the pace of some minutes: files tell less often."""
    rate = accepted_per_s(judged, view, now)
    passed = counts.passed / counts.candidates if counts.candidates else 0
    accepted = count_values(judged.filter(pc.field("status") == ACCEPTED)["class"])
    wanted: Counter[str] = Counter()
    short: Counter[str] = Counter()
    for entry in info.plan:
        wanted[entry["class"]] += entry["quota"]
        short[entry["class"]] += counts.short_by_cell.get(entry["cell"], 0)
    begun = view.opened_at or now
    ended = view.last.committed_at if view.last and view.last.state else now
    return Snapshot(
        wanted=info.wanted,
        accepted=counts.accepted,
        short=counts.short,
        candidates=counts.candidates,
        rejected_by_reason=dict(counts.reasons.most_common()),
        by_class=ClassCounts(wanted, accepted, short),
        elapsed_s=max((ended - begun).total_seconds(), 0.0),
        accepted_per_s=rate,
        candidates_per_s=rate / passed if passed else 0.0,
        eta_s=eta_s(counts.open, rate),
    )


def _cells(info: RunInfo, view: LogView, judged: pa.Table) -> CellTable:
    config = config_under(info, view.rules.overrides)
    accepted = judged.filter(pc.field("status") == ACCEPTED)
    cells = count_cells(info, config, count_values(accepted["cell"]), count_values(judged["cell"]))
    values = {name: list(config.facets[name].values) for name in info.facets}
    return cell_table(cells, info.facets, values)


def _recent(made: pa.Table) -> list[RecentImage]:
    """The last ones first."""
    return [
        RecentImage(
            files=(row["file_name"],) if row["file_name"] else rejected_paths(row["id"], row["reason"] or ""),
            cell=row["cell"],
            reason=row["reason"],
            score=row["score"],
            threshold=row["threshold"],
            at=row["generated_at"],
        )
        for row in reversed(made.slice(max(made.num_rows - RECENT, 0)).to_pylist())
        if row["generated_at"]
    ]
