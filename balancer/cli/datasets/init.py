"""`balancer init`: write a first config for a dataset."""

from __future__ import annotations

import click

from balancer.cli import console
from balancer.config.dotted import DATASET_SETTING_HELP
from balancer.text.commands import suggested


@click.command("init")
@click.argument("dataset")
@click.option("--out", type=click.Path(dir_okay=False), help="File to write.  [default: standard output]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=DATASET_SETTING_HELP)
def command(dataset: str, out: str | None, overrides: tuple[str, ...]) -> None:
    """Write a commented config for DATASET, most simply a folder with one subfolder of images per class.

    Classes and facets come from the dataset; edit the prompts. Never overwrites a file. DATASET `sample` is
    the rendered sample dataset.
    """
    from balancer.config.load import load_dataset_settings
    from balancer.config.yaml_writing import check_free, create_file
    from balancer.scaffold import draft_config

    if out is not None:
        check_free(out)
    text, warnings = draft_config(dataset, load_dataset_settings(overrides))
    for line in warnings:
        console.warn(line)
    if out is None:
        console.emit(text.encode())
    else:
        create_file(out, text)
        console.say(f"{out}: written; edit its prompts, then {suggested('plan', out)} shows the plan")
