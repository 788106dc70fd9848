"""`balancer run`: fill every quota with verified images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.dotted import SETTING_HELP

if TYPE_CHECKING:
    from actors.run import RunResult

EXIT_SHORT = 3
LISTED_CELLS = 20


@click.command("run")
@click.argument("config", type=click.Path())
@click.option("--out", default="runs/latest", show_default=True, help="Run folder; an existing run goes on.")
@click.option("--address", default=None, help="Ray cluster, host:port or `auto`.  [default: RAY_ADDRESS]")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Work on N slots only, as a trial.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option("--allow-config-change", is_flag=True, help="Go on with a run although the config changed.")
@click.pass_context
def command(
    ctx: click.Context,
    config: str,
    out: str,
    address: str | None,
    limit: int | None,
    overrides: tuple[str, ...],
    allow_config_change: bool,
) -> None:
    """Generate, verify and commit images until every quota of CONFIG is met.

    The same command goes on where an earlier start was left, however that one ended. It exits with 3 if
    images are missing in the end, because no attempt passed, the budget was spent, or --limit was reached.
    """
    from balancer.configfile import load_config

    loaded = load_config(config, overrides)
    from balancer import run

    result = run(
        loaded,
        out,
        address=address,
        limit=limit,
        allow_config_change=allow_config_change,
        progress=True,
    )
    _tell(result, out)
    if result.open_cells:
        ctx.exit(EXIT_SHORT)


def _tell(result: RunResult, out: str) -> None:
    made = f"{result.accepted} of {result.wanted} images accepted, {result.candidates} candidates made"
    console.say(f"{made}: {out}")
    if not result.open_cells:
        return
    reason = {
        "short": "no attempt passed",
        "budget": "the budget was spent",
        "interrupted": "--limit was reached, the same command without it goes on",
    }.get(result.state, result.state)
    console.warn(f"{sum(result.open_cells.values())} images are missing ({reason}):")
    for cell, count in list(result.open_cells.items())[:LISTED_CELLS]:
        tally = result.given_up.get(cell)
        console.warn(f"  {cell}: {count}" + (f", given up: {tally}" if tally else ""))
    if len(result.open_cells) > LISTED_CELLS:
        console.warn(f"  and {len(result.open_cells) - LISTED_CELLS} more cells")
    if result.given_up:
        console.warn(f"{len(result.given_up)} cells were given up; attempts.give_up_below sets from when on")
