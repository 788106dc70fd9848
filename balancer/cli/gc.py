"""`balancer gc`: files that a crash left, and compacted files that no reader looks at any more."""

from __future__ import annotations

import datetime as dt
from collections import Counter

import click

from balancer.cli import console


@click.command("gc")
@click.argument("run", metavar="RUN")
@click.option("--delete", is_flag=True, help="Delete them.")
@click.option(
    "--older-than", default=24.0, show_default=True, type=click.FloatRange(min=0), metavar="HOURS",
    help="Only files that were written longer ago.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, delete: bool, older_than: float, as_json: bool) -> None:
    """List files in RUN that nothing needs: images that no row names, temporary files, old compacted files.

    With --delete they are deleted, unless a driver is at work; one that only seemed to be gone is stopped.
    """
    from balancer.manifest.gc import delete_leftovers, find_leftovers, total_bytes
    from balancer.storage import open_storage

    storage, age = open_storage(run, create=False), dt.timedelta(hours=older_than)
    found = delete_leftovers(storage, age) if delete else find_leftovers(storage, age)
    if as_json:
        console.print_json(
            {
                "deleted": delete,
                "bytes": total_bytes(found),
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
    counts = Counter(leftover.kind for leftover in found)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    console.say(f"{'deleted' if delete else 'left over'}: {kinds}, {total_bytes(found) / 1e6:.1f} MB")
    if found and not delete:
        console.note("nothing was deleted; --delete does")
