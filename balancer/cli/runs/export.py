"""`balancer export`: a run's images for other tools."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import click

from balancer.cli import console
from balancer.text.quantities import counted


@click.command("export")
@click.argument("run", metavar="RUN")
@click.argument("form", metavar="FORMAT")
@click.argument("destination", metavar="DEST")
@click.argument("condition", metavar="[FILTER]", default="")
@click.option("--copy", is_flag=True, help="folders: copy images instead of linking into RUN.")
@click.option("--embed", is_flag=True, help="parquet, arrow: put the image files into the table.")
@click.option(
    "--shard-megabytes", type=click.FloatRange(min=0, min_open=True), default=500.0, show_default=True,
    help="webdataset: maximum size of a tar file.",
)  # fmt: skip
@click.option("--licence", default="unknown", help="hf: a licence identifier of the hub, such as cc-by-4.0.")
@click.option("--allow-synthetic-eval", is_flag=True, help="Allow generated images in validation and test.")
@click.option(
    "--recommended", is_flag=True, help="Leave out generated images that `balancer evaluate` advises against."
)
@click.option(
    "--quarantined", is_flag=True, help="Also cells in which people found too many errors (review.max_error)."
)
def command(
    run: str,
    form: str,
    destination: str,
    condition: str,
    copy: bool,
    embed: bool,
    shard_megabytes: float,
    licence: str,
    allow_synthetic_eval: bool,
    recommended: bool,
    quarantined: bool,
) -> None:
    """Write the accepted images of RUN to DEST as FORMAT. Run it again to complete or update the export.

    \b
    folders      class folders, with links by facet value
    parquet      one Parquet file
    arrow        one Arrow file
    hf           a Hugging Face imagefolder with a dataset card
    webdataset   tar shards
    csv          a table of files and labels, with the images in class folders
    coco         COCO annotations whose boxes are whole images
    labelstudio  Label Studio tasks with predictions
    fiftyone     a FiftyOne dataset

    FILTER is a SQL condition, as in `balancer query`.
    """
    from balancer.export import Options, export
    from balancer.manifest.image_check import check_images
    from balancer.run_manifest import open_manifest
    from balancer.storage import open_storage

    options = Options(copy, embed, shard_megabytes, licence, allow_synthetic_eval, recommended, quarantined)
    manifest = open_manifest(run)
    if warning := check_images(open_storage(run, create=False)).warning:
        console.warn(warning)
    with contextlib.ExitStack() as stack:
        count: list[Callable[[int], None]] = []

        def begin(total: int) -> None:
            count.append(stack.enter_context(console.counting("images exported", total)))

        exported = export(
            manifest, form, destination, condition or None, options,
            progress=lambda done: count[0](done), begin=begin,
        )  # fmt: skip
    if exported.left_out:
        console.warn(exported.left_out)
    parts = [f"{counted(exported.written, 'file')} written"]
    parts += [f"{exported.kept} unchanged"] if exported.kept else []
    parts += [f"{exported.removed} removed"] if exported.removed else []
    console.say(f"{destination}: {counted(exported.images, 'image')}, {', '.join(parts)}")
