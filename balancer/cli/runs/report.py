"""`balancer report`: a run as one HTML file."""

from __future__ import annotations

import click

from balancer.cli import console


@click.command(name="report")
@click.argument("run", metavar="RUN")
@click.option("--out", metavar="FILE", help="File to write, outside the run.  [default: RUN/report.html]")
def command(run: str, out: str | None) -> None:
    """Write RUN's report, one self-contained HTML file: counts, criteria, scores, contact sheets.

    It can be written at any time, also during the run.
    """
    from balancer.manifest.image_check import check_images
    from balancer.report import write_report
    from balancer.storage import open_storage

    path = write_report(run, out)
    if warning := check_images(open_storage(run, create=False)).warning:
        console.warn(warning)
    console.say(path)
