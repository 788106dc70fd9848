"""`balancer init`: write a first config for a dataset."""

from __future__ import annotations

import click

from balancer.cli import console
from balancer.text.commands import suggested


@click.command("init")
@click.argument("dataset")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output]")
def command(dataset: str, out: str | None) -> None:
    """Write a commented config for DATASET, a folder with one subfolder of images per class.

    Classes and facets come from the dataset; edit the prompts. Never overwrites a file. DATASET `sample` is
    the rendered sample dataset.
    """
    from balancer.config.yaml_writing import check_free, create_file
    from balancer.scaffold import starter_config

    if out is not None:
        check_free(out)
    text = starter_config(dataset)
    if out is None:
        console.emit(text.encode())
    else:
        create_file(out, text)
        console.say(f"{out}: written; edit its prompts, then {suggested('plan', out)} shows the plan")
