"""How far a run is, from its files alone."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.manifest.log import LogView, read_log
from balancer.manifest.runfile import RunInfo, read_run
from balancer.progress import eta_s
from balancer.storage import Storage

SILENT_AFTER_S = 120.0
"""A driver commits every few batches; one that was silent for so long is taken for gone."""

RATE_WINDOW_S = 300.0
"""The time left follows from what was accepted in the last minutes."""


@dataclass(frozen=True, slots=True)
class _Counts:
    candidates: int
    accepted: int
    short: int
    reasons: Counter[str]


def status_of(storage: Storage, now: datetime.datetime) -> dict[str, Any]:
    """What `balancer status --json` prints. `now` is aware of its time zone; real images do not count.

    UsageError if the folder holds no run, ManifestError if its manifest is damaged.
    """
    info, view = read_run(storage), read_log(storage)
    generated = view.table.filter(pc.field("source") == "synthetic")
    counts = _count(generated, info.max_attempts)
    settled = counts.accepted + counts.short
    state = _state(view, now)
    return {
        "run_id": info.run_id,
        "state": state,
        "wanted": info.wanted,
        "accepted": counts.accepted,
        "short": counts.short,
        "candidates": counts.candidates,
        "rejected_by_reason": dict(counts.reasons.most_common()),
        "success_rate": counts.accepted / settled if settled else None,
        "acceptance": counts.accepted / counts.candidates if counts.candidates else None,
        "eta_s": _eta_s(generated, info, counts, view, now) if state == "running" else None,
    }


def _state(view: LogView, now: datetime.datetime) -> str:
    """What the last driver said when it ended; if it did not, whether it still seems to be there."""
    if view.state is not None:
        return view.state
    if view.last is None:
        return "stopped"
    silent_s = (now - view.last.committed_at).total_seconds()
    return "running" if silent_s < SILENT_AFTER_S else "stopped"


def _count(generated: pa.Table, max_attempts: int) -> _Counts:
    accepted = generated.filter(pc.field("status") == "accepted")
    rejected = generated.filter(pc.field("status") == "rejected")
    filled = set(accepted["slot"].to_pylist())
    tries = Counter(rejected["slot"].to_pylist())
    return _Counts(
        candidates=generated.num_rows,
        accepted=accepted.num_rows,
        short=sum(count >= max_attempts for slot, count in tries.items() if slot not in filled),
        reasons=Counter(rejected["reason"].to_pylist()),
    )


def _eta_s(
    generated: pa.Table, info: RunInfo, counts: _Counts, view: LogView, now: datetime.datetime
) -> float | None:
    since = now - datetime.timedelta(seconds=RATE_WINDOW_S)
    if view.opened_at is not None:
        since = max(since, view.opened_at)
    window_s = (now - since).total_seconds()
    recent = (pc.field("status") == "accepted") & (pc.field("generated_at") >= pa.scalar(since))
    rate = generated.filter(recent).num_rows / window_s if window_s > 0 else 0.0
    return eta_s(max(0, info.wanted - counts.accepted - counts.short), rate)
