"""`balancer compact`: a copy of the log that queries read fast."""

from __future__ import annotations

import click

from balancer.cli import console


@click.command("compact")
@click.argument("run", metavar="RUN")
@click.option("--rebuild", is_flag=True, help="Make the copy anew, although it is up to date.")
def command(run: str, rebuild: bool) -> None:
    """Copy what is committed in RUN into Parquet files for queries, by class and facets.

    The log stays as it is, and has everything; a run may go on meanwhile. Files of an earlier copy stay for
    those who read them, until `balancer gc` deletes them.
    """
    from balancer.manifest.compaction import compact
    from balancer.storage import open_storage

    index = compact(open_storage(run, create=False), rebuild=rebuild)
    if index is None:
        console.say("nothing to do: the compacted copy is up to date")
        return
    megabytes = sum(file.num_bytes for file in index.files) / 1e6
    console.say(
        f"{index.rows} rows of {index.covers} fragments in {len(index.files)} files, {megabytes:.1f} MB"
    )
