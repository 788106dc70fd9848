"""`balancer compact`: a copy of the log that queries read fast."""

from __future__ import annotations

import click

from balancer.cli import console
from balancer.text.quantities import counted


@click.command("compact")
@click.argument("run", metavar="RUN")
@click.option("--rebuild", is_flag=True, help="Make the copy anew, although it is up to date.")
def command(run: str, rebuild: bool) -> None:
    """Copy what is committed in RUN into Parquet files for queries, by class and facets.

    The log stays as it is, and has everything; a run may go on meanwhile. Files of an earlier copy stay for
    those who read them, until `balancer gc` deletes them. manifest/current.parquet, the accepted images for
    other programs, is written anew if it is behind.
    """
    from balancer.manifest.layout import CURRENT_FILE
    from balancer.manifest.snapshot.build import compact
    from balancer.manifest.snapshot.current import renew_current
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    index = compact(storage, rebuild=rebuild)
    if renew_current(storage, rebuild=rebuild):
        console.say(f"{CURRENT_FILE} was written")
    if index is None:
        console.say("nothing to do: the compacted copy is up to date")
        return
    megabytes = sum(file.num_bytes for file in index.files) / 1e6
    console.say(
        f"{counted(index.rows, 'row')} of {counted(index.covers, 'fragment')} in "
        f"{counted(len(index.files), 'file')}, {megabytes:.1f} MB"
    )
