"""`balancer gc`: files that a crash left, and compacted files that no reader looks at any more."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.errors import UsageError
from balancer.text.quantities import counted, size

if TYPE_CHECKING:
    from balancer.manifest.maintenance.gc import Leftover


@click.command("gc")
@click.argument("run", metavar="RUN")
@click.option("--delete", is_flag=True, help="Delete them.")
@click.option("--yes", is_flag=True, help="With --delete: also more images than crashes leave.")
@click.option(
    "--older-than", default=24.0, show_default=True, type=click.FloatRange(min=0), metavar="HOURS",
    help="Only files that were written longer ago.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, delete: bool, yes: bool, older_than: float, as_json: bool) -> None:
    """List files in RUN that nothing needs: images that no row names, temporary files, old compacted files.

    With --delete they are deleted, unless a driver is at work; one that only seemed to be gone is stopped.
    Images that are more than 16 and more than a tenth of all are deleted only with --yes, and so is any image
    of a run of an earlier version, whose log cannot be proven to be whole.
    """
    if yes and not delete:
        raise UsageError("--yes has no effect without --delete", hint="add --delete, or leave --yes out")
    from balancer.manifest.maintenance.gc import delete_leftovers, find_leftovers, find_unneeded, total_bytes
    from balancer.storage import open_storage

    storage, age = open_storage(run, create=False), dt.timedelta(hours=older_than)
    found = delete_leftovers(storage, age, confirmed=yes) if delete else find_leftovers(storage, age)
    listed = {leftover.path for leftover in found}
    younger = [leftover for leftover in find_unneeded(storage) if leftover.path not in listed]
    if as_json:
        console.print_json(
            {
                "deleted": delete,
                "bytes": total_bytes(found),
                "younger": len(younger),
                "files": [
                    {
                        "path": leftover.path,
                        "kind": leftover.kind,
                        "bytes": leftover.num_bytes,
                        "modified_at": leftover.modified_at.isoformat(),
                    }
                    for leftover in found
                ],
            }
        )
        return
    for leftover in found:
        console.say(leftover.path)
    told = f"{_counted(found)}, {size(total_bytes(found))}" if found else "nothing"
    console.say(f"{'deleted' if delete else 'left over'}: {told}")
    if younger:
        console.note(
            f"passed over: {_counted(younger)} written in the last {older_than:g} hours (--older-than), "
            "which may belong to somebody who is at work"
        )
    if found and not delete:
        console.note("nothing was deleted; --delete does")


def _counted(leftovers: Iterable[Leftover]) -> str:
    counts = Counter(leftover.kind for leftover in leftovers)
    return ", ".join(
        counted(count, kind if kind == "image" else f"{kind} file") for kind, count in sorted(counts.items())
    )
