"""One run from config to result: audit, plan, run folder, real images, cluster, actors, loop."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from actors.adapters import compare_adapters
from actors.cluster.connect import (
    alone,
    connected,
    end_if_stopped,
    ended_by_signals,
    interrupted,
    refuse_silent,
    starting,
)
from actors.cluster.fleet import Pools, make_pools, start_pools
from actors.cluster.pool import Pool, call_all, shared
from actors.cluster.sizing import Fleet, fit
from actors.domain import study
from actors.heads import judge_real_images, study_heads
from actors.labelled import Looking
from actors.loop.assembly import build_driver
from actors.loop.collapse import CollapseWatch
from actors.models.conditioning.support import refuse_without_image_to_image
from actors.models.families.checks import check_generator
from actors.models.simulated import EMBEDDING_DIM
from actors.real_images import (
    REAL,
    MeasureCall,
    Measurements,
    RealImages,
    find_holdout_duplicates,
    list_references,
    load_calibration,
    measure_real_images,
    real_facets,
    run_preflight,
)
from actors.specs import Workers, with_lora_hashes
from actors.weights import loras
from actors.weights import resolve as weights
from balancer.conditioning.drawing import Drawing, describe_change, describe_pool
from balancer.conditioning.eligible import make_pool
from balancer.conditioning.pool import ParentPool
from balancer.config.schema import Config
from balancer.dataset.audit import Audit, audit_dataset, audit_holdout, credited_facets, match_classes
from balancer.dataset.location import refuse_shared_holdout
from balancer.dataset.near_duplicates import COMPARED, NearDuplicateIndex, known_images
from balancer.dataset.splits import assign_splits, select_training
from balancer.dataset.unreadable import describe_unreadable
from balancer.errors import (
    BalancerError,
    ClusterError,
    ConfigError,
    FencedError,
    InterruptedRun,
    UsageError,
)
from balancer.evaluation.targets import with_recommended_targets
from balancer.manifest.image_check import check_images
from balancer.manifest.layout import head_path, typicality_path
from balancer.manifest.log.closing import closing_on_error
from balancer.manifest.log.fragment import Stamp, State
from balancer.manifest.log.view import LogView, read_log
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import ACCEPTED, SYNTHETIC, utc_now
from balancer.manifest.runfile import RunInfo, create_run, load_heads, load_typicality
from balancer.manifest.snapshot.build import compact_if_long
from balancer.manifest.snapshot.current import renew_current
from balancer.manifest.status import SILENT_AFTER_S, list_held_back, suggest_remedies
from balancer.planning.plan import Plan, held_back, make_plan
from balancer.process.signals import StopSignal
from balancer.review.taking import Taken, describe_taken, take_in
from balancer.review.turn import LogInUseError, commit_waiting
from balancer.runs.growing import (
    Growing,
    Proof,
    commit_growth,
    describe_holdout,
    find_begun,
    is_comparison_done,
    is_other_holdout,
    refuse_other_rules,
    set_aside_copies,
)
from balancer.runs.import_real import commit_real_images
from balancer.runs.resume import (
    CALIBRATION,
    LORA,
    check_unchanged,
    count_wordings,
    describe_run,
    find_run,
    is_another_verifier,
    restore_schedule,
    run_facts,
    spelled_as_begun,
)
from balancer.runs.reuse import Target, find_source, take_over
from balancer.runs.runlog import RunLog
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.progress import Snapshot, progress_line
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage, open_storage, refuse_without_create_only
from balancer.storage.address import KEPT_OUT
from balancer.text.quantities import are, counted, were
from balancer.text.safetext import has_credentials
from balancer.verification.calibration import read_configured
from balancer.verification.head_choice import Heads, refuse_lacking_heads, summarise_heads
from balancer.verification.heads import Head
from balancer.verification.label_issues import describe_label_issues
from balancer.verification.off_domain import Domain, refuse_accepted_challenges, summarise
from balancer.verification.preflight import refuse_unproven, summary

if TYPE_CHECKING:
    from balancer.verification.typicality import Typicality

LISTED_CELLS = 20
"""Cells with missing images that a run lists in the end."""

WATCH_S = 10.0
"""Between two lines that say how far the audit is."""


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
    given_up: Mapping[str, Tally] = field(default_factory=dict)
    """Those of these cells in which too few candidates pass, and how many did."""
    held_back: tuple[str, ...] = ()
    """A line for each class that stays below its target by `target.max_synthetic_share`."""
    collapsed: str = ""
    """Which class stopped the run, and how far its images lack diversity (`attempts.stop_when_collapsed`)."""
    remedies: tuple[str, ...] = ()
    """What would help, if images are missing; `balancer.run_status` has the figures."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Where a run reports: `note` takes single lines, `progress` snapshots."""

    note: Callable[[str], None] = lambda text: None
    progress: Callable[[Snapshot], None] = lambda snapshot: None
    begun_s: float = field(default_factory=time.monotonic)

    def step(self, text: str) -> None:
        """A note that begins with the time since the start: what takes long says so before it does."""
        minutes, seconds = divmod(int(time.monotonic() - self.begun_s), 60)
        self.note(f"{minutes}:{seconds:02d} {text}")

    @contextlib.contextmanager
    def watch_images(self, total: int) -> Iterator[Callable[[int], None]]:
        """A step now and then while images are read."""
        said_s = time.monotonic()

        def count(done: int) -> None:
            nonlocal said_s
            if time.monotonic() - said_s >= WATCH_S:
                said_s = time.monotonic()
                self.step(f"{done} of {counted(total, 'image')} read")

        yield count


