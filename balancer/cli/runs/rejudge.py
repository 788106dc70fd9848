"""`balancer rejudge`: other limits for the candidates of a run, without generating any."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.runs.rejudge import CellChange, Rejudgement

COLUMNS = ("accepted", "revoked", "restored", "made_again", "open")


@click.command("rejudge")
@click.argument("run", metavar="RUN")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Judge by another value.")
@click.option("--apply", "apply_", is_flag=True, help="Commit the new verdicts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, settings: tuple[str, ...], apply_: bool, as_json: bool) -> None:
    """Show what other limits, such as verification.threshold=0.7, would change in RUN.

    Every candidate is judged again from the numbers in its row. For each cell: images accepted now, those
    of them that would be revoked, earlier ones that would be restored from their files, ones that would
    pass but were not kept, so that the next run makes them again, and how many images the next run has to
    make then. With --apply the verdicts are committed, and all rows name the rules they are judged by;
    the next `balancer run` takes the same --set.
    """
    from balancer.runs import rejudge
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    found = rejudge.apply(storage, settings) if apply_ else rejudge.rejudge(storage, settings)
    if as_json:
        console.print_json(_as_json(found, applied=apply_))
    else:
        _print(found, run, applied=apply_)


def _as_json(found: Rejudgement, applied: bool) -> dict[str, Any]:
    return {
        "run_id": found.info.run_id,
        "overrides": found.rules.overrides,
        "applied": applied,
        "changed": len(found.changes),
        "updated": found.updated,
        **_total(found),
        "cells": [
            {name: item[name] for name in ("class", *found.info.facets)} | _counts(change)
            for item, change in zip(found.info.plan, found.cells, strict=True)
        ],
    }


def _counts(change: CellChange) -> dict[str, int]:
    told = asdict(change)
    return {name: told[name] for name in COLUMNS}


def _total(found: Rejudgement) -> dict[str, int]:
    counts = [_counts(change) for change in found.cells]
    return {name: sum(of[name] for of in counts) for name in COLUMNS}


def _print(found: Rejudgement, run: str, applied: bool) -> None:
    from balancer.manifest.rules import as_settings

    rules = list(as_settings(found.rules.overrides))
    cells = [(change.cell.key, _counts(change)) for change in found.cells]
    shown = [(key, counts) for key, counts in cells if any(counts[name] for name in COLUMNS[1:])]
    console.table(
        f"{counted(len(found.changes), 'verdict')} {'changed' if applied else 'would change'}"
        f" under {', '.join(rules) or 'the rules of the run'}",
        ["cell", "accepted", "revoked", "restored", "made again", "open"],
        [[key, *counts.values()] for key, counts in [*shown, ("all cells", _total(found))]],
    )
    if found.updated:
        console.note(
            f"other rows brought up to date{'' if applied else ' by --apply'}: {found.updated}"
            " (their threshold, score, reason or unjudged)"
        )
    if not found.pending:
        console.note("nothing to change")
    elif not applied:
        console.note("nothing was changed; --apply does")
    elif found.state == "interrupted":
        given = "".join(f" --set {shlex.quote(rule)}" for rule in rules)
        console.note(f"`balancer run CONFIG --out {shlex.quote(run)}{given}` goes on from here")
