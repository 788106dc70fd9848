"""`balancer fsck`: is everything that was committed still there, and right?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.manifest.maintenance.fsck import Findings


@click.command(name="fsck")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, run: str, as_json: bool) -> None:
    """Check every rule of the manifest in RUN, and hash every image it names.

    Prints one line for each rule that is broken, with the file, and exits with 1 if there are any. A
    compacted copy is compared with the log. Leftovers that do no harm are noted. Nothing is changed.
    """
    from balancer.manifest.maintenance.fsck import check_run
    from balancer.storage import open_storage

    found = check_run(open_storage(run, create=False))
    if as_json:
        console.print_json(dataclasses.asdict(found))
    else:
        _print(found)
    if found.problems:
        ctx.exit(1)


def _print(found: Findings) -> None:
    for leftover in found.notes:
        console.note(f"note: {leftover.path}: {leftover.detail}")
    for problem in found.problems:
        console.say(f"{problem.path}: {problem.rule}: {problem.detail}")
    fragments, rows = counted(found.fragments, "fragment"), counted(found.rows, "row")
    looked_at = f"{fragments}, {rows} and {counted(found.images, 'image')} checked"
    if found.compacted is not None:
        looked_at += f", {found.compacted} compacted rows as well"
    console.say(f"{looked_at}: {_verdict(len(found.problems))}")


def _verdict(problems: int) -> str:
    if not problems:
        return "no problems"
    return f"{problems} problem{'s' if problems > 1 else ''}"
