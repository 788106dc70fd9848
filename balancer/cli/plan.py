"""`balancer plan`: what a run would generate and what it may cost, before anything is generated."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from balancer.cli import console

if TYPE_CHECKING:
    from balancer.audit import Audit
    from balancer.plan import Estimate, Plan


@click.command("plan")
@click.argument("config", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config value.")
def command(config: str, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Show what `run` would generate for CONFIG: quotas, priorities, expected candidates, time and disk.

    Nothing is generated and no model is loaded.
    """
    from balancer.audit import audit_dataset, match_classes
    from balancer.configfile import load_config
    from balancer.plan import estimate, make_plan

    loaded = load_config(config, overrides)
    audit = audit_dataset(loaded)
    plan = make_plan(loaded, match_classes(audit, loaded))
    cost = estimate(plan, loaded, real_bytes=sum(image.num_bytes for image in audit.images))
    _warn_of_faults(audit)
    if as_json:
        console.print_json(_as_json(plan, cost, list(loaded.facets)))
    else:
        _print(plan, cost, list(loaded.facets))


def _warn_of_faults(audit: Audit) -> None:
    faults = []
    if audit.unreadable:
        faults.append(f"unreadable and not counted: {len(audit.unreadable)}")
    if audit.duplicates:
        copies = sum(len(names) - 1 for names in audit.duplicates)
        faults.append(f"exact copies of others and counted: {copies}")
    if faults:
        console.warn(f"images {'; '.join(faults)} (`balancer audit {audit.path}` names them)")


def _as_json(plan: Plan, cost: Estimate, facets: list[str]) -> dict[str, object]:
    cells = [wanted.as_dict(facets) for wanted in plan.cells]
    return {"total": plan.total, "cells": cells, "estimate": asdict(cost)}


def _print(plan: Plan, cost: Estimate, facets: list[str]) -> None:
    console.table(
        f"{plan.total} images to generate in {len(plan.cells)} cells, in this order",
        ["priority", "class", *facets, "images"],
        [
            [
                wanted.priority.value,
                wanted.cell.class_name,
                *(wanted.cell.value(facet) for facet in facets),
                wanted.quota,
            ]
            for wanted in plan.cells
        ],
    )
    _print_classes(plan)
    for facet in facets:
        _print_facet(plan, facet)
    _print_estimate(cost)


def _print_classes(plan: Plan) -> None:
    lacking = Counter[str]()
    for wanted in plan.cells:
        lacking[wanted.cell.class_name] += wanted.quota
    rows: list[list[console.Cell]] = [
        [name, count, lacking[name], count + lacking[name]] for name, count in plan.counts.items()
    ]
    click.echo()
    console.table(f"classes, target {plan.target} each", ["class", "now", "to generate", "then"], rows)


def _print_facet(plan: Plan, facet: str) -> None:
    totals = Counter[str]()
    for wanted in plan.cells:
        value = wanted.cell.value(facet)
        if value is not None:
            totals[value] += wanted.quota
    if totals:
        click.echo()
        console.table(facet, ["value", "to generate"], list(totals.items()))


def _print_estimate(cost: Estimate) -> None:
    time = None if cost.hours is None else console.duration(cost.hours * 3600)
    rows: list[list[console.Cell]] = [
        ["candidates", str(cost.candidates), cost.candidates_basis],
        ["time", time, cost.hours_basis],
        ["disk", console.size(cost.bytes), cost.bytes_basis],
    ]
    click.echo()
    console.table("estimate", ["what", "expected", "basis"], rows)
