"""A started run that grows: each start compares config and dataset with the run, and revises its plan.

A revision is judged as `balancer rejudge` judges, with the plan added: its verdicts and the real images that
leave are committed before anything is generated. It takes effect with its first fragment; whoever starts next
completes one that was interrupted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.config.dotted import join_keys
from balancer.config.schema import Config
from balancer.dataset.audit import Audit, RealImage, known_values
from balancer.dataset.near_duplicates import KnownImage
from balancer.dataset.splits import SPLITS, TRAIN
from balancer.errors import UsageError
from balancer.manifest.columns import names_read_by
from balancer.manifest.log.view import LogView, read_log
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import REAL, VOID, RunFacts
from balancer.manifest.rules import Revision, Rules
from balancer.manifest.runfile import RunInfo, publish_revision
from balancer.planning.plan import Plan
from balancer.runs.rejudge import (
    Departure,
    Rejudgement,
    columns_of_judging,
    commit_judgement,
    judge_under,
)
from balancer.runs.resume import (
    WORDS,
    Path,
    effective_config,
    find_changed,
    find_run,
    names_in,
    plan_cells,
)
from balancer.storage import Storage, open_storage
from balancer.text.quantities import counted
from balancer.verification.verdict import Nearest

Proof = tuple[dict[str, Any] | None, dict[str, dict[str, Any]] | None]
"""What run.json keeps of a pre-flight: `challenge` and `heads`."""

OF_REAL = ("sha256", "pixel_sha256", "class")
"""Columns of real images that a start compares with the dataset, besides the facets."""

MANY_IMAGES, MANY_SHARE = 16, 0.1
"""More real images than both leave only with `--yes`: a dataset may be mounted in part."""

REMOVED, REPLACED = "removed", "replaced"

VERDICTS_PER_COMMIT = 1024


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """File names of real images that the run lacks, that are gone, and that are others by now. `before` are
    those that it had. Until a run `has_begun` to generate, it may lack some because it was stopped."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    before: int = 0
    has_begun: bool = False

    def __str__(self) -> str:
        return f"dataset: +{len(self.added)} -{len(self.removed)} ~{len(self.replaced)}"

    @property
    def departures(self) -> tuple[Departure, ...]:
        reasons = dict.fromkeys(self.removed, REMOVED) | dict.fromkeys(self.replaced, REPLACED)
        return tuple(Departure(f"{REAL}/{name}", reason) for name, reason in reasons.items())


@dataclass(frozen=True, slots=True)
class Growth:
    """What a start changes in its run: `info`, `config` and `rules` are those it will have, `lines` say what
    is new."""

    info: RunInfo
    config: Config
    rules: Rules
    departures: tuple[Departure, ...]
    lines: tuple[str, ...]
    before: int

    def judged(
        self, storage: Storage, known: LogView | ManifestLog, arrivals: Sequence[KnownImage] = ()
    ) -> Rejudgement:
        return judge_under(self.rules, self.info, self.config, storage, known, self.departures, arrivals)

    def commit(self, storage: Storage, log: ManifestLog, arrivals: Sequence[KnownImage]) -> None:
        """When it returns, the run has this plan, and its rows follow."""
        if self.rules.revision is not None and self.rules.revision.sha256 not in self.info.later:
            publish_revision(storage, self.info)
        if (result := self.judged(storage, log, arrivals)).pending:
            commit_judgement(log, result)

    def with_proof(self, challenge: dict[str, Any] | None, heads: dict[str, dict[str, Any]] | None) -> Growth:
        """With what was found out anew."""
        return self._with(replace(self.info, challenge=challenge, heads=heads))

    def _with(self, info: RunInfo) -> Growth:
        named = self.rules.revision
        assert named is not None
        revision = replace(named, sha256=hashlib.sha256(info.encode()).hexdigest())
        return replace(self, info=info, rules=replace(self.rules, revision=revision))

    def with_parents(self, parents: dict[str, Any] | None) -> Growth:
        """With the images that candidates are drawn from by now, if this is a new plan revision."""
        if self.rules.revision is None or self.rules.revision.sha256 in self.info.later:
            return self
        return self._with(replace(self.info, parents=parents))

    def refuse_losses(self, storage: Storage, known: LogView | ManifestLog) -> None:
        """UsageError if accepted images would leave, or suspiciously many real ones."""
        if lost := self.judged(storage, known).lost:
            raise UsageError(
                f"{counted(lost, 'accepted image')} would leave the dataset: {'; '.join(self.lines)}",
                hint="--yes goes on; their files stay, and come back at no cost if the change is taken back",
            )
        leaving = sum(departure.reason == REMOVED for departure in self.departures)
        if leaving > max(MANY_IMAGES, MANY_SHARE * self.before):
            raise UsageError(
                f"{leaving} of {counted(self.before, 'real image')} are gone from the dataset",
                hint="put them back, or go on without them with --yes",
            )


