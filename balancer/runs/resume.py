"""Start a run, recognise one in a folder, and restore it from its committed rows."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from balancer.cells import Candidate, Cell, Slot
from balancer.config.dotted import join_keys
from balancer.config.schema import Config
from balancer.errors import UsageError
from balancer.manifest.columns import ORIGIN
from balancer.manifest.layout import RUN_FILE, is_learned
from balancer.manifest.rows import ACCEPTED, REJECTED, SYNTHETIC, VOID, RunFacts
from balancer.manifest.rules import ANY, Rules, as_settings, config_under, is_judgeable, matches
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.schema import GROWING
from balancer.planning.plan import Plan, Priority
from balancer.process.collection import gc_paused
from balancer.scheduling.adaptive import WordingCounts
from balancer.scheduling.ledger import Outcome
from balancer.scheduling.prompts import ladder
from balancer.scheduling.schedule import Schedule
from balancer.storage import MissingFolderError, is_temporary, open_storage
from balancer.text.names import composed

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONED_PACKAGES = ("balancer", "ray", "torch", "diffusers", "transformers", "open_clip_torch", "pyarrow")

CALIBRATION = "calibration"

Path = tuple[str | int, ...]
"""The keys that lead to a setting."""

WORDS = ("prompts", "fallback_prompts", "variations", "negative_prompt")

REVISABLE: tuple[tuple[str, ...], ...] = (
    ("target", ANY),
    ("target", "classes", ANY),
    ("dataset", "include"),
    ("dataset", "exclude"),
    ("classes", ANY),
    ("facets", ANY, "classes"),
    ("facets", ANY, "values", ANY),
    ("facets", ANY, "values", ANY, "share"),
    ("generation", "negative_prompt"),
    ("attempts", "max"),
    ("attempts", "give_up_below"),
    ("attempts", "stop_when_collapsed"),
    *(("classes", ANY, words) for words in WORDS),
    *(("facets", ANY, "values", ANY, words) for words in WORDS),
)
"""Settings that a started run takes up by a plan revision, besides those whose verdicts follow from rows."""

SETTLED = tuple(
    ("verification", name) for name in ("typicality", "max_true_lost", "negatives", "heads", "backbone")
)

HISTORY_ROWS = 65_536
"""Rows of the manifest that are Python objects at once."""

WEIGHTS_HASH = "sha256"

_RECORDED = ("model", "revision", WEIGHTS_HASH, CALIBRATION, "weight")

LORA = "LoRA "
"""Begins the names of LoRAs among the models of a run; their number follows."""

Models = Mapping[str, Mapping[str, Any]]
"""`generator`, `verifier` and any other judge, each with its model, revision and the sha256 of its weights
(None if not yet known); the verifier also with its embedding_dim and the hash of its `calibration`, None
without one. Each LoRA also with its `weight`."""


def find_run(out: str | os.PathLike[str]) -> RunInfo | None:
    """The run in a folder; None if the folder is empty or missing, UsageError if it holds anything else."""
    try:
        storage = open_storage(out, create=False)
    except MissingFolderError:
        return None
    if storage.exists(RUN_FILE):
        return read_run(storage)
    # The first files of a run are written before run.json, which names them.
    others = [path for path in storage.list("") if not (is_temporary(path) or is_learned(path))]
    if others:
        raise UsageError(
            f"{out} holds files but no run, such as {others[0]}",
            hint="choose another --out, or empty the folder",
        )
    return None


def describe_run(
    config: Config,
    plan: Plan,
    models: Models,
    challenge: Mapping[str, Any] | None = None,
    heads: Mapping[str, dict[str, Any]] | None = None,
    parents: dict[str, Any] | None = None,
) -> RunInfo:
    """The content of run.json for a new run; `challenge` is `DomainProof.as_dict`, `heads` is
    `Heads.as_dict`, and `parents` is `ParentPool.describe`."""
    return RunInfo(
        run_id=uuid.uuid4().hex,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        name=config.name,
        config=config.model_dump(mode="json"),
        fingerprint=config.fingerprint(),
        seed=config.seed,
        facets=list(config.facets),
        plan=plan_cells(plan, config),
        real_counts=dict(plan.counts),
        targets=dict(plan.targets),
        embedding_dim=int(models["verifier"]["embedding_dim"]),
        versions={name: _version(name) for name in VERSIONED_PACKAGES},
        models={kind: _identity(described) for kind, described in models.items()},
        challenge=None if challenge is None else dict(challenge),
        heads=None if heads is None else dict(heads),
        parents=parents,
    )


def plan_cells(plan: Plan, config: Config) -> list[dict[str, Any]]:
    """The plan as run.json has it."""
    return [item.as_dict(config.facets) | {"cell": item.cell.key} for item in plan.cells]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def spelled_as_begun(config: Config, known: RunInfo | None) -> Config:
    """The config with names in the Unicode spelling of the run. Earlier versions did not normalise names, and
    their runs keep their spelling."""
    if known is None:
        return config
    facets = known.config["facets"]
    names = [
        *known.config["classes"],
        *facets,
        *(value for facet in facets.values() for value in facet["values"]),
    ]
    spelling = {composed(name): name for name in names if composed(name) != name}
    return _renamed(config, spelling) if spelling else config


def _renamed(config: Config, spelling: Mapping[str, str]) -> Config:
    def named(name: str) -> str:
        return spelling.get(name, name)

    settings = config.model_dump(mode="json")
    settings["classes"] = {named(name): entry for name, entry in settings["classes"].items()}
    settings["facets"] = {named(name): entry for name, entry in settings["facets"].items()}
    wanted = settings["target"]
    wanted["classes"] = {named(name): target for name, target in wanted["classes"].items()}
    for facet in settings["facets"].values():
        facet["values"] = {named(value): entry for value, entry in facet["values"].items()}
        if facet["classes"] != "all":
            facet["classes"] = [*map(named, facet["classes"])]
    judged = settings["verification"]
    judged["unjudged"] = ["=".join(map(named, entry.split("=", 1))) for entry in judged["unjudged"]]
    # As it was written: a default that is dumped would count as asked for.
    renamed = Config.model_validate(settings).model_copy(update={"generation": config.generation})
    return renamed.with_bases(config.bases)


def effective_config(info: RunInfo, rules: Rules) -> Config:
    """The config of a run as plan revisions and `balancer rejudge` have it by now."""
    return config_under(info.under(rules), rules.overrides)


def check_unchanged(
    config: Config, models: Models, known: RunInfo, allowed: bool, rules: Rules | None = None
) -> None:
    """Refuse to resume a run with another config or other weights, unless `allowed`, or unless a plan
    revision can take the change up.

    `rules` are those of its log. Other facets or another embedding size are never allowed, nor are other
    classes or facet values in runs of earlier versions.
    """
    rules = rules or Rules()
    paths = find_changed(config, known, rules)
    before = effective_config(known, rules)
    _refuse_other_names(before, config, known, paths)
    _refuse_what_is_settled(paths)
    _refuse_another_size(models, known)
    _refuse_unrecorded(config, known)
    if allowed:
        return
    _refuse_forgotten(config, known, rules, paths)
    changed = [join_keys(path) for path in paths if not can_be_revised(path)]
    # An added or removed model shows in the config.
    changed += [
        f"{part} of the {kind}"
        for kind, recorded in known.models.items()
        if kind in models
        for part in _differing(recorded, _identity(models[kind]))
    ]
    if changed:
        raise UsageError(
            f"this run was started with another config; changed: {', '.join(changed)}",
            hint="choose another --out, undo the change, or accept it with --allow-config-change",
        )


def find_changed(config: Config, known: RunInfo, rules: Rules) -> list[Path]:
    """The decisive settings that differ from those of the run as it is now."""
    return _differences(effective_config(known, rules).decisive(), config.decisive())


def can_be_revised(path: Path) -> bool:
    """Whether a plan revision takes up another value of a setting, without --allow-config-change."""
    return is_judgeable(path) or any(matches(path, allowed) for allowed in REVISABLE)


def _refuse_other_names(before: Config, config: Config, known: RunInfo, paths: Sequence[Path]) -> None:
    """Cells are named by the values of all facets, in order; and rows have a score for each."""
    names: list[Path]
    if list(before.facets) != list(config.facets):
        what, names = "facets", [path for path in paths if path[0] == "facets" and len(path) == 2]
    elif known.format < GROWING and names_in(before) != names_in(config):
        what, names = "classes and facet values", [path for path in paths if is_name(path)]
    else:
        return
    named = ", ".join(map(join_keys, names)) or "another order"
    raise UsageError(
        f"the {what} of {'this' if what != 'facets' else 'a started'} run are fixed, and {named} would change"
        f" them{'' if what == 'facets' else ': an earlier version began it'}",
        hint="choose another --out, or undo the change",
    )


def is_name(path: Path) -> bool:
    """Whether it is that of a class, a facet or a facet value."""
    return (len(path) == 2 and path[0] in ("classes", "facets")) or (path[0] == "facets" and len(path) == 4)


def names_in(config: Config) -> list[object]:
    """Its classes and facet values, in order."""
    return [list(config.classes), [(name, list(facet.values)) for name, facet in config.facets.items()]]


def _refuse_what_is_settled(paths: Sequence[Path]) -> None:
    """What decides who is of the domain, and what judges, was found out and written down before the first
    image."""
    if settled := [join_keys(path) for path in paths if path[:2] in SETTLED]:
        raise UsageError(
            f"settled when the run began: {', '.join(settled)}",
            hint="choose another --out, or undo the change",
        )


def _refuse_forgotten(config: Config, known: RunInfo, rules: Rules, paths: Sequence[Path]) -> None:
    """A config file that `balancer rejudge --set` left behind is no wish to take its change back."""
    began = find_changed(config, known, replace(rules, overrides={}))
    forgotten = [join_keys(path) for path in paths if path not in began]
    if forgotten:
        settings = [word for setting in as_settings(rules.overrides) for word in ("--set", setting)]
        raise UsageError(
            f"this run was judged again under other rules; this config differs in: {', '.join(forgotten)}",
            hint=f"resume with the config it was started with and {shlex.join(settings)}",
        )


def _refuse_another_size(models: Models, known: RunInfo) -> None:
    embedding_dim = int(models["verifier"]["embedding_dim"])
    if embedding_dim != known.embedding_dim:
        raise UsageError(
            f"the verifier's embeddings have {embedding_dim} numbers, the run has {known.embedding_dim}",
            hint="choose another --out",
        )


def _refuse_unrecorded(config: Config, known: RunInfo) -> None:
    """What rows of earlier versions cannot say."""
    if config.generation.loras and not known.has_loras:
        raise UsageError(
            "an earlier version began this run: its rows have no place for the LoRAs of the generator",
            hint="choose another --out, or remove generation.loras",
        )
    if config.generation.conditioning != "text" and not known.has_parents:
        raise UsageError(
            "an earlier version began this run: its rows have no place for the image that one is made from",
            hint="choose another --out, or set generation.conditioning: text",
        )


def _identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model that a run records: for a calibrated one the hash of its temperatures too, for a
    LoRA its weight."""
    return {name: model[name] for name in _RECORDED if name in model}


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    hashes = (before.get(WEIGHTS_HASH), now.get(WEIGHTS_HASH))
    is_other = None not in hashes and hashes[0] != hashes[1]
    if is_other or any(before.get(name) != now.get(name) for name in ("model", "revision")):
        yield "weights"
    if before.get(CALIBRATION) != now.get(CALIBRATION):
        yield CALIBRATION


