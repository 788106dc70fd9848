"""`balancer status`: how far a run is, while it goes on and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.scheduling.progress import duration
from balancer.text.quantities import counted, percent

if TYPE_CHECKING:
    from balancer.manifest.image_check import ImageCheck


@click.command(name="status")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, as_json: bool) -> None:
    """Show how far the run in RUN is, from its files alone.

    Of the images that are wanted, `short` are those for which every attempt failed, and `open` those that a
    run can still make.

    Its state is running, complete, short, interrupted, failed or budget; stopped means that its driver
    ended without saying how. All but complete and short go on with `balancer run`.
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
        _print_rules(status["overrides"])
        _print_given_up(status["given_up"])
        console.say()
        console.table(
            "for each accepted image", ("what", "expected", "basis"), console.per_image_rows(status)
        )
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


def _print_rules(overrides: dict[str, Any]) -> None:
    from balancer.manifest.rules import as_settings

    if settings := list(as_settings(overrides)):
        console.note(f"judged again under {', '.join(settings)} (`balancer rejudge`)")


def _print_current(current: dict[str, int] | None, state: str) -> None:
    if state == "running" or (current and not current["behind"]):
        return
    how = f"{counted(current['behind'], 'commit')} behind" if current else "missing or damaged"
    console.note(f"manifest/current.parquet is {how}; `balancer compact` writes it")


def _print_images(found: ImageCheck) -> None:
    if found.warning:
        console.warn(found.warning)
    elif found.named:
        there = f"{found.looked_at} of {found.named} image files were looked at"
        console.note(f"{there}, and are there with their size; `balancer fsck` also reads them")


def _print_given_up(cells: dict[str, dict[str, int]]) -> None:
    if cells:
        rows = [(cell, tally["candidates"], tally["accepted"]) for cell, tally in cells.items()]
        console.say()
        title = "given up, too few candidates pass (attempts.give_up_below)"
        console.table(title, ("cell", "candidates", "accepted"), rows)


def _share(part: int, whole: int) -> str | None:
    return percent(part, whole, 1) if whole else None
