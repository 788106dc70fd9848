"""`balancer reproduce`: does this machine make a run's images again, pixel for pixel?"""

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
@click.option("--all", "everything", is_flag=True, help="Every accepted image; only others are listed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, run: str, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Make images of RUN again, as their rows say they were made, and compare pixels.

    Exit codes: 0 all identical, 1 one is different, 4 one cannot be compared (another device, other versions
    of the libraries) or the weights are missing.
    """
    if bool(ids) == everything:
        raise UsageError("give the ids of images, or --all", hint="`balancer query RUN` lists ids")
    from actors.reproduce import reproduce, rows_to_reproduce
    from balancer.run_manifest import open_manifest

    manifest = open_manifest(run)
    rows = rows_to_reproduce(manifest, None if everything else ids)
    found: list[Reproduction] = []
    with console.counting("images made again", len(rows)) as done:
        for one in reproduce(manifest, rows):
            found.append(one)
            done(len(found))
            if not as_json and (not everything or one.outcome != "identical"):
                console.say(str(one))
    counts = Counter(one.outcome for one in found)
    if as_json:
        console.print_json(_as_json(found, counts))
    else:
        outcomes = ", ".join(f"{count} {name}" for name, count in counts.items())
        console.say(f"{counted(len(found), 'image')}: {outcomes}")
    if counts.keys() - {"identical"}:
        ctx.exit(EXIT_DIFFERENT if "different" in counts else EXIT_INCOMPARABLE)


def _as_json(found: list[Reproduction], counts: Counter[Outcome]) -> dict[str, object]:
    return {
        "counts": dict(counts),
        "images": [{"id": one.id, "outcome": one.outcome, "detail": one.detail} for one in found],
    }