def is_another_verifier(models: Models, known: RunInfo) -> bool:
    """Whether it, or its backbone, has other weights than when the run began."""
    return any(
        "weights" in _differing(known.models[kind], _identity(models[kind]))
        for kind in ("verifier", "backbone")
        if kind in known.models and kind in models
    )


def _differences(before: Any, after: Any, path: Path = ()) -> list[Path]:
    """Paths of the settings that differ. Sections of a list are compared one by one."""
    if _are_lists_of_sections(before, after):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [path]
    names = dict.fromkeys([*before, *after])
    return [
        difference
        for name in names
        for difference in _differences(before.get(name), after.get(name), (*path, name))
    ]


def _are_lists_of_sections(before: Any, after: Any) -> bool:
    both = isinstance(before, list) and isinstance(after, list) and len(before) == len(after)
    return both and all(isinstance(section, dict) for section in (*before, *after))


def describe_loras(models: Models) -> tuple[str, ...]:
    """The column `loras`."""
    loras = (model for kind, model in models.items() if kind.startswith(LORA))
    return tuple(f"{lora[WEIGHTS_HASH]}={lora['weight']!r}" for lora in loras)


def run_facts(info: RunInfo, config: Config, models: Models | None = None) -> RunFacts:
    """`models` are those that are loaded now."""
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
        domain=info.domain_limits,
        has_domain=info.format > 1,
        loras=describe_loras(info.models if models is None else models) if info.has_loras else None,
    )


