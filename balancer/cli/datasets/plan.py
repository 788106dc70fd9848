"""`balancer plan`: show what a run would generate and its expected cost. Generates nothing."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.errors import BalancerError, UsageError
from balancer.text.quantities import counted, duration, percent, size

if TYPE_CHECKING:
    from actors.labelled import Looking
    from actors.models.families.lengths import Lengths
    from actors.models.verifier import Verifier
    from actors.models.vision.wordings import Wordings
    from actors.real_images import RealImages
    from balancer.conditioning.summary import Summary
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit
    from balancer.planning.plan import Estimate, Measured, Plan
    from balancer.verification.head_choice import Heads
    from balancer.verification.off_domain import DomainProof
    from balancer.verification.preflight import Preflight, ValueProof


SEEING = frozenset(("verifier", "backbone"))
"""The models that the pre-flight takes."""


@click.command("plan")
@click.argument("config", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option("--measured", metavar="RUN", default=None, help="Estimate from this run's measurements.")
@click.option("--all", "every", is_flag=True, help="List every class, value and cell, however many.")
@click.option("--no-preflight", is_flag=True, help="Do not load the verifier and test what it can judge.")
def command(
    config: str,
    as_json: bool,
    overrides: tuple[str, ...],
    measured: str | None,
    every: bool,
    no_preflight: bool,
) -> None:
    """Show what `run` would generate for CONFIG: quotas, priorities, expected candidates, time and disk.

    Classes and cells are in the order in which a run begins them. All are filled to the same share, so that
    none is behind when a budget ends the run.

    Generates nothing. If the verifier is on this machine, the pre-flight shows what it can tell apart on the
    labelled real images.
    """
    from balancer.config.load import load_config
    from balancer.dataset.audit import audit_dataset, credited_facets, match_classes
    from balancer.dataset.location import refuse_shared_holdout
    from balancer.dataset.splits import assign_splits, describe_kept_apart, select_training
    from balancer.evaluation.targets import with_recommended_targets
    from balancer.planning.plan import estimate, held_back, make_plan
    from balancer.verification.calibration import read_configured

    loaded = with_recommended_targets(load_config(config, overrides), console.note)
    refuse_shared_holdout(loaded)
    read_configured(loaded)
    _refuse_models(loaded)
    audit = audit_dataset(loaded, console.watch_images)
    splits = assign_splits(audit, loaded)
    training = select_training(audit, splits)
    counts = match_classes(training, loaded)
    facets, seen = credited_facets(training, loaded), None
    if loaded.target.count_real_facets == "measured":
        if not no_preflight and (seen := _measure(loaded, audit, splits)) is not None:
            from actors.real_images import real_facets

            facets = real_facets(seen.judged, loaded, splits)
        else:
            console.warn("target.count_real_facets: only values in the metadata are counted here")
    plan = make_plan(loaded, counts, facets)
    real_bytes = sum(image.num_bytes for image in audit.images)
    cost = estimate(plan, loaded, _measured(measured) if measured else None, real_bytes=real_bytes)
    _warn_about_faults(audit, loaded)
    for line in _compare_adapters(loaded, audit, splits):
        console.warn(line)
    if line := describe_kept_apart(audit, splits, loaded):
        console.note(line)
    console.warn_each(held_back(plan), "classes", every=every)
    lengths = _check_lengths(plan, loaded)
    wordings = _check_wordings(loaded)
    if not as_json:
        _print(plan, cost, list(loaded.facets), every)
    if not no_preflight and seen is None:
        seen = _measure(loaded, audit, splits)
    conditioning = _conditioning(loaded, plan, audit, splits, seen)
    checked = None if seen is None else _preflight(seen.judged, loaded)
    domain = None if seen is None else _domain(seen)
    if as_json:
        shown = checked and checked.as_dict() | {
            "challenge": domain and domain.as_dict(),
            "heads": seen and seen.heads.as_dict(),
        }
        texts = {"prompts": lengths and lengths.as_dict(), "wordings": wordings and wordings.as_dict()}
        document = _as_json(plan, cost, list(loaded.facets), conditioning)
        console.print_json(document | texts | {"preflight": shown})
        return
    if conditioning is not None:
        _print_conditioning(conditioning, every)
    if checked is not None and seen is not None:
        _print_preflight(checked, every)
        _print_heads(seen.heads, loaded)
        _print_domain(domain, loaded)


def _refuse_models(config: Config) -> None:
    """What a run would refuse of the models on this machine."""
    if config.actors.kind != "models":
        return
    from actors.models.conditioning.support import refuse_without_image_to_image
    from actors.weights import loras
    from actors.weights.resolve import is_here, refuse_faulty

    refuse_faulty(config)
    loras.refuse_faulty(config)
    _check_generator(config)
    if is_here(config.generation.model, config.generation.revision, "generator"):
        refuse_without_image_to_image(config)


def _compare_adapters(config: Config, audit: Audit, splits: Mapping[str, str]) -> list[str]:
    """What a run would say of adapters that were trained on the dataset."""
    if not config.generation.loras:
        return []
    from actors.adapters import compare_adapters
    from balancer.dataset.audit import audit_holdout

    return compare_adapters(config, audit, audit_holdout(config, console.watch_images), splits)


def _check_generator(config: Config) -> None:
    """Its family, if it is not an ordinary one; ConfigError if a setting has no effect on it."""
    from actors.models.families.checks import check_generator

    recognised = check_generator(config, ask_hub=False)
    if recognised is not None and (recognised.family is None or recognised.family.alone):
        console.note(f"generator: {recognised}")


def _check_lengths(plan: Plan, config: Config) -> Lengths | Wordings | None:
    """Whether the generator's tokenizer cuts prompts."""
    from actors.models.families.lengths import check_lengths

    return _check_texts("prompts", config, lambda: check_lengths(config, [each.cell for each in plan.cells]))


