"""`balancer fsck`: check that every committed row and image is present and intact."""

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

    Prints one line per broken rule, with the file, and exits with 1 if there are any. A compacted copy is
    compared with the log. Harmless leftovers are noted. Changes nothing.
    """
    from balancer.manifest.maintenance.fsck import check_run
    from balancer.storage import open_storage

    findings = check_run(open_storage(run, create=False))
    if as_json:
        console.print_json(dataclasses.asdict(findings))
    else:
        _print(findings)
    if findings.problems:
        ctx.exit(1)


def _print(findings: Findings) -> None:
    for note in findings.notes:
        console.note(f"note: {note.path}: {note.detail}")
    for problem in findings.problems:
        console.say(f"{problem.path}: {problem.rule}: {problem.detail}")
    parts = [counted(findings.fragments, "fragment"), counted(findings.rows, "row")]
    if findings.compacted is not None:
        parts.append(counted(findings.compacted, "compacted row"))
    checked = f"{', '.join(parts)} and {counted(findings.images, 'image')} checked"
    problems = len(findings.problems)
    console.say(f"{checked}: {counted(problems, 'problem') if problems else 'no problems'}")
