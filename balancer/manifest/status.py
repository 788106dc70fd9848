"""How far a run is, from its files alone."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.config.schema import AttemptsConfig, PlanningConfig, TargetConfig
from balancer.errors import ManifestError, UsageError
from balancer.manifest.image_check import look_at_images
from balancer.manifest.log.fragment import Stamp
from balancer.manifest.log.view import LogView, read_log
from balancer.manifest.measured import COLUMNS as MEASURED
from balancer.manifest.measured import compute_measured, judged_rows, made_rows, tallies_by, with_origin
from balancer.manifest.remedies import COLUMNS as REMEDIES
from balancer.manifest.remedies import Remedies, ShortCell, describe, find_remedies, find_short_cells
from balancer.manifest.rows import VOID
from balancer.manifest.rules import Revision, config_under
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.unjudged import count_unjudged, count_unproven
from balancer.planning.plan import below_target, per_image
from balancer.review.summary import COLUMNS as REVIEW
from balancer.review.summary import read_summary
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.progress import eta_s
from balancer.storage import Storage

SILENT_AFTER_S = 120.0
"""A driver commits every few batches; one that was silent for so long is taken for gone."""

COLUMNS = (*dict.fromkeys((*MEASURED, *REMEDIES, *REVIEW, "file_name", "unjudged")),)

RATE_WINDOW_S = 300.0
"""The time left follows from what was accepted in the last minutes."""


@dataclass(frozen=True, slots=True)
class Counts:
    """`short` images were tried and given up; `open` are those that a run can still make. Of the `candidates`
    that were made, `passed` were accepted; others may have been taken over from another run."""

    candidates: int
    passed: int
    accepted: int
    short_by_cell: Mapping[str, int]
    open: int
    reasons: Counter[str]
    unjudged: Mapping[str, int]
    unproven: Mapping[str, int]
    given_up: Mapping[str, Tally]

    @property
    def short(self) -> int:
        return sum(self.short_by_cell.values())


def read_status(storage: Storage, now: datetime.datetime) -> dict[str, Any]:
    """What `balancer status --json` prints. `now` is aware of its time zone. Real images count in `images`
    only, which says of how many image files were looked at how many are there. `unjudged` counts accepted
    images that were not judged on a property, `unproven` those of a value for which labelled images do not
    prove that the verifier can judge it; `overrides` are the settings that `balancer rejudge` changed since
    the plan `revision` in effect, `revisions` those after the first, with what each changed. Each wanted
    image is accepted, `short` (every attempt failed) or `open` (the run can still make it). `short_cells`
    says of each cell with short images why its candidates were rejected, `remedies` what would help
    (`balancer.manifest.remedies`). `review` is what people found out (`balancer.review.summary`).

    UsageError if the folder holds no run, ManifestError if its manifest is damaged.
    """
    info = read_run(storage)
    view = read_log(storage, with_origin(COLUMNS, info))
    info = info.under(view.rules)
    judged = judged_rows(view.table)
    counts = count_rows(view, info)
    settled = counts.accepted + counts.short
    state = find_state(view, now)
    short_cells, remedies = _shortfall(view, judged, info, counts)
    return {
        "run_id": info.run_id,
        "state": state,
        "wanted": info.wanted,
        "accepted": counts.accepted,
        "short": counts.short,
        "open": counts.open,
        "candidates": counts.candidates,
        "rejected_by_reason": dict(counts.reasons.most_common()),
        "success_rate": counts.accepted / settled if settled else None,
        "acceptance": counts.passed / counts.candidates if counts.candidates else None,
        "eta_s": eta_s(counts.open, accepted_per_s(judged, view, now)) if state == "running" else None,
        "given_up": {cell: asdict(tally) for cell, tally in counts.given_up.items()},
        "short_cells": {cell: asdict(short) for cell, short in short_cells.items()},
        "remedies": asdict(remedies) | {"summary": describe(remedies)},
        **asdict(per_image(_planning(info), compute_measured(judged, view.opened, "this run"))),
        "simulated": info.simulated,
        "unjudged": dict(counts.unjudged),
        "unproven": dict(counts.unproven),
        "overrides": dict(view.rules.overrides),
        "revision": info.revision,
        "revisions": [_described(*each) for each in view.revisions],
        "images": asdict(look_at_images(storage, view.table, info.real_images_by_reference)),
        "review": read_summary(storage, info, view).as_dict(),
        "current": _current(storage, info, view),
    }


def suggest_remedies(storage: Storage) -> list[str]:
    """What would help a run that ended without all its images, in two lines."""
    info = read_run(storage)
    view = read_log(storage, with_origin(COLUMNS, info))
    info = info.under(view.rules)
    return describe(_shortfall(view, judged_rows(view.table), info, count_rows(view, info))[1])


def _shortfall(
    view: LogView, judged: pa.Table, info: RunInfo, counts: Counts
) -> tuple[dict[str, ShortCell], Remedies]:
    short_cells = find_short_cells(judged, counts.short_by_cell)
    if not (short_cells or counts.open):
        return {}, Remedies()
    config = config_under(info, view.rules.overrides)
    return short_cells, find_remedies(judged, short_cells, config, counts.given_up, counts.open)


def _described(revision: Revision, stamp: Stamp) -> dict[str, Any]:
    when = stamp.committed_at.isoformat(timespec="seconds")
    return {"number": revision.number, "committed_at": when, "changes": list(revision.changes)}


def _current(storage: Storage, info: RunInfo, view: LogView) -> dict[str, int] | None:
    """How many fragments the file of accepted rows has, and how many it is behind; None if it has none."""
    from balancer.manifest.snapshot.current import read_reach  # with pyarrow.dataset, which is slow to import

    try:
        reach = read_reach(storage)
    except ManifestError:
        return None
    if reach is None or reach.run_id != info.run_id:
        return None
    return {"fragments": reach.seq, "behind": max(view.fragments - reach.seq, 0)}


def count_missing(view: LogView, info: RunInfo) -> tuple[int, int]:
    """How many images are `short` and `open`, as in `read_status`. `view` has COLUMNS."""
    counts = count_rows(view, info)
    return counts.short, counts.open


def list_held_back(info: RunInfo) -> list[str]:
    """A line for each class that the plan leaves below its target (`target.max_synthetic_share`)."""
    if info.config_as(TargetConfig, "target").max_synthetic_share is None:
        return []
    reached = Counter(info.real_counts)
    for item in info.plan:
        reached[item["class"]] += item["quota"]
    lacking = {name: target - reached[name] for name, target in info.targets.items()}
    return below_target(info.targets, {name: count for name, count in lacking.items() if count > 0})


def count_rows(view: LogView, info: RunInfo) -> Counts:
    return _count(judged_rows(view.table), _void_by_cell(view.table), info)


def _planning(info: RunInfo) -> PlanningConfig:
    return info.config_as(PlanningConfig, "planning")


def find_state(view: LogView, now: datetime.datetime) -> str:
    """What the last driver said when it ended; if it did not, whether it still seems to be there."""
    if view.state is not None:
        return view.state
    return "running" if is_running(view.last, now) else "stopped"


def is_running(last: Stamp | None, now: datetime.datetime) -> bool:
    """Whether the driver that committed the last fragment still seems to be there."""
    if last is None or last.state is not None:
        return False
    return (now - last.committed_at).total_seconds() < SILENT_AFTER_S


def refuse_running(storage: Storage, last: Stamp | None, now: datetime.datetime, permission: str) -> None:
    """UsageError while a driver seems to be there. `permission` names what is possible after the run."""
    if is_running(last, now):
        raise UsageError(
            f"{storage.uri}: the run is in progress; {permission} when it has ended",
            hint=f"stop it first; one that was killed counts as running for {SILENT_AFTER_S:.0f} s more",
        )


def _void_by_cell(rows: pa.Table) -> Counter[str]:
    return Counter(rows.filter(pc.field("status") == VOID)["cell"].to_pylist())


def _count(judged: pa.Table, void: Counter[str], info: RunInfo) -> Counts:
    made, reasons = made_rows(judged), Counter(_rejected(judged)["reason"].to_pylist())
    judged = _in_plan(judged, info)
    accepted = judged.filter(pc.field("status") == "accepted")
    rejected = _rejected(judged)
    filled = set(accepted["slot"].to_pylist())
    tries = Counter(rejected["slot"].to_pylist())
    exhausted = [slot for slot, count in tries.items() if count >= info.max_attempts and slot not in filled]
    short = Counter(slot.rpartition("/")[0] for slot in exhausted)
    given_up = {}
    floor = info.config_as(AttemptsConfig, "attempts").give_up_below
    filled_in = Counter(accepted["cell"].to_pylist())
    tallies = tallies_by(made_rows(judged), "cell")
    for cell, quota in ((item["cell"], item["quota"]) for item in info.plan):
        tally = tallies.get(cell, Tally(0, 0))
        passing = Tally(tally.accepted + void[cell], tally.candidates + void[cell])  # void ones do by now
        if filled_in[cell] < quota and passing.is_below(floor):
            given_up[cell] = tally
            short[cell] = quota - filled_in[cell]
    return Counts(
        candidates=made.num_rows,
        passed=made.num_rows - _rejected(made).num_rows,
        accepted=accepted.num_rows,
        short_by_cell=short,
        open=max(0, info.wanted - accepted.num_rows - short.total()),
        reasons=reasons,
        unjudged=count_unjudged(accepted, info.properties),
        unproven=count_unproven(accepted, info.properties),
        given_up=given_up,
    )


def _rejected(judged: pa.Table) -> pa.Table:
    return judged.filter(pc.field("status") == "rejected")


def _in_plan(judged: pa.Table, info: RunInfo) -> pa.Table:
    """Without candidates of slots that a later plan revision took away."""
    if info.revision == 1:
        return judged
    quotas = {item["cell"]: item["quota"] for item in info.plan}
    parts = (slot.rpartition("/") for slot in judged["slot"].to_pylist())
    return judged.filter(pa.array([int(index) < quotas[cell] for cell, _, index in parts], pa.bool_()))


def accepted_per_s(judged: pa.Table, view: LogView, now: datetime.datetime) -> float:
    """How many images were accepted a second, in the last minutes of the last start."""
    since = now - datetime.timedelta(seconds=RATE_WINDOW_S)
    if view.opened_at is not None:
        since = max(since, view.opened_at)
    window_s = (now - since).total_seconds()
    recent = (pc.field("status") == "accepted") & (pc.field("generated_at") >= pa.scalar(since))
    return judged.filter(recent).num_rows / window_s if window_s > 0 else 0.0
