"""`balancer sample`: render the sample dataset."""

from __future__ import annotations

from pathlib import Path

import click

from balancer.cli import console
from balancer.errors import StorageError
from balancer.storage.user_paths import expanded
from balancer.text.commands import suggested


@click.command("sample")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other images."
)
def command(directory: Path, seed: int) -> None:
    """Render the sample dataset into DIR: pizzas in class folders.

    DIR/train lacks images of most classes, DIR/holdout has 20 images of each.
    """
    from balancer.dataset.sample import write_dataset

    directory = expanded(directory)
    try:
        write_dataset(directory, seed=seed)
    except OSError as error:
        problem = f"{directory}: cannot write the sample dataset: {error.strerror or error}"
        raise StorageError(problem, hint="name another folder") from error
    parts = sorted(part for part in directory.iterdir() if part.is_dir())
    written = ", ".join(f"{_count_images(part)} in {part.name}/" for part in reversed(parts))
    console.say(f"{directory}: {written}; count them with {suggested('audit', directory / 'train')}")


def _count_images(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.png"))
