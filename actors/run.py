"""One run from config to result: audit, plan, run folder, real images, cluster, actors, loop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors import weights
from actors.cluster import Fleet, connected, fit
from actors.driver import Driver, StopSignal
from actors.fleet import pools_of
from actors.simulated import EMBEDDING_DIM
from balancer.audit import audit_dataset, match_classes
from balancer.config import Config
from balancer.errors import BalancerError, FencedError, InterruptedRun
from balancer.manifest.fragment import State
from balancer.manifest.log import ManifestLog, read_log
from balancer.manifest.real import commit_real_images
from balancer.manifest.runfile import RunInfo, create_run
from balancer.plan import make_plan
from balancer.progress import Snapshot
from balancer.resume import check_unchanged, describe_run, facts_of, find_run, schedule_of
from balancer.schedule import Schedule
from balancer.storage import open_storage


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: `state` is complete, short, budget, or interrupted by its limit."""

    run_id: str
    state: str
    wanted: int
    accepted: int
    short: int
    candidates: int
    rejected_by_reason: Mapping[str, int]
    open_cells: Mapping[str, int]
    """Images still missing in each cell that is not full."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Where a run tells what it does: `note` takes single lines, `progress` snapshots."""

    note: Callable[[str], None] = lambda text: None
    progress: Callable[[Snapshot], None] = lambda snapshot: None


def run(
    config: Config,
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    limit: int | None = None,
    allow_config_change: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Balance the dataset of `config` into the run folder `out`, or go on where it was left.

    `address` is a Ray cluster (host:port or `auto`), `limit` the number of slots to work on now.
    """
    reporter = reporter or Reporter()
    models = describe_models(config)  # before the dataset is read, which can take long
    known = find_run(out)
    if known is not None:
        check_unchanged(config, models, known, allow_config_change)
        if (done := _finished_before(config, known, out)) is not None:
            reporter.note(f"nothing left to do, the run is {done.state}: {out}")
            return done
    found = audit_dataset(config)
    counts = match_classes(found, config)
    if found.unreadable:
        reporter.note(
            f"{len(found.unreadable)} images cannot be read and are not counted; "
            f"`balancer audit {found.path}` lists them"
        )
    info = known or describe_run(config, make_plan(config, counts), models)
    with connected(address) as resources, _stop_signals() as stop:
        fleet = fit(resources, config.actors, _batches(info, config))
        storage = open_storage(out, create=True)
        if known is None:
            info = create_run(storage, info)
            check_unchanged(config, models, info, allow_config_change)  # another start may have been first
        log = ManifestLog.open(storage, info.schema(), info.run_id)
        with _closing(log) as close:
            facts = facts_of(info, config)
            commit_real_images(found, config.classes, log, storage, facts)
            schedule = schedule_of(info, config, log.table(), limit)
            _announce(reporter, schedule, fleet, config)
            pools = pools_of(config, fleet, resources, storage)
            driver = Driver(config, facts, schedule, log, *pools, stop)
            driver.on_progress, driver.note = reporter.progress, reporter.note
            try:
                state = driver.run()
            finally:
                driver.close()
            close(state)
    return _result(info.run_id, state, schedule)


def describe_models(config: Config) -> dict[str, dict[str, Any]]:
    """Model, revision and, of the verifier, embedding size; WeightsError if one is not to be had."""
    if config.actors.kind == "simulated":
        simulated = {"model": "simulated", "revision": None}
        return {"generator": simulated, "verifier": simulated | {"embedding_dim": EMBEDDING_DIM}}
    made, judged = config.generation, config.verification
    return {
        "generator": weights.describe(made.model, made.revision, made.variant, "generator"),
        "verifier": weights.describe(judged.model, judged.revision, None, "verifier"),
    }


def _finished_before(config: Config, known: RunInfo, out: str | os.PathLike[str]) -> RunResult | None:
    """The result of a run that has nothing left to do, so that Ray need not start."""
    view = read_log(open_storage(out, create=False))
    if view.state not in ("complete", "short"):
        return None
    schedule = schedule_of(known, config, view.table, None)
    return None if schedule.open else _result(known.run_id, view.state, schedule)


def _batches(info: RunInfo, config: Config) -> int:
    return -(-sum(int(item["quota"]) for item in info.plan) // config.generation.batch_size)


def _announce(reporter: Reporter, schedule: Schedule, fleet: Fleet, config: Config) -> None:
    for reason in fleet.reasons:
        reporter.note(reason)
    if schedule.candidates:
        reporter.note(
            f"going on: {len(schedule.accepted)} of {schedule.wanted} images accepted already, "
            f"{schedule.open} to go"
        )
    reporter.note(
        f"{schedule.open} images to make, batches of {config.generation.batch_size}, up to "
        f"{schedule.attempts} attempts each"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[StopSignal]:
    """SIGINT and SIGTERM stop the loop instead of the process, for as long as the run lasts."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread gets signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _closing(log: ManifestLog) -> Iterator[Callable[[State], None]]:
    """Writes how the run ended into the log: by the given function, or by the error that ended it."""
    try:
        yield log.close
    except FencedError:
        raise  # the log belongs to another driver now
    except InterruptedRun as error:
        log.close("interrupted", {"reason": error.message})
        raise
    except BalancerError as error:
        with contextlib.suppress(BalancerError):  # the first error is the one to tell
            log.close("failed", {"reason": error.message})
        raise


def _result(run_id: str, state: str, schedule: Schedule) -> RunResult:
    accepted = Counter(slot.cell.key for slot in schedule.accepted)
    missing = {
        cell.key: quota - accepted[cell.key]
        for cell, quota, _ in schedule.quotas
        if accepted[cell.key] < quota
    }
    return RunResult(
        run_id=run_id,
        state=state,
        wanted=schedule.wanted,
        accepted=len(schedule.accepted),
        short=len(schedule.short),
        candidates=schedule.candidates,
        rejected_by_reason=dict(schedule.rejected_by_reason.most_common()),
        open_cells=missing,
    )
