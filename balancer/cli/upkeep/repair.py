"""`balancer repair`: save what can be saved of a damaged manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.text.commands import suggested
from balancer.text.quantities import counted, were

if TYPE_CHECKING:
    from balancer.manifest.maintenance.repair import Damage, Repair


@click.command("repair")
@click.argument("run", metavar="RUN")
@click.option("--apply", "apply_", is_flag=True, help="Repair it.")
@click.pass_context
def command(ctx: click.Context, run: str, apply_: bool) -> None:
    """Show what can be saved of damaged or missing fragments of the log in RUN.

    --apply repairs the log: fragments that can be restored byte for byte, and rows that the compacted copy
    has. The rest is lost, and the next `balancer run` makes those candidates again. If the end of the log or
    all of it is missing, first check that the disk is mounted. Damaged files are kept in manifest/damaged/.
    Exits with 1 while there is damage.
    """
    from balancer.manifest.layout import HEAD_FILE
    from balancer.manifest.maintenance import repair
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    plan = repair.apply(storage) if apply_ else repair.look(storage)
    for damage in plan.damages:
        console.say(f"{damage.path}: {damage.rule}: {damage.detail}: {_fate(damage)}")
    if plan.drops_head:
        console.say(f"{HEAD_FILE}: {plan.drops_head}: rebuilt from the log")
    for problem in plan.unsolved:
        console.say(f"beyond repair: {problem}")
    if plan.drops_copy:
        console.say("the compacted copy cannot help: it is damaged or of another log; it is removed")
    console.say(_summary(plan, apply_))
    if apply_ and plan.is_needed:
        console.note(f"{suggested('fsck', run)} checks for remaining problems")
    elif plan.is_needed and not plan.unsolved:
        console.note("nothing was changed; --apply does it")
    if plan.unsolved or (plan.is_needed and not apply_):
        ctx.exit(1)


def _fate(damage: Damage) -> str:
    if not damage.is_lost:
        return "restored byte for byte"
    remains = damage.remains
    noun = {"rows": "row", "verdicts": "verdict"}.get(remains.event or "")
    return f"lost; the fragment held {counted(remains.rows, noun)}" if noun and remains.rows else "lost"


def _summary(plan: Repair, applied: bool) -> str:
    if not plan.is_needed:
        return "nothing that can be repaired" if plan.unsolved else "nothing to repair"
    lost, saved = len(plan.lost), plan.saved.num_rows
    restored = len(plan.damages) - lost
    parts = [
        f"{counted(restored, 'fragment')} {were(restored) if applied else 'can be'} restored",
        f"{counted(lost, 'fragment')} {were(lost) if applied else 'would be'} lost",
    ]
    if lost:
        verb = were(saved) if applied else "can be"
        parts.append(f"{counted(saved, 'row')} {verb} saved from the compacted copy")
    return ", ".join(parts)
