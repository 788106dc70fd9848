"""`balancer status`: progress of a run, during it and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.text.quantities import counted, duration, percent

if TYPE_CHECKING:
    from balancer.manifest.image_check import ImageCheck


REVISIONS_SHOWN = 3
"""The last ones; `--json` has all."""


@click.command(name="status")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, as_json: bool) -> None:
    """Show the progress of RUN, from its files alone.

    A wanted image is accepted, `short` (every attempt failed) or `open` (a run can still make it).

    The state is running, complete, short, interrupted, failed or budget; stopped means that the driver ended
    without recording why. `balancer run` resumes any run that is not complete or short.
    """
    from balancer.manifest.image_check import ImageCheck
    from balancer.manifest.rows import utc_now
    from balancer.manifest.status import read_status
    from balancer.storage import open_storage

    status = read_status(open_storage(run, create=False), utc_now())
    if as_json:
        console.print_json(status)
    else:
        console.table(f"run {status['run_id']}: {status['state']}", ("", "images", "share"), _rows(status))
        _print_revisions(status["revisions"])
        _print_rules(status["overrides"])
        _print_given_up(status["given_up"])
        console.say()
        console.table("for each accepted image", ("", "expected", "basis"), console.per_image_rows(status))
        _print_current(status["current"], status["state"])
        _print_images(ImageCheck(**status["images"]))


def _rows(status: dict[str, Any]) -> list[tuple[str, str | int | None, str | None]]:
    wanted, candidates = status["wanted"], status["candidates"]
    rejected = [
        (f"rejected: {reason}", count, _share(count, candidates))
        for reason, count in status["rejected_by_reason"].items()
    ]
    rows: list[tuple[str, str | int | None, str | None]] = [
        ("wanted", wanted, None),
        ("accepted", status["accepted"], _share(status["accepted"], wanted)),
        ("short", status["short"], _share(status["short"], wanted)),
        ("open", status["open"], _share(status["open"], wanted)),
        ("candidates", candidates, None),
        *rejected,
        *(
            (f"accepted, {name} not judged", count, _share(count, status["accepted"]))
            for name, count in status["unjudged"].items()
        ),
        *(
            (f"accepted, {name} not proven", count, _share(count, status["accepted"]))
            for name, count in status["unproven"].items()
        ),
    ]
    if status["eta_s"] is not None:
        rows.append(("time left", duration(status["eta_s"]), None))
    return rows


def _print_revisions(revisions: list[dict[str, Any]]) -> None:
    for revision in revisions[-REVISIONS_SHOWN:]:
        changes = "; ".join(revision["changes"])
        console.note(f"plan revision {revision['number']} ({revision['committed_at']}): {changes}")


def _print_rules(overrides: dict[str, Any]) -> None:
    from balancer.manifest.rules import as_settings

    if settings := list(as_settings(overrides)):
        console.note(f"judged again under {', '.join(settings)} (`balancer rejudge`)")


def _print_current(current: dict[str, int] | None, state: str) -> None:
    if state == "running" or (current and not current["behind"]):
        return
    problem = f"{counted(current['behind'], 'commit')} behind" if current else "missing or damaged"
    console.note(f"manifest/current.parquet is {problem}; `balancer compact` writes it")


def _print_images(check: ImageCheck) -> None:
    if check.warning:
        console.warn(check.warning)
    elif check.named:
        console.note(
            f"checked {check.looked_at} of {check.named} image files: all exist and have the right size;"
            " `balancer fsck` also reads them"
        )


def _print_given_up(cells: dict[str, dict[str, int]]) -> None:
    if cells:
        rows = [(cell, tally["candidates"], tally["accepted"]) for cell, tally in cells.items()]
        console.say()
        title = "given up: too few candidates pass (attempts.give_up_below)"
        console.table(title, ("cell", "candidates", "accepted"), rows)


def _share(part: int, whole: int) -> str | None:
    return percent(part, whole, 1) if whole else None