@dataclass(frozen=True, slots=True)
class Begun:
    """The run that a start finds: run.json, and its log with `real_columns`."""

    known: RunInfo
    view: LogView
    storage: Storage

    def splits(self, audit: Audit) -> dict[str, str]:
        return known_splits(audit, self.view.table)

    def compared(
        self,
        config: Config,
        audit: Audit,
        counts: Mapping[str, int],
        confirmed: bool,
        note: Callable[[str], None],
    ) -> Growing:
        before = effective_config(self.known, self.view.rules)
        dataset = compare_dataset(audit, self.view.table, config, before)
        return Growing(self, config, counts, dataset, confirmed, note)


def find_begun(out: str | os.PathLike[str]) -> Begun | None:
    """As `find_run`, with the log."""
    known = find_run(out)
    if known is None:
        return None
    storage = open_storage(out, create=False)
    return Begun(known, read_log(storage, real_columns(known)), storage)


@dataclass(slots=True)
class Growing:
    """A start that goes on with a run, from the comparison to the commit."""

    begun: Begun
    config: Config
    counts: Mapping[str, int]
    dataset: DatasetChange
    confirmed: bool
    note: Callable[[str], None]
    growth: Growth | None = None
    _is_prepared: bool = False

    @property
    def view(self) -> LogView:
        return self.begun.view

    @property
    def info(self) -> RunInfo:
        """The run as it will be."""
        return self.growth.info if self.growth else self.begun.known.under(self.view.rules)

    @property
    def changes_nothing(self) -> bool:
        return not (self._needs_plan or self.dataset.added or self._find_growth(None))

    @property
    def _needs_plan(self) -> bool:
        return needs_plan(self.config, self.counts, self.begun.known, self.view.rules, self.dataset)

    def _find_growth(self, plan: Plan | None) -> Growth | None:
        return find_growth(self.begun.known, self.view.rules, self.config, plan, self.dataset)

    @property
    def needs_proof(self) -> bool:
        """Whether there are other classes or facet values, about which nothing is known yet."""
        if self.growth is None or self.growth.rules.revision == self.view.rules.revision:
            return False
        return names_in(self.config) != names_in(effective_config(self.begun.known, self.view.rules))

    @property
    def needs_only_rows(self) -> bool:
        """Whether committing the growth is all that is left: no image has come, and no slot is open."""
        if self.growth is None or self.needs_proof or self.dataset.added or self.dataset.replaced:
            return False
        storage = self.begun.storage
        view = read_log(storage, columns_of_judging(self.begun.known))
        return self.growth.judged(storage, view).state in ("complete", "short")

    def settled(self, prove: Callable[[], Proof], parents: dict[str, Any] | None = None) -> RunInfo:
        """The run as it will be, once the verifier is there. `prove` is called if it `needs_proof`. `parents`
        are the images that candidates are drawn from."""
        if self.growth is not None:
            self.growth = self.growth.with_parents(parents)
        if self.growth is not None and self.needs_proof:
            self.growth = self.growth.with_proof(*prove())
            self._refuse_losses()
        return self.info

    def _refuse_losses(self) -> None:
        if self.growth is not None and not self.confirmed:
            storage = self.begun.storage
            self.growth.refuse_losses(storage, read_log(storage, columns_of_judging(self.begun.known)))

    def prepare(self, plan: Plan) -> None:
        """Say what changes, once; UsageError if it needs `--yes`. `plan` is that of config and dataset."""
        if self._is_prepared:
            return
        self._is_prepared = True
        self.growth = self._find_growth(plan if self._needs_plan else None)
        self._refuse_losses()
        for line in self.growth.lines if self.growth else ():
            self.note(line)


def commit_growth(
    growing: Growing | None, storage: Storage, log: ManifestLog, references: Iterable[KnownImage]
) -> None:
    """Commit what a start changes in the run that it goes on with, if there was one. UsageError if its rules
    are no longer those that the start has seen. `references` are the images that none may copy."""
    refuse_other_rules(log.rules, growing.view.rules if growing else Rules())
    if growing is not None and growing.growth is not None:
        new = {f"{REAL}/{name}" for name in (*growing.dataset.added, *growing.dataset.replaced)}
        growing.growth.commit(storage, log, [image for image in references if image.id in new])


