"""`balancer adapt`: train LoRA adapters on the training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from actors.adapt import Adapted


@click.command("adapt")
@click.argument("config", type=click.Path())
@click.option("--out", default=None, help="Folder of the adapters.  [default: CONFIG with .adapters]")
@click.option("--address", default=None, help="Ray cluster, host:port or `auto`.  [default: RAY_ADDRESS]")
@click.option("--replace", is_flag=True, help="Train again what other images or settings were used for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
def command(
    config: str,
    out: str | None,
    address: str | None,
    replace: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train LoRA adapters for the generator on the training images of CONFIG, as `adaptation` says.

    No image of validation, test or hold-out is used, nor a near-duplicate of one. The same command resumes a
    training, however it ended. Put the result into the config as `generation.loras`; adapters.html in the
    folder shows how the loss fell, and samples before and after.
    """
    from balancer.config.load import load_config

    loaded = load_config(config, overrides)
    from balancer import adapt

    folder = str(Path(config).with_suffix(".adapters")) if out is None else out
    adapted = adapt(loaded, folder, address=address, replace=replace, progress=True)
    if as_json:
        console.print_json(
            {
                "out": adapted.out,
                "adapters": [
                    one.model_dump(mode="json", exclude={"losses"}) | {"loss": one.losses[-1]}
                    for one in adapted.adapters
                ],
                "left_out": dict(adapted.left_out),
            }
        )
        return
    _print(adapted, folder)


def _print(adapted: Adapted, folder: str) -> None:
    for one in adapted.adapters:
        images = counted(sum(one.images.values()), "training image")
        console.say(f"{folder}/{one.file}: {images}, {one.steps} steps, sha256 {one.sha256}")
    for name, count in adapted.left_out.items():
        console.note(f"{name}: no adapter has seen it, it has {counted(count, 'training image')}")
    console.note(f"{folder}/adapters.html shows samples before and after")