def _check_wordings(config: Config) -> Lengths | Wordings | None:
    """Whether the verifier's tokenizer cuts wordings."""
    from actors.models.vision.wordings import check_wordings

    return _check_texts("wordings", config, lambda: check_wordings(config))


def _check_texts(
    noun: str, config: Config, check: Callable[[], Lengths | Wordings | None]
) -> Lengths | Wordings | None:
    """Warns of texts that are cut. If it cannot be told, says why and returns None."""
    if config.actors.kind == "simulated":
        return None
    try:
        texts = check()
    except BalancerError as error:
        console.warn(f"{noun} were not measured: {error.message}")
        return None
    if texts is not None and texts.cut:
        console.warn(f"{noun}: {texts}")
    return texts


def _measured(run: str) -> Measured:
    from balancer.manifest.measured import measure_run
    from balancer.storage import open_storage

    return measure_run(open_storage(run, create=False))


def _conditioning(
    config: Config, plan: Plan, audit: Audit, splits: Mapping[str, str], seen: _Seen | None
) -> Summary | None:
    """Which cells a run would make from real images; None if it makes all from text."""
    if config.generation.conditioning == "text":
        return None
    from balancer.conditioning.eligible import make_pool, without_measuring
    from balancer.conditioning.summary import Summary
    from balancer.dataset.audit import audit_holdout

    if seen is not None:
        from actors.real_images import list_references

        known = list_references(seen.judged)
    else:
        holdout = audit_holdout(config)
        known = without_measuring(audit.images, holdout.images if holdout else ())
    return Summary(make_pool(config, audit.images, known, splits), config, plan, by_hashes=seen is None)


def _print_conditioning(summary: Summary, every: bool) -> None:
    console.say()
    console.first_rows(
        f"conditioning: {summary.steps}",
        ["class", "training images to start from", "images from them", "images from text alone"],
        summary.by_class(),
        "classes",
        every=every,
    )
    if summary.by_hashes:
        console.note(
            "images alike were found by their hashes alone: with the verifier there may be more parents"
        )


class _Seen(NamedTuple):
    """`judged` are the real images as a run would judge them."""

    looking: Looking
    heads: Heads
    judged: RealImages


