"""`balancer fsck`: is everything that was committed still there, and right?"""

from __future__ import annotations

import click

from balancer.cli import console


@click.command(name="fsck")
@click.argument("run", metavar="RUN")
@click.pass_context
def command(ctx: click.Context, run: str) -> None:
    """Check every rule of the manifest in RUN, and hash every image it names.

    Prints one line for each rule that is broken, with the file, and exits with 1 if there are any. A
    compacted copy is compared with the log. Leftovers that do no harm are noted. Nothing is changed.
    """
    from balancer.manifest.check import check_run
    from balancer.storage import open_storage

    found = check_run(open_storage(run, create=False))
    for leftover in found.notes:
        console.note(f"note: {leftover.path}: {leftover.detail}")
    for problem in found.problems:
        console.say(f"{problem.path}: {problem.rule}: {problem.detail}")
    looked_at = f"{found.fragments} fragments, {found.rows} rows and {found.images} images checked"
    if found.compacted is not None:
        looked_at += f", {found.compacted} compacted rows as well"
    console.say(f"{looked_at}: {_verdict(len(found.problems))}")
    if found.problems:
        ctx.exit(1)


def _verdict(problems: int) -> str:
    if not problems:
        return "no problems"
    return f"{problems} problem{'s' if problems > 1 else ''}"