def run(
    config: Config,
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    limit: int | None = None,
    allow_config_change: bool = False,
    confirmed: bool = False,
    reuse: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    change_workers: Callable[[Workers], Workers] = lambda usual: usual,
) -> RunResult:
    """Balance the dataset of `config` into the run folder `out`, or go on where it was left.

    `address` is a Ray cluster (host:port or `auto`), `limit` the number of slots to work on now. `confirmed`
    lets accepted images leave where config or dataset ask for fewer. `reuse` is another run, whose accepted
    images are tried before any is generated.
    `change_workers` may put other workers in the place of the usual ones.
    """
    log = RunLog(progress_line)
    with (
        _logged(log, reporter or Reporter()) as logged,
        alone(),
        ended_by_signals(": what was accepted before is committed") as stop,
    ):
        _refuse_credentials(config.model_dump())
        permitted = allow_config_change, confirmed
        if reuse is not None and limit is not None:
            raise UsageError(
                "--reuse fills every open slot that it can, so --limit cannot hold", hint="leave one out"
            )
        result = _run(config, out, address, limit, permitted, reuse, logged, log, stop, change_workers)
        result = _looked_at_again(out, result)
        for line in (*result.held_back, *_missing(result)):
            logged.note(f"warning: {line}")
        for line in result.remedies:
            logged.note(f"what would help: {line}")
        log.flush_progress()
        log.note(
            f"{result.state}: {result.accepted} of {counted(result.wanted, 'image')} accepted, "
            f"{sum(result.open_cells.values())} missing, {counted(result.candidates, 'candidate')} made"
        )
        return result


@contextlib.contextmanager
def _logged(log: RunLog, reporter: Reporter) -> Iterator[Reporter]:
    """A reporter that writes to the run's log as well. The log also gets how the run ends."""

    def note(text: str) -> None:
        log.note(text)
        reporter.note(text)

    def progress(snapshot: Snapshot) -> None:
        log.progress(snapshot)
        reporter.progress(snapshot)

    try:
        yield replace(reporter, note=note, progress=progress)
    except BaseException as error:
        log.end(error)
        raise
    log.end(None)


