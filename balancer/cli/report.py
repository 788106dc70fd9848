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
    from balancer.manifest.image_check import check_images
    from balancer.report import REPORT_FILE, render_report
    from balancer.storage import open_storage

    render_report(run)
    if warning := check_images(open_storage(run, create=False)).warning:
        console.warn(warning)
    console.say(f"{run.rstrip('/')}/{REPORT_FILE}")