def cells_of_plan(info: RunInfo) -> dict[str, Cell]:
    """The planned cells by their keys."""
    return {str(item["cell"]): _cell(item, info.facets) for item in info.plan}


def parse_candidate(row: Mapping[str, Any], cells: Mapping[str, Cell]) -> Candidate:
    return Candidate(Slot(cells[row["cell"]], int(row["slot"].rpartition("/")[2])), row["attempt"])


def restore_schedule(info: RunInfo, config: Config, rows: pa.Table, limit: int | None) -> Schedule:
    """The schedule in the state that the committed rows imply."""
    ranks = {str(priority): rank for rank, priority in enumerate(Priority)}
    cells = cells_of_plan(info)
    quotas = [
        (cells[str(item["cell"])], int(item["quota"]), ranks[str(item["priority"])]) for item in info.plan
    ]
    rungs, conditioned = ladder(config), info.conditioned_classes

    def group(candidate: Candidate) -> tuple[float | None, float | None]:
        """What one call of a generator has in common."""
        rung = rungs[candidate.attempt - 1]
        return rung.guidance, rung.strength if candidate.slot.cell.class_name in conditioned else None

    with gc_paused():
        return Schedule(
            quotas,
            attempts=len(rungs),
            max_candidates=config.budget.max_candidates,
            max_slots=limit,
            history=_history(cells, rows),
            group_of=group,
            may_be_ahead=lambda attempt: not rungs[attempt - 1].strengthen,  # which needs the reason before
            give_up_below=config.attempts.give_up_below,
        )


