"""`balancer status`: progress of a run, during it and after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from balancer.cli import console
from balancer.errors import MAX_LINE
from balancer.text.quantities import counted, duration, percent
from balancer.text.safetext import shortened

if TYPE_CHECKING:
    from balancer.manifest.image_check import ImageCheck
    from balancer.storage import Storage


FOLLOWED_EVERY_S = 2.0
LOOKS = 9
"""A look at a long run takes time: at most a tenth of it all."""

NOTHING_CHECKED = "simulated actors: no image was checked, and scores are random numbers"
REVISIONS_SHOWN = 3
"""The last ones; `--json` has all."""

REASONS_OF_A_CELL = 10


@click.command(name="status")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--all", "every", is_flag=True, help="List every cell, however many.")
@click.option("--follow", is_flag=True, help="Go on showing progress until no driver is at work.")
def command(run: str, as_json: bool, every: bool, follow: bool) -> None:
    """Show the progress of RUN, from its files alone.

    A wanted image is accepted, `short` (every attempt failed) or `open` (a run can still make it).

    The state is running, complete, short, interrupted, failed or budget; stopped means that the driver ended
    without recording why. `balancer run` resumes any run that is not complete or short.
    """
    from balancer.manifest.image_check import ImageCheck
    from balancer.manifest.rows import utc_now
    from balancer.manifest.status import read_status
    from balancer.storage import open_storage

    storage = open_storage(run, create=False)
    if follow:
        _follow(storage)
    status = read_status(storage, utc_now())
    if as_json:
        from balancer.evaluation.diversity_of_run import diversity_of_run

        console.print_json(status | {"diversity": diversity_of_run(storage)})
    else:
        console.table(
            f"run {status['run_id']}: {status['state']}", ("", "images", "share"), _rows(status, every)
        )
        if status["simulated"]:
            console.note(NOTHING_CHECKED)
        _print_revisions(status["revisions"])
        _print_rules(status["overrides"])
        _print_short(status["short_cells"], every)
        _print_given_up(status["given_up"], every)
        _print_review(status["review"])
        for line in status["remedies"]["summary"]:
            console.say(f"what would help: {shortened(line, MAX_LINE)}")
        console.say()
        console.table("for each accepted image", ("", "expected", "basis"), console.per_image_rows(status))
        _print_current(status["current"], status["state"])
        _print_images(ImageCheck(**status["images"]))


def _follow(storage: Storage) -> None:
    """As the driver shows it, but from the run's files, which tell nothing of what its generators do."""
    from balancer.manifest.rows import utc_now
    from balancer.manifest.runfile import read_run
    from balancer.watch.following import LogFollower
    from balancer.watch.look import columns_of, look_at

    info = read_run(storage)
    follower = LogFollower(storage, columns_of(info))
    with console.progress_display(f"run {info.run_id}") as display:
        while True:
            begun_s = time.monotonic()
            look = look_at(storage, *follower.read(), utc_now())
            display.update(look.snapshot)
            if look.state != "running":
                return
            time.sleep(max(FOLLOWED_EVERY_S, LOOKS * (time.monotonic() - begun_s)))


def _rows(status: dict[str, Any], every: bool) -> list[tuple[str, str | int | None, str | None]]:
    wanted, candidates = status["wanted"], status["candidates"]
    rejected = [
        (f"rejected: {reason}", count, _share(count, candidates))
        for reason, count in _first_reasons(status["rejected_by_reason"], None if every else console.LISTED)
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
            for name, count in ({} if status["simulated"] else status["unjudged"]).items()
        ),
        *(
            (f"accepted, {name} not proven", count, _share(count, status["accepted"]))
            for name, count in ({} if status["simulated"] else status["unproven"]).items()
        ),
    ]
    if status["eta_s"] is not None:
        rows.append(("time left", duration(status["eta_s"]), None))
    return rows


def _first_reasons(reasons: dict[str, int], most: int | None) -> list[tuple[str, int]]:
    """Cut where they are long; the others, which are rarer, as one."""
    items = list(reasons.items())
    first = [(shortened(reason), count) for reason, count in items[:most]]
    others = items[len(first) :]
    more = [(f"{len(others):,} other reasons", sum(count for _, count in others))] if others else []
    return first + more


def _print_revisions(revisions: list[dict[str, Any]]) -> None:
    for revision in revisions[-REVISIONS_SHOWN:]:
        changes = shortened("; ".join(revision["changes"]), MAX_LINE)
        console.note(f"plan revision {revision['number']} ({revision['committed_at']}): {changes}")


def _print_rules(overrides: dict[str, Any]) -> None:
    from balancer.manifest.rules import as_settings

    if settings := list(as_settings(overrides)):
        console.note(f"judged again under {', '.join(settings)} (`balancer rejudge`)")


def _print_review(review: dict[str, Any]) -> None:
    from balancer.review.summary import Summary
    from balancer.review.words import describe_review

    for line in describe_review(Summary.from_dict(review)):
        console.note(f"review: {line}")


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


def _print_short(cells: dict[str, dict[str, Any]], every: bool) -> None:
    if cells:
        most_first = sorted(cells.items(), key=lambda item: -item[1]["short"])
        console.say()
        console.first_rows(
            "short: no attempt passed",
            ("cell", "images", "candidates", "accepted", "rejected for"),
            most_first,
            "cells, which lack no more",
            every=every,
            row=lambda item: (
                shortened(item[0]),
                *(item[1][name] for name in ("short", "candidates", "accepted")),
                ", ".join(
                    f"{reason} {count}"
                    for reason, count in _first_reasons(item[1]["reasons"], REASONS_OF_A_CELL)
                ),
            ),
        )


def _print_given_up(cells: dict[str, dict[str, int]], every: bool) -> None:
    if cells:
        rows = [(shortened(cell), tally["candidates"], tally["accepted"]) for cell, tally in cells.items()]
        console.say()
        title = "given up: too few candidates pass (attempts.give_up_below)"
        console.first_rows(title, ("cell", "candidates", "accepted"), rows, "cells", every=every)


def _share(part: int, whole: int) -> str | None:
    return percent(part, whole, 1) if whole else None
