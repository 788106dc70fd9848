"""What the committed rows of a run say of its pace, its acceptance and the size of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.manifest.columns import ORIGIN
from balancer.manifest.log.fragment import Stamp
from balancer.manifest.log.view import read_log
from balancer.manifest.rows import ACCEPTED, REJECTED, SYNTHETIC
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.schema import GROWING
from balancer.planning.plan import Measured
from balancer.scheduling.adaptive import Tally
from balancer.storage import Storage

COLUMNS = ("source", "status", "attempt", "num_bytes", "generated_at", "batch_size")


def measure_run(storage: Storage) -> Measured:
    """UsageError if the folder holds no run, ManifestError if its manifest is damaged."""
    view = read_log(storage, with_origin(COLUMNS, read_run(storage)))
    return compute_measured(judged_rows(view.table), view.opened, storage.uri)


def with_origin(columns: Sequence[str], info: RunInfo) -> tuple[str, ...]:
    """With the column that tells images that were taken over, if the run has it."""
    return (*columns, *(ORIGIN[:1] if info.format >= GROWING else ()))


def made_rows(judged: pa.Table) -> pa.Table:
    """Without images that were taken over from another run: nothing was generated for them."""
    if ORIGIN[0] not in judged.column_names:
        return judged
    return judged.filter(pc.field(ORIGIN[0]).is_null())


def judged_rows(rows: pa.Table) -> pa.Table:
    """Generated candidates with a verdict that counts."""
    has_verdict = pc.field("status").isin([ACCEPTED, REJECTED])
    return rows.filter((pc.field("source") == SYNTHETIC) & has_verdict)


def compute_measured(judged: pa.Table, opened: Sequence[Stamp], source: str) -> Measured:
    """`opened` are the stamps with which drivers opened the log; `source` names the run in estimates."""
    judged = made_rows(judged)
    if not judged.num_rows:
        return Measured(source)
    accepted = judged.filter(pc.field("status") == ACCEPTED)
    tallies = tallies_by(judged, "attempt")
    return Measured(
        source=source,
        acceptance=accepted.num_rows / judged.num_rows,
        seconds_per_candidate=_seconds_per_candidate(judged, opened),
        bytes_per_image=pc.mean(accepted["num_bytes"]).as_py(),
        by_attempt=tuple(tallies.get(attempt, Tally(0, 0)) for attempt in range(1, max(tallies) + 1)),
    )


def tallies_by(judged: pa.Table, column: str) -> dict[Any, Tally]:
    """How many candidates there were, and how many were accepted, for each value of a column."""
    accepted = count_values(judged.filter(pc.field("status") == ACCEPTED)[column])
    return {value: Tally(accepted[value], count) for value, count in count_values(judged[column]).items()}


def count_values(column: pa.ChunkedArray) -> Counter[Any]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()})


def _seconds_per_candidate(judged: pa.Table, opened: Sequence[Stamp]) -> float | None:
    """Time of one generator for one candidate, over all starts of the run; None if they were too short to
    tell, or nothing says how many generators there were.

    Of each start, time counts from the end of the first batch of every generator, which came with the
    loading of the models, to the last row.
    """
    rows = judged.select(["generated_at", "batch_size"]).sort_by("generated_at")
    seconds, candidates = 0.0, 0
    for stamp, following in zip(opened, [*opened[1:], None], strict=True):
        generators = (stamp.detail or {}).get("generators")
        if not generators:
            continue
        made = rows.filter(pc.field("generated_at") >= pa.scalar(stamp.committed_at))
        if following:
            made = made.filter(pc.field("generated_at") < pa.scalar(following.committed_at))
        first_batches = generators * (pc.max(made["batch_size"]).as_py() or 1)
        if made.num_rows > first_batches:
            times = made["generated_at"]
            elapsed = times[-1].as_py() - times[first_batches - 1].as_py()
            seconds += generators * elapsed.total_seconds()
            candidates += made.num_rows - first_batches
    return seconds / candidates if seconds > 0 else None
