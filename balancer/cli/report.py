"""`balancer report`: a run as one HTML file."""

from __future__ import annotations

import click

from balancer.cli import console


@click.command(name="report")
@click.argument("run", metavar="RUN")
def command(run: str) -> None:
    """Write RUN/report.html: counts, criteria, scores and contact sheets in one file that needs nothing else.

    It can be made while the run goes on, and made again at any time.
    """
    from balancer.report import REPORT_FILE, render_report

    render_report(run)
    console.say(f"{run.rstrip('/')}/{REPORT_FILE}")
