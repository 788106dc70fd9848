"""`balancer review`: people look at a run's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.review.server import ReviewPages
    from balancer.review.session import ReviewSession


@click.command(name="review")
@click.argument("run", metavar="RUN")
@click.option(
    "--queue",
    default="estimate",
    show_default=True,
    metavar="QUEUE",
    help="`estimate`: the random sample that measures label errors; `correct`: the least certain images "
    "first; or a class.",
)
@click.option("--as", "reviewer", metavar="NAME", help="Who decides.  [default: your user name]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Port on 127.0.0.1.  [default: 8765, or a free one]",
)
@click.option(
    "--import",
    "imported",
    metavar="FILE",
    help="Take decisions from a JSON export of Label Studio, or the folder of a FiftyOne dataset; no page.",
)
def command(run: str, queue: str, reviewer: str | None, port: int | None, imported: str | None) -> None:
    """Let a person accept or reject RUN's images in a browser, with one key each.

    The page is for this machine only, under a secret address that is printed. Decisions are durable when the
    page says that they are saved, also while the run goes on; Ctrl-C ends the server. An image that a person
    rejects leaves the dataset, and the next `balancer run` makes another one.
    """
    from balancer.process.signals import caught
    from balancer.review.server import ReviewPages
    from balancer.review.session import ReviewSession
    from balancer.storage import open_storage
    from balancer.web.serving import listening, serve

    session = ReviewSession.open(open_storage(run, create=False), _reviewer(reviewer), queue)
    if imported is not None:
        _import(session, imported)
        return
    progress = session.progress()
    pages = ReviewPages.of(session)
    with listening(port) as address, caught() as stop:
        console.say(progress.sentence)
        console.say(f"{progress.decided} of {progress.total} decided by {session.reviewer}; Ctrl-C ends")
        console.say(address.url)
        serve(address, pages.app(), stop, pages.tick)
        _finish(pages)


def _import(session: ReviewSession, path: str) -> None:
    from balancer.review.importing import import_decisions

    found = import_decisions(session.storage, path, session.reviewer)
    session.commit()
    console.say(
        f"{counted(found.decisions, 'decision')} imported; {found.unchanged} were known, {found.undecided} "
        f"undecided, {found.unknown} about images that the run did not make"
    )
    _say_waiting(session)


def _finish(pages: ReviewPages) -> None:
    pages.commit_saved()
    progress = pages.session.progress()
    console.say(f"{counted(pages.saved, 'decision')} saved; {progress.decided} of {progress.total} decided")
    _say_waiting(pages.session)


def _say_waiting(session: ReviewSession) -> None:
    if waiting := session.progress().waiting:
        console.note(f"the driver that is at work, or the next, takes in {counted(waiting, 'decision')}")


def _reviewer(given: str | None) -> str:
    import getpass

    from balancer.errors import UsageError
    from balancer.review.decisions import MAX_REVIEWER

    try:
        name = getpass.getuser() if given is None else given
    except (OSError, KeyError, ImportError):
        name = "reviewer"
    if not 0 < len(name) <= MAX_REVIEWER or not name.isprintable():
        raise UsageError(f"--as: a name has 1 to {MAX_REVIEWER} printable characters")
    return name
