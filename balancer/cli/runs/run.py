"""`balancer run`: fill every quota with verified images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.errors import EXIT_SHORT
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from actors.run import Reporter


@click.command("run")
@click.argument("config", type=click.Path())
@click.option("--out", default="runs/latest", show_default=True, help="Run folder; an existing run resumes.")
@click.option("--address", default=None, help="Ray cluster, host:port or `auto`.  [default: RAY_ADDRESS]")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Fill at most N slots, as a trial.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option("--allow-config-change", is_flag=True, help="Resume a run although its config changed.")
@click.option("--yes", is_flag=True, help="Let accepted images leave where fewer are wanted.")
@click.option("--reuse", metavar="RUN", default=None, help="Try the accepted images of another run first.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="How progress is reported: json is one object a line, with run and node.",
)  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    config: str,
    out: str,
    address: str | None,
    limit: int | None,
    overrides: tuple[str, ...],
    allow_config_change: bool,
    yes: bool,
    reuse: str | None,
    log_format: str,
) -> None:
    """Generate, verify and commit images until every quota of CONFIG is met.

    The same command resumes a run, however it ended, and takes up what changed in CONFIG or the dataset
    since: targets, shares, prompts, thresholds, real images. Exits with 3 if images are missing at the end:
    no attempt passed, the budget was spent, or --limit was reached.
    """
    from balancer.config.load import load_config

    loaded = load_config(config, overrides)
    from balancer import run

    with _reporter(out, log_format) as reporter:
        result = run(
            loaded,
            out,
            address=address,
            limit=limit,
            allow_config_change=allow_config_change,
            confirmed=yes,
            reuse=reuse,
            reporter=reporter,
            progress=True,
        )
    accepted = f"{result.accepted} of {counted(result.wanted, 'image')} accepted"
    console.say(f"{accepted}, {counted(result.candidates, 'candidate')} made: {out}")
    if result.open_cells:
        ctx.exit(EXIT_SHORT)


@contextlib.contextmanager
def _reporter(out: str, log_format: str) -> Iterator[Reporter | None]:
    """None for text, which `balancer.run` shows by itself."""
    if log_format == "text":
        yield None
        return
    from actors.run import Reporter
    from balancer.cli.structured import JsonDisplay, JsonLines

    lines = JsonLines.of_this_node(out)
    lines.take_warnings()
    display = JsonDisplay(lines)
    try:
        yield Reporter(note=lines.note, progress=display.update)
    finally:
        display.close()