def _run(
    config: Config,
    out: str | os.PathLike[str],
    address: str | None,
    limit: int | None,
    permitted: tuple[bool, bool],
    reuse: str | os.PathLike[str] | None,
    reporter: Reporter,
    run_log: RunLog,
    stop: StopSignal,
    change_workers: Callable[[Workers], Workers],
) -> RunResult:
    allow_config_change, confirmed = permitted
    config = with_recommended_targets(config, reporter.note)
    refuse_without_image_to_image(config)
    models = describe_models(config)  # before the dataset is read, which can take long
    _hear_people(out, reporter)
    begun = find_begun(out)
    known = begun.known if begun else None
    source = find_source(reuse, known)
    config = spelled_as_begun(config, known)
    if begun is None:  # runs of earlier versions, which did not look, are finished
        refuse_shared_holdout(config)
    else:
        check_unchanged(config, models, begun.known, allow_config_change, begun.view.rules)
    reporter.step(f"reading the dataset {config.dataset.path}")
    audit = audit_dataset(config, reporter.watch_images)
    splits = assign_splits(audit, config, begun.splits(audit) if begun else None)
    training = select_training(audit, splits)
    counts = match_classes(training, config)
    holdout = audit_holdout(config, reporter.watch_images)
    _note_unreadable(reporter, config, audit, holdout)
    _note_warnings(reporter, audit, holdout)
    _note_lines(reporter, compare_adapters(config, audit, holdout, splits))
    plan = make_plan(config, counts, credited_facets(training, config, must_match=begun is None))
    growing = begun.compared(config, audit, counts, confirmed, reporter.note) if begun else None
    if growing and (done := _done_without_ray(growing, config, plan, holdout, run_log, reporter)):
        return done
    wanted = growing.info.wanted if growing else plan.total
    refuse_silent(address)
    storage = open_storage(out, create=True)
    refuse_without_create_only(storage)
    stop.check()
    reporter.step(f"{counted(len(audit.images), 'image')} read, {wanted} to generate; {starting(address)}")
    with contextlib.ExitStack() as stack:
        stack.callback(stop.raise_again)  # when Ray has ended
        resources = stack.enter_context(connected(address, config.actors.allow_open_cluster))
        stop.only_note()  # from here on there are loops that look, and finish what is under way
        fleet = fit(resources, config.actors, -(-wanted // config.generation.usual_batch))
        reporter.step(
            f"Ray is there; actors start and load their models (generators {fleet.generators}, "
            f"verifiers {fleet.verifiers}, writers {fleet.writers})"
        )
        hashes = [model["sha256"] for kind, model in models.items() if kind.startswith(LORA)]
        made = make_pools(
            config,
            fleet,
            resources,
            storage,
            lambda usual: change_workers(with_lora_hashes(usual, hashes)),
        )
        pools = stack.enter_context(_started(made))
        for pool in pools:
            pool.stopping = lambda: stop.number is not None
        measure = _Measuring(config, audit, holdout, splits, pools.verifiers, stop, reporter)
        measured = measure.real_images()
        parents = measure.parents(measured, growing)
        described = None if parents is None else parents.describe()
        if growing:
            if _is_measured(config):
                plan = make_plan(config, counts, real_facets(measure.judged(measured), config, splits))
            info = _grown(growing, plan, models, measure, measured, storage, described)
        else:  # what the pre-flight refuses leaves no run behind
            proven = measure.prove(measured)
            if _is_measured(config):
                plan = make_plan(config, counts, real_facets(proven.judged, config, splits))
            for line in held_back(plan):
                reporter.note(line)
            proven.publish(storage)
            info = create_run(storage, describe_run(config, plan, models, *proven.as_dicts(), described))
            check_unchanged(config, models, info, allow_config_change)  # another start may have been first
        detail = {"generators": fleet.generators, **describe_holdout(holdout)}
        log = ManifestLog.open(storage, info.schema(), info.run_id, detail=detail)
        _begin_log(run_log, storage, info)
        _note_takeover(reporter, log.taken_from)
        with _closing(log) as close:
            references = list_references(measured)
            _note_taken(reporter, take_in(storage, log, info, restoring=True))
            commit_growth(growing, storage, log, references)
            facts = run_facts(info, config, models)
            schedule = restore_schedule(info, config, log.kept(), limit)
            copied = find_holdout_duplicates(measured, config)
            embeddings = measured.embeddings_by_id()
            set_aside_copies(log, copied, facts)
            commit_real_images(audit, config.classes, log, storage, facts, embeddings, copied, splits)
            known_images = NearDuplicateIndex(references, config.verification.copies)
            learned = _learned(info, models, storage, reporter)
            if source is not None:
                eligible = (parents or measure.pool(measured)).by_picture() if info.has_parents else {}
                target = Target(facts, log, storage, known_images, learned, eligible)
                reporter.note(str(take_over(source, target, schedule, measure.images)))
                schedule = restore_schedule(info, config, log.kept(), limit)
            _announce(reporter, schedule, fleet, config)
            if copied:
                reporter.note(
                    f"hold-out images show the same as {counted(len(copied), 'real image')}, such as"
                    f" {next(iter(copied))}; neither training nor validation and test get them"
                )
            driver = build_driver(
                config,
                facts,
                schedule,
                log,
                *pools,
                references=known_images,
                stop=stop,
                learned=learned,
                parents=None if parents is None else Drawing.from_log(parents, log),
                collapse=_watch_diversity(config, measured, log),
                wording_counts=count_wordings(log.kept()) if config.attempts.adaptive else None,
                on_progress=reporter.progress,
                note=reporter.note,
                announce=reporter.step,
                reviewed=(storage, info),
            )
            with _stopped_with_ray(stop):
                state = driver.run()
            close(state, {"reason": driver.collapsed} if driver.collapsed else None)
    _compact(storage, reporter)
    return replace(_result(info, state, schedule), collapsed=driver.collapsed)


def _watch_diversity(config: Config, measured: RealImages, log: ManifestLog) -> CollapseWatch | None:
    """None unless the config asks for it; with what earlier starts accepted."""
    if not config.attempts.stop_when_collapsed or config.actors.kind == "simulated":
        return None
    real = zip(measured.ids, measured.images, measured.embeddings, strict=True)
    watch = CollapseWatch.over(
        (image.class_name, row.tobytes()) for name, image, row in real if name.startswith(f"{REAL}/")
    )
    import pyarrow.compute as pc

    rows = log.table(["class", "source", "status", *COMPARED])
    accepted = rows.filter((pc.field("source") == SYNTHETIC) & (pc.field("status") == ACCEPTED))
    for name, image in zip(accepted["class"].to_pylist(), known_images(accepted), strict=True):
        if image.embedding is not None:
            watch.add(name, image.embedding)
    return watch


def _done_without_ray(
    growing: Growing,
    config: Config,
    plan: Plan,
    holdout: Audit | None,
    run_log: RunLog,
    reporter: Reporter,
) -> RunResult | None:
    """The result, if nothing is left to generate or to measure; else tells what is lost, and asks what needs
    `--yes`."""
    must_compare = not is_comparison_done(growing.view)
    if is_other_holdout(growing.view, holdout):
        must_compare = True
        reporter.note("the hold-out has other images by now; the dataset is compared with them")
    elif not must_compare and (done := _nothing_left(growing, config, reporter)) is not None:
        return done
    _load_learned(growing.begun.storage, growing.info)
    if _is_measured(config):
        return None
    growing.prepare(plan)
    return None if must_compare else _revised_at_once(growing, config, run_log, reporter)


def _grown(
    growing: Growing,
    plan: Plan,
    models: Mapping[str, Mapping[str, Any]],
    measure: _Measuring,
    measured: RealImages,
    storage: Storage,
    parents: dict[str, Any] | None,
) -> RunInfo:
    """The run as it will be. Other classes or facet values are proven anew."""

    def prove() -> Proof:
        proven = measure.prove(measured)
        proven.publish(storage)
        return proven.as_dicts()

    growing.prepare(plan)
    if not growing.needs_proof:
        measure.preflight(measured, _settled(growing.info, models))
    return growing.settled(prove, parents)


def _settled(known: RunInfo, models: Mapping[str, Mapping[str, Any]]) -> Collection[str]:
    """The properties that were proven when a run began: its heads judge them."""
    return () if is_another_verifier(models, known) else known.head_files


def _is_measured(config: Config) -> bool:
    """Whether the plan depends on what the verifier sees in the real images."""
    return config.target.count_real_facets == "measured" and config.actors.kind == "models"


def _begin_log(run_log: RunLog, storage: Storage, info: RunInfo) -> None:
    with contextlib.suppress(BalancerError):
        run_log.begin(storage, info.run_id)


def _note_takeover(reporter: Reporter, last: Stamp | None) -> None:
    """`last` is what a driver committed last that did not say how it ended."""
    if last is None:
        return
    silent_s = (utc_now() - last.committed_at).total_seconds()
    if silent_s < SILENT_AFTER_S:
        reporter.note(
            f"taking over from another driver, which committed {max(0, round(silent_s))} s ago: if it is"
            " still at work, it stops at its next commit, with exit code 5"
        )
    else:
        moment = f"{last.committed_at:%Y-%m-%d %H:%M:%S} UTC"
        reporter.note(f"the driver before this one ended without a word; its last commit was at {moment}")


def _hear_people(out: str | os.PathLike[str], reporter: Reporter) -> None:
    """What they decided since the run ended counts before it is said whether anything is left to do. While
    somebody else holds the log, nothing is taken in here."""
    if (known := find_run(out)) is None:
        return
    with contextlib.suppress(LogInUseError, FencedError):
        _note_taken(reporter, commit_waiting(open_storage(out, create=False), known))


def _note_taken(reporter: Reporter, taken: Taken) -> None:
    if line := describe_taken(taken):
        reporter.note(line)


def _note_unreadable(reporter: Reporter, config: Config, audit: Audit, holdout: Audit | None) -> None:
    for line in (
        describe_unreadable(audit, config),
        describe_unreadable(holdout, config, "hold-out image") if holdout else "",
    ):
        if line:
            reporter.note(line)


def _note_warnings(reporter: Reporter, *audits: Audit | None) -> None:
    _note_lines(reporter, [line for audit in audits if audit for line in audit.warnings])


def _note_lines(reporter: Reporter, lines: Iterable[str]) -> None:
    for line in lines:
        reporter.note(f"warning: {line}")


def _renew_current(storage: Storage, reporter: Reporter) -> None:
    """Whoever finished the run may have been killed before that, or be of a version without this file."""
    try:
        renew_current(storage)
    except BalancerError as error:
        reporter.note(f"warning: manifest/current.parquet may be behind: {error.message}")


def _compact(storage: Storage, reporter: Reporter) -> None:
    """Here the log has stopped growing and the models have left the GPUs: no better time to make a long log
    fast to query. Nothing depends on it, so a failure is only noted."""
    try:
        index = compact_if_long(storage)
    except BalancerError as error:
        reporter.note(f"the manifest could not be compacted, queries read the log: {error.message}")
        return
    if index is not None:
        rows, files = counted(index.rows, "row"), counted(len(index.files), "file")
        reporter.note(f"the manifest was compacted: {rows} in {files}")


def describe_models(config: Config) -> dict[str, dict[str, Any]]:
    """Model, revision and, of the verifier, embedding size and calibration; WeightsError if one is not to be
    had, UsageError if the calibration is not this verifier's, or is not there."""
    if config.actors.kind == "simulated":
        read_configured(config)
        simulated = {"model": "simulated", "revision": None}
        return {"generator": simulated, "verifier": simulated | {"embedding_dim": EMBEDDING_DIM}}
    check_generator(config, ask_hub=True)
    models: dict[str, dict[str, Any]] = {
        kind: weights.describe(*of, kind) for kind, of in weights.wanted_models(config).items()
    }
    models |= loras.describe_each(config)
    calibration = load_calibration(config)
    return models | {
        "verifier": models["verifier"] | {CALIBRATION: None if calibration is None else calibration.sha256()}
    }


@dataclass(frozen=True, slots=True)
class _Proven:
    """What the pre-flight of a new run found out. `judged` are the real images as a run would judge them."""

    judged: RealImages
    heads: Heads | None = None
    domain: Domain | None = None

    def as_dicts(self) -> Proof:
        """For run.json: of images of none of the classes, and of heads."""
        challenge = None if self.domain is None else self.domain.proof.as_dict()
        return challenge, None if self.heads is None else self.heads.as_dict()

    def publish(self, storage: Storage) -> None:
        """Write the files that run.json names."""
        if self.domain is not None and self.domain.proof.sha256 is not None:
            storage.publish(typicality_path(self.domain.proof.sha256), self.domain.typicality or b"")
        for sha256, data in self.heads.by_hash() if self.heads is not None else ():
            storage.publish(head_path(sha256), data)


@dataclass(frozen=True, slots=True)
class _Measuring:
    """What the verifiers of a run see, while generators load."""

    config: Config
    audit: Audit
    holdout: Audit | None
    splits: Mapping[str, str]
    verifiers: Pool
    stop: StopSignal
    reporter: Reporter

    def real_images(self) -> RealImages:
        def measure(calls: Iterable[MeasureCall]) -> Iterable[tuple[int, Measurements]]:
            self.reporter.step("the verifier measures the real images, as soon as it has loaded")
            return self._call_all("measure_files", calls)

        return measure_real_images(self.config, self.audit, self.holdout, measure)

    def parents(self, measured: RealImages, growing: Growing | None) -> ParentPool | None:
        """The images that candidates are made from; None without conditioning. Says which, and if they are
        others than before."""
        if self.config.generation.conditioning == "text":
            return None
        pool = self.pool(measured)
        self.reporter.note(describe_pool(pool, self.config))
        if growing and (change := describe_change(pool, growing.begun.known.under(growing.view.rules))):
            self.reporter.note(change)
        return pool

    def pool(self, measured: RealImages) -> ParentPool:
        return make_pool(self.config, self.audit.images, list_references(measured), self.splits)

    def prove(self, measured: RealImages) -> _Proven:
        """What judges candidates, and how those of none of the classes are told; UsageError if the verifiers
        cannot judge what they will be asked."""
        if self.config.actors.kind == "simulated":
            self.preflight(measured)
            return _Proven(measured)
        looking = self._looking(measured)
        heads = study_heads(looking)
        refuse_lacking_heads(heads, self.config)
        self.reporter.note(summarise_heads(heads.results))
        judged = judge_real_images(looking, heads)
        self.preflight(judged)
        domain = study(looking, heads)
        refuse_accepted_challenges(domain.proof, self.config)
        self.reporter.note(summarise(domain.proof))
        return _Proven(judged, heads, domain)

    def images(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """What candidates are measured on, of images from elsewhere."""
        self.reporter.step("the verifier measures images of the other run")
        return self._call_all("measure", calls)

    def judged(self, measured: RealImages) -> RealImages:
        """The real images as words and heads judge them now."""
        looking = self._looking(measured)
        return judge_real_images(looking, study_heads(looking))

    def _looking(self, measured: RealImages) -> Looking:
        return Looking(self.config, self.audit, self.holdout, measured, self._look, self.splits)

    def preflight(self, measured: RealImages, settled: Collection[str] = ()) -> None:
        """UsageError if the verifiers cannot tell the values apart, but for those of `settled` properties."""
        if self.config.actors.kind == "simulated":
            self.reporter.note("no pre-flight: simulated actors judge nothing")
            return
        result = run_preflight(measured, self.config, settled)
        refuse_unproven(result)
        self.reporter.note(summary(result))
        if line := describe_label_issues(result.label_issues, result.images):
            self.reporter.note(f"warning: {line}")

    def _look(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        shown = {
            "study_files": "labelled images and variations",
            "challenge": "images of none of the classes",
        }
        self.reporter.step(f"the verifier is shown {shown[method]}")
        return self._call_all(method, calls)

    def _call_all(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        return call_all(self.verifiers, method, calls, self._notice_stop)

    def _notice_stop(self) -> None:
        end_if_stopped(self.stop, " before anything was generated")


def _load_learned(storage: Storage, info: RunInfo) -> tuple[Typicality | None, dict[str, Head]]:
    return load_typicality(storage, info), load_heads(storage, info)


def _learned(
    info: RunInfo, models: Mapping[str, Mapping[str, Any]], storage: Storage, reporter: Reporter
) -> tuple[Any, ...]:
    """References to what verifiers judge with besides the images: typicality and heads."""
    typicality, heads = _load_learned(storage, info)
    if typicality is None and not heads:
        return ()
    if is_another_verifier(models, info):
        reporter.note(
            "warning: the run began with another verifier, which saw the real images differently: candidates"
            " are no longer compared with them, and words alone judge"
        )
        return ()
    return tuple(None if each is None else shared(each) for each in (typicality, heads))


@contextlib.contextmanager
def _started(pools: Pools) -> Iterator[Pools]:
    """Pools with their actors, until the end of the run."""
    try:
        start_pools(pools)
        yield pools
    finally:
        for pool in pools:
            pool.close()


def _nothing_left(growing: Growing, config: Config, reporter: Reporter) -> RunResult | None:
    done = _finished_before(config, growing.info, growing.view) if growing.changes_nothing else None
    if done is not None:
        storage = growing.begun.storage
        reporter.note(f"nothing left to do, the run is {done.state}: {storage.uri}")
        _renew_current(storage, reporter)
        if warning := check_images(storage).warning:
            reporter.note(f"warning: {warning}")
    return done


def _revised_at_once(
    growing: Growing, config: Config, run_log: RunLog, reporter: Reporter
) -> RunResult | None:
    """Commit a plan revision that leaves nothing to generate, such as a lowered target; None if there is
    anything for a verifier or a generator to do."""
    if config.generation.conditioning != "text" or not growing.needs_only_rows:
        return None
    storage = growing.begun.storage
    info = growing.settled(lambda: (None, None))  # never called: no class and no value is new
    # Before the log is taken over: it would be left as that of a run that failed.
    refuse_other_rules(read_log(storage, ()).rules, growing.view.rules)
    log = ManifestLog.open(storage, info.schema(), info.run_id)  # names no hold-out, since none is compared
    _begin_log(run_log, storage, info)
    _note_takeover(reporter, log.taken_from)
    with _closing(log) as close:
        commit_growth(growing, storage, log, ())
        schedule = restore_schedule(info, config, log.kept(), None)
        state: State = "interrupted" if schedule.open else "short" if schedule.short else "complete"
        close(state)
    reporter.note("the plan has changed, and nothing is left to generate")
    _compact(storage, reporter)
    return _result(info, state, schedule)


def _finished_before(config: Config, known: RunInfo, view: LogView) -> RunResult | None:
    """The result of a run that has nothing left to do; Ray need not start."""
    if view.state not in ("complete", "short"):
        return None
    schedule = restore_schedule(known, config, view.table, None)
    return None if schedule.open else _result(known, view.state, schedule)


def _announce(reporter: Reporter, schedule: Schedule, fleet: Fleet, config: Config) -> None:
    for reason in fleet.reasons:
        reporter.note(reason)
    if schedule.candidates:
        reporter.note(
            f"resuming: {len(schedule.accepted)} of {counted(schedule.wanted, 'image')} accepted already, "
            f"{schedule.open} to go"
        )
    reporter.step(
        f"{counted(schedule.open, 'image')} to make, batches of {config.generation.usual_batch}, up to "
        f"{counted(schedule.attempts, 'attempt')} each"
    )
    if config.attempts.adaptive:
        reporter.note(
            "wordings are chosen by what has passed so far (attempts.adaptive): which images are accepted "
            "depends on timing, and the same run again gives another set"
        )


def _refuse_credentials(value: object, *path: str) -> None:
    """ConfigError if a text of the config holds an address with a password: run.json would keep it."""
    if isinstance(value, str) and has_credentials(value):
        raise ConfigError([f"{'.'.join(path)}: holds a user or a password"], hint=KEPT_OUT)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_credentials(key, *path)
            _refuse_credentials(item, *path, key)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_credentials(item, *path)


@contextlib.contextmanager
def _stopped_with_ray(stop: StopSignal) -> Iterator[None]:
    """A signal to all processes of a job ends Ray while the driver still waits for what is under way: that is
    an interruption as any other."""
    try:
        yield
    except ClusterError as error:
        if stop.number is None:
            raise
        raise interrupted(stop.number, ", and Ray with it: what was accepted is committed") from error


@contextlib.contextmanager
def _closing(log: ManifestLog) -> Iterator[Callable[..., None]]:
    """Writes how the run ended into the log: by the given function, or by the error that ended it."""
    try:
        with closing_on_error(log):
            yield log.close
    except InterruptedRun as error:
        log.close("interrupted", {"reason": error.message})
        raise


def _result(info: RunInfo, state: str, schedule: Schedule) -> RunResult:
    accepted = Counter(slot.cell.key for slot in schedule.accepted)
    missing = {
        cell.key: quota - accepted[cell.key]
        for cell, quota, _ in schedule.quotas
        if accepted[cell.key] < quota
    }
    return RunResult(
        run_id=info.run_id,
        state=state,
        wanted=schedule.wanted,
        accepted=len(schedule.accepted),
        short=len(schedule.short),
        candidates=schedule.candidates,
        rejected_by_reason=dict(schedule.rejected_by_reason.most_common()),
        open_cells=missing,
        given_up={cell.key: tally for cell, tally in schedule.given_up.items() if cell.key in missing},
        held_back=tuple(list_held_back(info)),
    )


def _looked_at_again(out: str | os.PathLike[str], result: RunResult) -> RunResult:
    """With what only the rows tell: what would help."""
    with contextlib.suppress(BalancerError):  # the run has ended, whether or not its rows can be read again
        storage = open_storage(out, create=False)
        remedies = tuple(suggest_remedies(storage)) if result.open_cells else ()
        return replace(result, remedies=remedies)
    return result


def _why(result: RunResult, missing: int) -> str:
    """What was tried in vain is short; the rest was still open when the run ended."""
    if result.collapsed:
        return result.collapsed
    if result.state == "short":
        return "no attempt passed"
    ended = {
        "budget": "the budget was spent",
        "interrupted": "--limit was reached; the same command without it resumes",
    }.get(result.state, result.state)
    if not result.short:
        return ended
    return f"{result.short}: no attempt passed; {missing - result.short}: {ended}"


def _missing(result: RunResult) -> Iterator[str]:
    """The images that a run ended without, by cell, and why."""
    if not result.open_cells:
        return
    missing = sum(result.open_cells.values())
    yield f"{counted(missing, 'image')} {are(missing)} missing ({_why(result, missing)}):"
    for cell, count in list(result.open_cells.items())[:LISTED_CELLS]:
        tally = result.given_up.get(cell)
        yield f"  {cell}: {count}" + (f", given up: {tally}" if tally else "")
    if len(result.open_cells) > LISTED_CELLS:
        yield f"  and {counted(len(result.open_cells) - LISTED_CELLS, 'more cell')}"
    if result.given_up:
        cells = counted(len(result.given_up), "cell")
        yield f"{cells} {were(len(result.given_up))} given up; attempts.give_up_below sets from when on"
