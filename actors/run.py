"""One run from config to result: audit, plan, run folder, real images, cluster, actors, loop."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors import weights
from actors.cluster import Fleet, Resources, connected, fit
from actors.driver import Driver, StopSignal
from actors.pool import Limits, Pool, WorkerSpec
from actors.simulated import EMBEDDING_DIM
from balancer.audit import audit_dataset, match_classes
from balancer.cells import CLASS_PROPERTY, Candidate, Cell, Slot
from balancer.config import Config
from balancer.errors import BalancerError, FencedError, InterruptedRun, UsageError
from balancer.manifest.fragment import State
from balancer.manifest.layout import RUN_FILE
from balancer.manifest.log import ManifestLog, read_log
from balancer.manifest.real import commit_real_images
from balancer.manifest.rows import SYNTHETIC, RunFacts
from balancer.manifest.runfile import RunInfo, create_run, read_run
from balancer.plan import Plan, Priority, make_plan
from balancer.progress import Snapshot
from balancer.prompts import ladder
from balancer.schedule import Outcome, Schedule
from balancer.storage import Storage, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONED_PACKAGES = ("balancer", "ray", "torch", "diffusers", "transformers", "open_clip_torch", "pyarrow")

CPU_THREADS = 1
"""Threads of an actor on CPU. Several single-threaded generators make more images than one with several
threads, and an image does not depend on how many cores a machine has."""


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
    known = find_run(out)
    if known is not None:
        _check_unchanged(config, known, allow_config_change)
        if (done := _finished_before(config, known, out)) is not None:
            reporter.note(f"{out} is complete: {done.accepted} of {done.wanted} images accepted")
            return done
    models = describe_models(config)  # before the dataset is read, which can take long
    found = audit_dataset(config)
    counts = match_classes(found, config)
    info = known or describe_run(config, make_plan(config, counts), models)
    with connected(address) as resources, _stop_signals() as stop:
        fleet = fit(resources, config.actors, _batches(info, config))
        storage = open_storage(out, create=True)
        info = create_run(storage, info)
        log = ManifestLog.open(storage, info.schema(), info.run_id)
        with _closing(log) as close:
            facts = facts_of(info, config)
            commit_real_images(found, config.classes, log, storage, facts)
            schedule = schedule_of(info, config, log.table(), limit)
            _announce(reporter, schedule, fleet, config)
            driver = _driver(config, facts, schedule, log, _pools(config, fleet, resources, storage), stop)
            driver.on_progress, driver.note = reporter.progress, reporter.note
            try:
                state = driver.run()
            finally:
                driver.close()
            close(state)
    return _result(info.run_id, state, schedule)


# ---- the run folder --------------------------------------------------------------------------


def find_run(out: str | os.PathLike[str]) -> RunInfo | None:
    """The run in a folder, None if that is empty or not there; UsageError if it holds something else."""
    try:
        storage = open_storage(out, create=False)
    except UsageError:
        if os.path.lexists(out):
            raise
        return None
    if storage.exists(RUN_FILE):
        return read_run(storage)
    if found := storage.list(""):
        raise UsageError(
            f"{out} holds files but no run, such as {found[0]}",
            hint="choose another --out, or empty the folder",
        )
    return None


def describe_run(config: Config, plan: Plan, models: Mapping[str, Mapping[str, Any]]) -> RunInfo:
    """What run.json says of a new run."""
    return RunInfo(
        run_id=uuid.uuid4().hex,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        name=config.name,
        config=config.model_dump(mode="json"),
        fingerprint=config.fingerprint(),
        seed=config.seed,
        facets=list(config.facets),
        plan=[
            {
                "class": item.cell.class_name,
                **{facet: item.cell.value(facet) for facet in config.facets},
                "cell": item.cell.key,
                "quota": item.quota,
                "priority": str(item.priority),
            }
            for item in plan.cells
        ],
        real_counts=dict(plan.counts),
        embedding_dim=int(models["verifier"]["embedding_dim"]),
        versions={name: _version(name) for name in VERSIONED_PACKAGES},
        models={
            kind: {"model": described["model"], "revision": described["revision"]}
            for kind, described in models.items()
        },
    )


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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _check_unchanged(config: Config, known: RunInfo, allowed: bool) -> None:
    if config.fingerprint() == known.fingerprint:
        return
    before = Config.model_validate(known.config)
    changed = _differences(before.decisive(), config.decisive())
    if not allowed:
        raise UsageError(
            f"this run was started with another config; changed: {', '.join(changed)}",
            hint="choose another --out, undo the change, or pass --allow-config-change to go on with both",
        )
    planned = [name for name in changed if name.split(".")[0] in ("classes", "facets", "target")]
    if before.plan_shape() != config.plan_shape():
        raise UsageError(
            f"the plan of a started run is fixed, and {', '.join(planned)} would change it",
            hint="choose another --out",
        )


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths of the settings that differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [path]
    names = dict.fromkeys([*before, *after])
    return [
        found
        for name in names
        for found in _differences(before.get(name), after.get(name), f"{path}.{name}".lstrip("."))
    ]


def _finished_before(config: Config, known: RunInfo, out: str | os.PathLike[str]) -> RunResult | None:
    """The result of a run that has nothing left to do, so that Ray need not start."""
    view = read_log(open_storage(out, create=False))
    if view.state not in ("complete", "short"):
        return None
    schedule = schedule_of(known, config, view.table, None)
    return None if schedule.open else _result(known.run_id, view.state, schedule)


def facts_of(info: RunInfo, config: Config) -> RunFacts:
    offsets, total = {}, 0
    for item in info.plan:
        offsets[str(item["cell"])] = total
        total += int(item["quota"])
    return RunFacts(
        run_id=info.run_id,
        facets=tuple(info.facets),
        config=config,
        model_revision=info.models["generator"]["revision"],
        verifier_revision=info.models["verifier"]["revision"],
        cell_offsets=offsets,
    )


def schedule_of(info: RunInfo, config: Config, rows: pa.Table, limit: int | None) -> Schedule:
    """The state machine, brought to where the committed rows left it."""
    ranks = {str(priority): rank for rank, priority in enumerate(Priority)}
    quotas = [
        (_cell(item, info.facets), int(item["quota"]), ranks[str(item["priority"])]) for item in info.plan
    ]
    return Schedule(
        quotas,
        attempts=len(ladder(config)),
        max_candidates=config.budget.max_candidates,
        max_slots=limit,
        history=_history({cell.key: cell for cell, _, _ in quotas}, rows),
    )


def _cell(item: Mapping[str, Any], facets: list[str]) -> Cell:
    return Cell(str(item["class"]), tuple((name, item[name]) for name in facets if item[name] is not None))


def _history(cells: Mapping[str, Cell], rows: pa.Table) -> Iterator[Outcome]:
    wanted = rows.select(["source", "cell", "slot", "attempt", "reason"]).to_pylist()
    made = [row for row in wanted if row["source"] == SYNTHETIC]
    for row in sorted(made, key=lambda row: (row["slot"], row["attempt"])):
        slot = Slot(cells[row["cell"]], int(row["slot"].rpartition("/")[2]))
        yield Outcome(Candidate(slot, row["attempt"]), row["reason"])


# ---- actors ----------------------------------------------------------------------------------


def _batches(info: RunInfo, config: Config) -> int:
    return -(-sum(int(item["quota"]) for item in info.plan) // config.generation.batch_size)


def _pools(config: Config, fleet: Fleet, resources: Resources, storage: Storage) -> tuple[Pool, Pool, Pool]:
    actors = config.actors
    limits = Limits(actors.start_timeout_s, actors.call_timeout_s, actors.max_restarts)
    generator = WorkerSpec(
        "generator",
        *_generator_worker(config, on_gpu=fleet.gpus_per_generator > 0),
        num_cpus=fleet.cpus_per_generator,
        num_gpus=fleet.gpus_per_generator,
    )
    verifier = WorkerSpec(
        "verifier",
        *_verifier_worker(config, on_gpu=fleet.gpus_per_verifier > 0),
        num_gpus=fleet.gpus_per_verifier,
    )
    # The run folder is on the driver's disk: only there can it be written.
    writer = WorkerSpec(
        "writer", "actors.writer:Writer", {"storage_uri": storage.uri}, node=resources.driver_node
    )
    return (
        Pool(generator, fleet.generators, limits),
        Pool(verifier, fleet.verifiers, limits),
        Pool(writer, fleet.writers, limits),
    )


def _generator_worker(config: Config, on_gpu: bool) -> tuple[str, dict[str, Any]]:
    made = config.generation
    sizes = {"width": made.width, "height": made.height, "batch_size": made.batch_size}
    if config.actors.kind == "simulated":
        service_s = (config.planning.seconds_per_candidate or 0.0) * made.batch_size
        return "actors.simulated:SimulatedGenerator", sizes | {"service_s": service_s}
    return "actors.generator:Generator", sizes | {
        "model": _located(made.model),
        "revision": made.revision,
        "variant": made.variant,
        "steps": made.steps,
        "dtype": made.dtype,
        "device": _device(config, on_gpu),
        "threads": CPU_THREADS,
    }


def _verifier_worker(config: Config, on_gpu: bool) -> tuple[str, dict[str, Any]]:
    properties = properties_of(config)
    if config.actors.kind == "simulated":
        return "actors.simulated:SimulatedVerifier", {
            "properties": properties,
            "pass_rate": config.planning.acceptance,
        }
    return "actors.verifier:Verifier", {
        "model": _located(config.verification.model),
        "revision": config.verification.revision,
        "properties": properties,
        "device": _device(config, on_gpu),
        "threads": CPU_THREADS,
    }


def _located(model: str) -> str:
    """A folder by its full path: actors do not work in the driver's folder."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def _device(config: Config, on_gpu: bool) -> str:
    """`cuda` only if the config insists: a GPU that Ray counts may still be unusable for torch."""
    if not on_gpu:
        return "cpu"
    return config.actors.device


def properties_of(config: Config) -> dict[str, dict[str, tuple[str, ...]]]:
    """What the verifier tells apart: property -> value -> the wordings it knows the value by."""
    classes = {name: item.labels or item.prompts for name, item in config.classes.items()}
    return {CLASS_PROPERTY: classes} | {
        name: {value: item.labels or item.prompts for value, item in facet.values.items()}
        for name, facet in config.facets.items()
    }


def _driver(
    config: Config,
    facts: RunFacts,
    schedule: Schedule,
    log: ManifestLog,
    pools: tuple[Pool, Pool, Pool],
    stop: StopSignal,
) -> Driver:
    generators, verifiers, writers = pools
    return Driver(config, facts, schedule, log, generators, verifiers, writers, stop)


# ---- beginning and end -----------------------------------------------------------------------


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
