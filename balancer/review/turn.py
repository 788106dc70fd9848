"""Take the log for a moment to commit what people decided, if nobody else is at work on it.

A driver that is alive is never fenced for that: the log is only taken where it was closed, or where somebody
who took it for the same purpose was stopped before closing it. What waits after a driver that was killed goes
into the log with the next start.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from balancer.errors import UsageError
from balancer.manifest.layout import fragment_path
from balancer.manifest.log.closing import closing_on_error
from balancer.manifest.log.fragment import MAX_FRAGMENT_BYTES, Stamp, State, decode
from balancer.manifest.log.reader import ID, last_seq
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import utc_now
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.status import is_running
from balancer.review.pending import list_pending
from balancer.review.taking import Taken, take_in
from balancer.runs.resume import effective_config, restore_schedule
from balancer.storage import Storage

OPENED_FOR = "review"
"""The reason with which a log is opened and closed here."""


class LogInUseError(UsageError):
    """A driver holds the log, or did when it was killed."""


def commit_waiting(
    storage: Storage, info: RunInfo | None = None, now: Callable[[], dt.datetime] = utc_now
) -> Taken:
    """Take in what waits; the log is left in the state it was in, but for slots that are open now.

    LogInUseError if somebody else holds the log, FencedError if a driver takes it over meanwhile: what was
    not committed then waits on.
    """
    if not list_pending(storage):
        return Taken()
    info = info or read_run(storage)
    _refuse_at_once(storage, info, now())
    log = ManifestLog.open(
        storage,
        info.schema(),
        info.run_id,
        now=now,
        detail={"reason": OPENED_FOR},
        check_free=lambda stamps: refuse_unless_free(stamps, now()),
    )
    before = _state_before(log.stamps)
    with closing_on_error(log, before, OPENED_FOR):
        taken = take_in(storage, log, info, restoring=True)
        state = _state_after(log, info, before)
    log.close(state, {"reason": OPENED_FOR})
    return taken


def _refuse_at_once(storage: Storage, info: RunInfo, now: dt.datetime) -> None:
    """By the last fragment alone, while a driver is at work: this is asked often, and logs can be long."""
    seq = last_seq(storage)
    if not seq:
        return
    last = decode(storage.read(fragment_path(seq), MAX_FRAGMENT_BYTES), seq, info.schema(), [ID]).stamp
    if is_running(last, now):
        raise _in_use()


def refuse_unless_free(stamps: Sequence[Stamp], now: dt.datetime) -> None:
    """LogInUseError unless the log was closed, or left open by another review that is gone."""
    if not stamps or stamps[-1].event in ("close", "repair"):
        return
    opened = next((stamp for stamp in reversed(stamps) if stamp.event == "open"), None)
    is_ours = opened is not None and (opened.detail or {}).get("reason") == OPENED_FOR
    if is_ours and not is_running(stamps[-1], now):
        return
    raise _in_use()


def _in_use() -> LogInUseError:
    return LogInUseError(
        "somebody else holds the log; decisions are saved, and wait",
        hint="a running driver takes them in, or else the next `balancer run`",
    )


def _state_before(stamps: Sequence[Stamp]) -> State:
    """As the last one left it who was not here for a review."""
    closed = (
        stamp.state
        for stamp in reversed(stamps)
        if stamp.state is not None and (stamp.detail or {}).get("reason") != OPENED_FOR
    )
    return next(closed, "interrupted")


def _state_after(log: ManifestLog, info: RunInfo, before: State) -> State:
    if before not in ("complete", "short", "interrupted"):
        return before
    info = info.under(log.rules)
    schedule = restore_schedule(info, effective_config(info, log.rules), log.kept(), None)
    if schedule.open:
        return "interrupted"
    return before if before == "interrupted" else "short" if schedule.short else "complete"
