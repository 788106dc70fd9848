"""`balancer watch`: a run as it goes on, in a browser."""

from __future__ import annotations

import click

from balancer.cli import console


@click.command(name="watch")
@click.argument("run", metavar="RUN")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Port on 127.0.0.1.  [default: 8765, or a free one]",
)
def command(run: str, port: int | None) -> None:
    """Show RUN live in a browser: progress, pace, rejections, the last images.

    From its files alone, on any machine that reads them, during the run and after. The page is for this
    machine only, under a secret address that is printed; Ctrl-C ends the server. `balancer status --follow`
    does the same on a terminal.
    """
    from balancer.process.signals import caught
    from balancer.storage import open_storage
    from balancer.watch.server import LiveRun
    from balancer.web.serving import listening, serve

    live = LiveRun.of(open_storage(run, create=False))
    live.look()  # a run that cannot be read is an error, not a page
    with listening(port) as address, caught() as stop:
        console.say("live until Ctrl-C:")
        console.say(address.url)
        serve(address, live.app(), stop)
