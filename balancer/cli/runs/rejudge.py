"""`balancer rejudge`: judge a run's candidates under other limits, without generating images."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.text.commands import suggested
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

    Every candidate is judged again from the numbers in its row. The table counts, for each cell: images
    accepted now; those that would be revoked; rejected images that would be restored from their files;
    images that would pass but were not kept, which the next run makes again; and images the next run has
    to make in all. With --apply the verdicts are committed, and every row records the rules it was judged
    by; pass the same --set to the next `balancer run`.
    """
    from balancer.runs import rejudge
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    result = rejudge.apply(storage, settings) if apply_ else rejudge.rejudge(storage, settings)
    if as_json:
        console.print_json(_as_json(result, applied=apply_))
    else:
        _print(result, run, applied=apply_)


def _as_json(result: Rejudgement, applied: bool) -> dict[str, Any]:
    return {
        "run_id": result.info.run_id,
        "overrides": result.rules.overrides,
        "applied": applied,
        "changed": len(result.changes),
        "updated": result.updated,
        **_total(result),
        "cells": [
            {name: item[name] for name in ("class", *result.info.facets)} | _counts(change)
            for item, change in zip(result.info.plan, result.cells, strict=True)
        ],
    }


def _counts(change: CellChange) -> dict[str, int]:
    fields = asdict(change)
    return {name: fields[name] for name in COLUMNS}


def _total(result: Rejudgement) -> dict[str, int]:
    counts = [_counts(change) for change in result.cells]
    return {name: sum(cell[name] for cell in counts) for name in COLUMNS}


def _print(result: Rejudgement, run: str, applied: bool) -> None:
    from balancer.manifest.rules import as_settings

    rules = list(as_settings(result.rules.overrides))
    cells = [(change.cell.key, _counts(change)) for change in result.cells]
    shown = [(key, counts) for key, counts in cells if any(counts[name] for name in COLUMNS[1:])]
    console.table(
        f"{counted(len(result.changes), 'verdict')} {'changed' if applied else 'would change'}"
        f" under {', '.join(rules) or 'the rules of the run'}",
        ["cell", "accepted", "revoked", "restored", "made again", "open"],
        [[key, *counts.values()] for key, counts in [*shown, ("all cells", _total(result))]],
    )
    if result.updated:
        console.note(
            f"{'updated' if applied else '--apply also updates'} the threshold, score, reason or unjudged of"
            f" {counted(result.updated, 'other row')}"
        )
    if not result.pending:
        console.note("nothing to change")
    elif not applied:
        console.note("nothing was changed; add --apply to commit this")
    elif result.state == "interrupted":
        given = [word for rule in rules for word in ("--set", rule)]
        console.note(f"resume with {suggested('run', 'CONFIG', '--out', run, *given)}")