def accepted_in_order(schedule: Schedule, facts: RunFacts) -> list[Candidate]:
    """Accepted candidates in the plan's order, not in that of acceptance."""
    slots = sorted(schedule.accepted, key=facts.number)
    return [Candidate(slot, schedule.accepted[slot]) for slot in slots]


def count_wordings(rows: pa.Table) -> WordingCounts:
    """How often each wording passed, by the committed rows."""
    judged = rows.select(["source", "cell", "wording", "status"]).to_pylist()
    return WordingCounts.of(
        (row["cell"], row["wording"], row["status"] == ACCEPTED)
        for row in judged
        if row["source"] == SYNTHETIC and row["status"] in (ACCEPTED, REJECTED) and row["wording"] is not None
    )


def _cell(item: Mapping[str, Any], facets: list[str]) -> Cell:
    return Cell(str(item["class"]), tuple((name, item[name]) for name in facets if item[name] is not None))


def _history(cells: Mapping[str, Cell], rows: pa.Table) -> Iterator[Outcome]:
    """The outcomes by attempt: all first attempts, then all second ones, and so on. There can be millions of
    rows, so rows are converted in parts and each slot is one object."""
    import pyarrow as pa
    import pyarrow.compute as pc

    made = rows.filter(pc.field("source") == SYNTHETIC).sort_by("attempt")
    keys = made["slot"].combine_chunks().dictionary_encode()
    firsts = made["cell"].take(pc.index_in(keys.dictionary, value_set=made["slot"].combine_chunks()))
    slots = [
        Slot(cells[cell], int(key.rpartition("/")[2]))
        for key, cell in zip(keys.dictionary.to_pylist(), firsts.to_pylist(), strict=True)
    ]
    has_origin = ORIGIN[0] in made.column_names
    taken_over = pc.is_valid(made[ORIGIN[0]]) if has_origin else pa.repeat(False, made.num_rows)
    numbered = (
        made.select(["attempt", "status", "reason"])
        .append_column("taken_over", taken_over)
        .append_column("number", keys.indices)
    )
    for batch in numbered.to_batches(HISTORY_ROWS):
        for attempt, status, reason, taken_over, number in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            candidate = Candidate(slots[number], attempt)
            yield Outcome(candidate, reason, void=status == VOID, taken_over=taken_over)