def refuse_other_rules(rules: Rules, seen: Rules) -> None:
    if rules != seen:
        raise UsageError(
            "another command changed the rules of the run while this one started",
            hint="run the same command again",
        )


def set_aside_copies(log: ManifestLog, copies: Mapping[str, Nearest], facts: RunFacts) -> None:
    """Make void the rows of images that a hold-out image shows by now, or no longer shows.
    `commit_real_images` writes them anew, with what they copy."""
    real = log.kept().filter(pc.field("source") == REAL)
    shown = {name: nearest.id for name, nearest in copies.items()}
    outdated = [
        row["id"]
        for row in real.to_pylist()
        if row["status"] != VOID and row["nearest_id"] != shown.get(row["id"])
    ]
    for start in range(0, len(outdated), VERDICTS_PER_COMMIT):
        ids = outdated[start : start + VERDICTS_PER_COMMIT]
        rows = [Departure(row["id"], REPLACED).applied_to(row, facts) for row in log.rows(ids).to_pylist()]
        log.commit_verdicts(rows, log.rules.as_detail())


# ---- the hold-out --------------------------------------------------------------------------------

HOLDOUT = "holdout"
"""What the log says of the hold-out that a start has seen."""


def describe_holdout(holdout: Audit | None) -> dict[str, str]:
    """A hash of its files, for the log; empty without a hold-out."""
    files = sorted(image.sha256 for image in holdout.images) if holdout else []
    return {HOLDOUT: hashlib.sha256("".join(files).encode()).hexdigest() if files else ""}


def is_other_holdout(view: LogView, holdout: Audit | None) -> bool:
    """Whether the last start that compared the dataset with a hold-out saw other files. Earlier versions did
    not say which they saw."""
    seen = [stamp.detail[HOLDOUT] for stamp in view.opened if stamp.detail and HOLDOUT in stamp.detail]
    return bool(seen) and seen[-1] != describe_holdout(holdout)[HOLDOUT]


def is_comparison_done(view: LogView) -> bool:
    """Whether the last start that saw a hold-out went on to the end. Its log is opened before the dataset is
    compared, so one that was killed or failed may not have come to that."""
    seen = [stamp.epoch for stamp in view.opened if stamp.detail and HOLDOUT in stamp.detail]
    ended = {stamp.epoch for stamp in view.closed if stamp.state != "failed"}
    return not seen or seen[-1] in ended


# ---- comparing -----------------------------------------------------------------------------------


def real_columns(info: RunInfo) -> tuple[str, ...]:
    """The columns that `compare_dataset` and `known_splits` read."""
    return tuple(dict.fromkeys((*names_read_by("resume"), *OF_REAL, *info.facets)))


def compare_dataset(audit: Audit, rows: pa.Table, config: Config, before: Config) -> DatasetChange:
    """The images of the config's classes, compared with the rows of real images that count. Earlier versions
    wrote facet values into rows that the config `before` does not have; these change nothing."""
    axes = config.facet_axes()
    known = {_file_name(row): row for row in _real(rows).filter(pc.field("status") != VOID).to_pylist()}
    there = {image.file_name: image for image in audit.images if image.class_name in config.classes}
    return DatasetChange(
        added=tuple(name for name in there if name not in known),
        removed=tuple(name for name in known if name not in there),
        replaced=tuple(
            name
            for name, image in there.items()
            if name in known and not _is_same(image, known[name], known_values(image, axes), before)
        ),
        before=len(known),
        has_begun=_real(rows).num_rows < rows.num_rows,
    )


def _is_same(image: RealImage, row: Mapping[str, Any], values: Mapping[str, str], before: Config) -> bool:
    if (image.sha256, image.class_name) != (row["sha256"], row["class"]):
        return False
    told = {name: row[name] if row[name] in facet.values else None for name, facet in before.facets.items()}
    return all(told[name] == values.get(name) or row[name] == values.get(name) for name in told)


def known_splits(audit: Audit, rows: pa.Table) -> dict[str, str]:
    """The splits of an audit's images that the run has dealt out: a picture keeps its split under another
    name, and a name keeps it with another picture."""
    by_picture: dict[str, str] = {}
    by_name: dict[str, tuple[str, str]] = {}
    for row in _real(rows).to_pylist():
        picture, split = row["pixel_sha256"] or row["sha256"] or "", row["split"] or TRAIN
        by_name[_file_name(row)] = (picture, split)
        by_picture[picture] = max(by_picture.get(picture, TRAIN), split, key=SPLITS.index)
    known = {}
    for image in audit.images:
        picture = image.pixel_sha256 or image.sha256
        its_own = by_name.get(image.file_name)
        if its_own is not None and (its_own[0] == picture or picture not in by_picture):
            known[image.file_name] = its_own[1]
        elif picture in by_picture:
            known[image.file_name] = by_picture[picture]
    return known


