"""`balancer reproduce`: check whether this machine makes a run's images again, pixel for pixel."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.errors import UsageError
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.runs.reproduction import Outcome, Reproduction

EXIT_DIFFERENT = 1
EXIT_INCOMPARABLE = 4


@click.command("reproduce")
@click.argument("run", metavar="RUN")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All accepted images; lists only those that differ.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, run: str, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Generate images of RUN again from the settings in their rows, and compare pixels.

    Exit codes: 0 all identical, 1 at least one differs, 4 at least one cannot be compared (another device,
    other library versions) or the weights are missing.
    """
    if bool(ids) == everything:
        raise UsageError("give the ids of images, or --all", hint="`balancer query RUN` lists ids")
    from actors.reproduce import reproduce, rows_to_reproduce
    from balancer.run_manifest import open_manifest

    manifest = open_manifest(run)
    rows = rows_to_reproduce(manifest, None if everything else ids)
    reproductions: list[Reproduction] = []
    with console.counting("images made again", len(rows)) as done:
        for reproduction in reproduce(manifest, rows):
            reproductions.append(reproduction)
            done(len(reproductions))
            if not as_json and (not everything or reproduction.outcome != "identical"):
                console.say(str(reproduction))
    counts = Counter(reproduction.outcome for reproduction in reproductions)
    if as_json:
        console.print_json(_as_json(reproductions, counts))
    else:
        outcomes = ", ".join(f"{count} {name}" for name, count in counts.items())
        console.say(f"{counted(len(reproductions), 'image')}: {outcomes}")
    if counts.keys() - {"identical"}:
        ctx.exit(EXIT_DIFFERENT if "different" in counts else EXIT_INCOMPARABLE)


def _as_json(reproductions: list[Reproduction], counts: Counter[Outcome]) -> dict[str, object]:
    images = [{"id": each.id, "outcome": each.outcome, "detail": each.detail} for each in reproductions]
    return {"counts": dict(counts), "images": images}