def _measure(config: Config, audit: Audit, splits: Mapping[str, str]) -> _Seen | None:
    """The real images as the verifier sees them. If it cannot, prints why and returns None: the plan does not
    fail."""
    if config.actors.kind == "simulated":
        console.note("no pre-flight: simulated actors judge nothing")
        return None
    from actors import real_images
    from actors.heads import judge_real_images, study_heads
    from actors.labelled import Looking, call_here
    from actors.weights import resolve as weights
    from balancer.dataset.audit import audit_holdout

    try:
        wanted = {kind: of for kind, of in weights.wanted_models(config).items() if kind in SEEING}
        for kind, of in wanted.items():
            at = weights.check(*of, kind)
            if at.folder is None:
                missing = size(at.missing_bytes)
                console.note(f"no pre-flight: the {kind} is not on this machine ({missing} to download)")
                return None
        real_images.load_calibration(config)
        holdout, verifier = (
            audit_holdout(config, console.watch_images),
            _announced(real_images.verifier_here(config)),
        )
        measured = real_images.measure_here(config, audit, holdout, verifier)
        looking = Looking(config, audit, holdout, measured, call_here(config, verifier), splits)
        heads = study_heads(looking)
        return _Seen(looking, heads, judge_real_images(looking, heads))
    except BalancerError as error:
        console.warn(f"no pre-flight: {error.message}")
        return None


def _announced(load: Callable[[], Verifier]) -> Callable[[], Verifier]:
    """Says that it takes time before it does, at the first call."""

    @functools.cache
    def announced() -> Verifier:
        console.note(
            "pre-flight: the verifier loads, and looks at the real images and at images of none of the"
            " classes; what it sees is kept for the next time"
        )
        return load()

    return announced


def _preflight(images: RealImages, config: Config) -> Preflight:
    from actors.real_images import run_preflight

    return run_preflight(images, config)


def _domain(seen: _Seen) -> DomainProof | None:
    """To how many images of none of the classes the verifier says no. If it cannot be told, prints why and
    returns None."""
    from actors.domain import study

    try:
        return study(seen.looking, seen.heads).proof
    except BalancerError as error:
        console.warn(f"no challenge: {error.message}")
        return None


def _print_heads(heads: Heads, config: Config) -> None:
    from balancer.verification.head_choice import refuse_lacking_heads, summarise_heads

    console.say(summarise_heads(heads.results))
    try:
        refuse_lacking_heads(heads, config)
    except UsageError as error:
        console.warn(f"`run` would stop: {error.message}")


def _print_domain(proof: DomainProof | None, config: Config) -> None:
    if proof is None:
        return
    rows: list[list[console.Cell]] = [
        [each.kind, each.images, percent(each.before, 1, 1), percent(each.accepted, 1, 1)]
        for each in proof.challenges
    ]
    from balancer.verification.off_domain import refuse_accepted_challenges, summarise

    console.say()
    console.table(
        "challenge: images of none of the classes that some cell would accept",
        ["kind", "images", "by class and facets", "expected in a run"],
        rows,
    )
    console.say(summarise(proof))
    try:
        refuse_accepted_challenges(proof, config)
    except UsageError as error:
        console.warn(f"`run` would stop: {error.message}")


def _print_preflight(checked: Preflight, every: bool) -> None:
    from balancer.verification.label_issues import describe_label_issues

    proofs = list(checked.values)
    if len(proofs) > console.LISTED and not every:
        proofs.sort(key=lambda proof: proof.proven)
    title = f"pre-flight: what the verifier tells apart on {counted(checked.images, 'real image')}"
    console.say()
    console.first_rows(
        title,
        ["property", "value", "examples", "AUC", "verdict"],
        proofs,
        "values",
        every=every,
        row=lambda proof: [
            proof.property_,
            proof.value,
            proof.examples,
            None if proof.auc is None else round(proof.auc, 3),
            _verdict(checked, proof),
        ],
    )
    if line := describe_label_issues(checked.label_issues, checked.images):
        console.warn(line)
    if checked.blocking:
        console.warn(
            f"`run` would stop: {counted(len(checked.blocking), 'value')} not proven and not in"
            " verification.unjudged"
        )


def _verdict(checked: Preflight, proof: ValueProof) -> str:
    if proof.proven:
        return "proven"
    allowed = ", allowed by verification.unjudged" if checked.is_allowed(proof) else ""
    return f"not proven{allowed}: {proof.problem}"


def _warn_about_faults(audit: Audit, config: Config) -> None:
    from balancer.dataset.notices import audit_command, describe_unusual_layout
    from balancer.dataset.unreadable import describe_unreadable

    if line := describe_unusual_layout(audit):
        console.note(line)
    if line := describe_unreadable(audit, config):
        console.warn(line)
    if copies := sum(len(names) - 1 for names in audit.duplicates):
        console.warn(f"exact duplicates, counted: {copies} ({audit_command(audit, config)} lists them)")
    for line in audit.warnings:
        console.warn(line)


