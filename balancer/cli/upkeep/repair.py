"""`balancer repair`: save what can be saved of a damaged manifest."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.manifest.maintenance.repair import Damage, Repair


@click.command("repair")
@click.argument("run", metavar="RUN")
@click.option("--apply", "apply_", is_flag=True, help="Repair it.")
@click.pass_context
def command(ctx: click.Context, run: str, apply_: bool) -> None:
    """Show what can be saved of damaged or missing fragments of the log in RUN.

    With --apply the log is made whole, with what can be restored to the byte and rows that the compacted copy
    has. The rest is lost, and the next `balancer run` makes those candidates again. If the end of the log is
    gone, or all of it, look first whether a disk is not mounted. Damaged files are kept in manifest/damaged/.
    Exits with 1 while there is damage.
    """
    from balancer.manifest.layout import HEAD_FILE
    from balancer.manifest.maintenance import repair
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    found = repair.apply(storage) if apply_ else repair.look(storage)
    for damage in found.damages:
        console.say(f"{damage.path}: {damage.rule}: {damage.detail}: {_fate(damage, found)}")
    if found.drops_head:
        console.say(f"{HEAD_FILE}: {found.drops_head}: written anew from the log")
    for problem in found.unsolved:
        console.say(f"beyond repair: {problem}")
    if found.drops_copy:
        console.say("the compacted copy cannot help, as it is damaged, too, or of another log; it is removed")
    console.say(_summary(found, apply_))
    if apply_ and found.is_needed:
        console.note(f"`balancer fsck {shlex.quote(run)}` tells whether anything is still wrong")
    elif found.is_needed and not found.unsolved:
        console.note("nothing was changed; --apply does")
    if found.unsolved or (found.is_needed and not apply_):
        ctx.exit(1)


def _fate(damage: Damage, found: Repair) -> str:
    if not damage.is_lost:
        return "restored, to the byte"
    told = damage.remains
    what = f" ({told.rows} {told.event})" if told.event in ("rows", "verdicts") else ""
    saved = f", {counted(found.saved.num_rows, 'row')} saved" if damage.seq == found.saved_in else ""
    return f"lost{what}{saved}"


def _summary(found: Repair, applied: bool) -> str:
    if not found.is_needed:
        return "nothing that can be repaired" if found.unsolved else "nothing to repair"
    lost = len(found.lost)
    verb = "were" if applied else "can be"
    parts = [
        f"{len(found.damages) - lost} fragments {verb} restored",
        f"{lost} {'are' if applied else 'would be'} lost",
        f"{found.saved.num_rows} rows {verb} saved from the compacted copy",
    ]
    return ", ".join(parts)
