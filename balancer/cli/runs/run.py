"""`balancer run`: fill every quota with verified images."""

from __future__ import annotations

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.text.quantities import counted

EXIT_SHORT = 3


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
    from balancer.config.load import load_config

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
    accepted = f"{result.accepted} of {counted(result.wanted, 'image')} accepted"
    console.say(f"{accepted}, {counted(result.candidates, 'candidate')} made: {out}")
    if result.open_cells:
        ctx.exit(EXIT_SHORT)