def _real(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.field("source") == REAL)


def _file_name(row: Mapping[str, Any]) -> str:
    return str(row["id"]).removeprefix(f"{REAL}/")


def needs_plan(
    config: Config, counts: Mapping[str, int], known: RunInfo, rules: Rules, dataset: DatasetChange
) -> bool:
    """Whether the plan is made anew: other settings, or other images. A start that imported only some of the
    real images changed nothing."""
    info = known.under(rules)
    if config.plan_shape() != effective_config(known, rules).plan_shape():
        return True
    return bool(dataset.departures or (dataset.added and counts != info.real_counts))


# ---- revising ------------------------------------------------------------------------------------


def find_growth(
    known: RunInfo, rules: Rules, config: Config, plan: Plan | None, dataset: DatasetChange
) -> Growth | None:
    """What this start changes; None if nothing. Without `plan` that of the run holds. Images that come and do
    not change the plan need no revision, but none that is accepted may be a copy of them."""
    before = known.under(rules)
    paths = find_changed(config, known, rules)
    info = before if plan is None else _planned(before, plan, config)
    is_new = bool(paths or (dataset.departures and rules.complete) or _content(info) != _content(before))
    come = dataset.added and dataset.has_begun
    if not is_new and rules.complete and not come:
        return None
    lines = tuple(_lines(paths, before, info, effective_config(known, rules), config, dataset))
    if is_new:
        info = replace(info, config=config.model_dump(mode="json"), fingerprint=config.fingerprint())
        info = replace(info, revision=before.revision + 1)
        sha256 = hashlib.sha256(info.encode()).hexdigest()
        rules = Rules(revision=Revision(info.revision, sha256, lines))
    rules = replace(rules, complete=True)
    return Growth(info, config, rules, dataset.departures, lines, dataset.before)


def _planned(before: RunInfo, plan: Plan, config: Config) -> RunInfo:
    """Cells that the plan no longer has stay in it without images: rows name them."""
    cells = plan_cells(plan, config)
    there = {cell["cell"] for cell in cells}
    former = [{**cell, "quota": 0, "priority": "medium"} for cell in before.plan if cell["cell"] not in there]
    return replace(before, plan=[*cells, *former], real_counts=dict(plan.counts), targets=dict(plan.targets))


def _content(info: RunInfo) -> tuple[object, ...]:
    """What a revision may change. The order of a plan is that of its cells with images."""
    cells = [cell for cell in info.plan if cell["quota"]]
    return cells, info.real_counts, info.targets


def _lines(
    paths: Sequence[Path],
    before: RunInfo,
    after: RunInfo,
    old: Config,
    new: Config,
    dataset: DatasetChange,
) -> Iterable[str]:
    if paths:
        values = (old.model_dump(mode="json"), new.model_dump(mode="json"))
        yield f"config: {', '.join(_setting(path, *values) for path in paths)}"
        if any(path[-1] in WORDS for path in paths):
            yield "the new wordings hold for images that are still to be made"
    come = dataset.added and dataset.has_begun
    counts = before.real_counts.items() - after.real_counts.items()
    if dataset.departures or come or any(name in after.real_counts for name, _ in counts):
        yield str(dataset)
    if moves := _moves(before, after):
        yield f"plan: {moves}"


def _setting(path: Path, old: Any, new: Any) -> str:
    for key in path:
        old, new = (value.get(key) if isinstance(value, dict) else value[key] for value in (old, new))
    plain = all(isinstance(value, int | float | str | None) for value in (old, new))
    return join_keys(path) + (f" {_value(old)} -> {_value(new)}" if plain else "")


def _value(value: object) -> str:
    return "not set" if value is None else str(value)


def _moves(before: RunInfo, after: RunInfo) -> str:
    """`+60 in 12 cells, -3 in 1 cell`."""
    old, new = ({cell["cell"]: cell["quota"] for cell in info.plan} for info in (before, after))
    gains = [new.get(cell, 0) - old.get(cell, 0) for cell in old | new]
    up, down = [gain for gain in gains if gain > 0], [gain for gain in gains if gain < 0]
    parts = [f"+{sum(up)} in {counted(len(up), 'cell')}"] if up else []
    return ", ".join([*parts, *([f"{sum(down)} in {counted(len(down), 'cell')}"] if down else [])])
