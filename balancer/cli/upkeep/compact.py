"""`balancer compact`: a copy of the log that is fast to query."""

from __future__ import annotations

import click

from balancer.cli import console
from balancer.text.quantities import counted, size


@click.command("compact")
@click.argument("run", metavar="RUN")
@click.option("--rebuild", is_flag=True, help="Rebuild the copy even if it is up to date.")
def command(run: str, rebuild: bool) -> None:
    """Copy the committed rows of RUN into Parquet files by class and facets, for fast queries.

    The log stays unchanged and complete; this is safe during a run. Files of an earlier copy stay for their
    readers until `balancer gc` deletes them. Also updates manifest/current.parquet, the accepted images for
    other programs, if it is behind.
    """
    from balancer.manifest.layout import CURRENT_FILE
    from balancer.manifest.snapshot.build import compact
    from balancer.manifest.snapshot.current import renew_current
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    index = compact(storage, rebuild=rebuild)
    if renew_current(storage, rebuild=rebuild):
        console.say(f"wrote {CURRENT_FILE}")
    if index is None:
        console.say("the compacted copy is up to date")
        return
    console.say(
        f"{counted(index.rows, 'row')} of {counted(index.covers, 'fragment')} in "
        f"{counted(len(index.files), 'file')}, {size(sum(file.num_bytes for file in index.files))}"
    )
