"""`balancer gc`: list or delete files that nothing needs."""

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
@click.option("--yes", is_flag=True, help="With --delete: even if these are more images than crashes leave.")
@click.option(
    "--older-than", default=24.0, show_default=True, type=click.FloatRange(min=0), metavar="HOURS",
    help="Only files at least this old.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, delete: bool, yes: bool, older_than: float, as_json: bool) -> None:
    """List files in RUN that nothing needs: images that no row names, temporary files, old compacted files.

    --delete deletes them, unless the run is in progress; a driver that only seemed dead is stopped. It takes
    --yes as well to delete more than 16 images that are more than a tenth of all, or any image of a run begun
    by an earlier version, whose log cannot be proven complete.
    """
    if yes and not delete:
        raise UsageError("--yes has no effect without --delete", hint="add --delete, or omit --yes")
    from balancer.manifest.maintenance.gc import delete_leftovers, find_leftovers, find_unneeded, total_bytes
    from balancer.storage import open_storage

    storage, age = open_storage(run, create=False), dt.timedelta(hours=older_than)
    leftovers = delete_leftovers(storage, age, confirmed=yes) if delete else find_leftovers(storage, age)
    listed = {leftover.path for leftover in leftovers}
    younger = [leftover for leftover in find_unneeded(storage) if leftover.path not in listed]
    if as_json:
        console.print_json(
            {
                "deleted": delete,
                "bytes": total_bytes(leftovers),
                "younger": len(younger),
                "files": [
                    {
                        "path": leftover.path,
                        "kind": leftover.kind,
                        "bytes": leftover.num_bytes,
                        "modified_at": leftover.modified_at.isoformat(),
                    }
                    for leftover in leftovers
                ],
            }
        )
        return
    for leftover in leftovers:
        console.say(leftover.path)
    summary = f"{_counted(leftovers)}, {size(total_bytes(leftovers))}" if leftovers else "nothing"
    console.say(f"{'deleted' if delete else 'left over'}: {summary}")
    if younger:
        console.note(
            f"skipped: {_counted(younger)} written in the last {older_than:g} hours (--older-than); "
            "another command may still need these"
        )
    if leftovers and not delete:
        console.note("nothing was deleted; --delete does it")


def _counted(leftovers: Iterable[Leftover]) -> str:
    counts = Counter(leftover.kind for leftover in leftovers)
    return ", ".join(
        counted(count, kind if kind == "image" else f"{kind} file") for kind, count in sorted(counts.items())
    )