def _as_json(
    plan: Plan, cost: Estimate, facets: list[str], conditioning: Summary | None
) -> dict[str, object]:
    made_from = {} if conditioning is None else conditioning.of_cells()
    cells = [
        wanted.as_dict(facets) | ({"conditioning": made_from[wanted.cell.key]} if made_from else {})
        for wanted in plan.in_turn()
    ]
    classes = {
        name: {"now": now, "to_generate": lacking, "then": then, "target": target}
        for name, now, lacking, then, target in _by_class(plan)
    }
    whole = {"total": plan.total, "classes": classes, "cells": cells, "estimate": cost.as_dict()}
    return whole | {"conditioning": conditioning and conditioning.as_dict()}


def _print(plan: Plan, cost: Estimate, facets: list[str], every: bool) -> None:
    """Print summaries first, because there may be thousands of classes and cells."""
    if all(count >= plan.targets[name] for name, count in plan.counts.items()):
        console.say("nothing to generate: every class has its target (`target` in the config sets it)")
    classes = _by_class(plan)
    if len(classes) > console.LISTED and not every:
        _print_priorities(plan)
        classes.sort(key=lambda row: -row[2])
    console.first_rows(
        f"{counted(plan.total, 'image')} to generate in {counted(len(plan.cells), 'cell')} of "
        f"{counted(len({wanted.cell.class_name for wanted in plan.cells}), 'class', 'classes')}",
        ["class", "now", "to generate", "then", "target"],
        classes,
        "classes, which lack no more",
        every=every,
    )
    _print_facets(plan, facets, every)
    _print_estimate(cost)
    console.say()
    console.first_rows(
        "cells, in the order in which they are begun; all are filled to the same share",
        ["priority", "class", *facets, "images"],
        plan.in_turn(),
        "cells",
        every=every,
        row=lambda wanted: [
            wanted.priority.value,
            wanted.cell.class_name,
            *map(wanted.cell.value, facets),
            wanted.quota,
        ],
    )


def _print_priorities(plan: Plan) -> None:
    """How many classes lack how much."""
    rows: list[list[console.Cell]] = []
    lacking = 0
    for priority, group in groupby(plan.cells, key=lambda wanted: wanted.priority):
        cells = list(group)
        classes = len({wanted.cell.class_name for wanted in cells})
        rows.append([priority.value, classes, len(cells), sum(wanted.quota for wanted in cells)])
        lacking += classes
    if full := len(plan.counts) - lacking:
        rows.append(["nothing lacking", full, None, None])
    console.table("priorities", ["priority", "classes", "cells", "images"], rows)
    console.say()


def _by_class(plan: Plan) -> list[tuple[str, int, int, int, int]]:
    """(class, images now, images to generate, their sum, target) for each class."""
    lacking = Counter[str]()
    for wanted in plan.cells:
        lacking[wanted.cell.class_name] += wanted.quota
    return [
        (name, count, lacking[name], count + lacking[name], plan.targets[name])
        for name, count in plan.counts.items()
    ]


def _print_facets(plan: Plan, facets: list[str], every: bool) -> None:
    totals = {facet: Counter[str]() for facet in facets}
    for wanted in plan.cells:
        for facet, value in wanted.cell.facets:
            totals[facet][value] += wanted.quota
    for facet, images in totals.items():
        if images:
            console.say()
            console.first_rows(facet, ["value", "to generate"], list(images.items()), "values", every=every)


def _print_estimate(cost: Estimate) -> None:
    time = None if cost.hours is None else duration(cost.hours * 3600)
    rows: list[list[console.Cell]] = [
        ["candidates", str(cost.candidates), cost.candidates_basis],
        ["images missing", str(cost.missing), cost.missing_basis],
        ["time", time, cost.hours_basis],
        ["cost", None if cost.cost is None else console.figure(cost.cost), cost.cost_basis],
        ["disk", size(cost.bytes), cost.bytes_basis],
        *console.per_image_rows(asdict(cost.per_image)),
    ]
    console.say()
    console.table("estimate", ["what", "expected", "basis"], rows)
