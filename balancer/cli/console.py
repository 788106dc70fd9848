"""Output of commands: rich tables and bars on a terminal, plain lines elsewhere, JSON on demand.

Results go to stdout; notes, warnings and progress go to stderr, which keeps pipes clean.
"""

from __future__ import annotations

import datetime
import heapq
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar, cast

from balancer.cli.streams import note as note
from balancer.cli.streams import results
from balancer.scheduling.progress import Snapshot, progress_line
from balancer.text.quantities import counted, duration, percent
from balancer.text.safetext import printable, redacted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


LINE_INTERVAL_S = 10.0
"""Plain progress lines are at least this far apart: a night's log stays readable."""

BARS = 20
"""Classes with a bar of their own: those that are least full."""

Cell = str | int | float | None

_BOUND = re.compile(r"[<>]\d+")
"""A share that rounds to 0 or 100 and is neither."""

T = TypeVar("T")

_ANY_WIDTH = 10**9
_PADDING = re.compile(r" +$", re.MULTILINE)
"""A terminal narrower than the table would show it as empty lines."""


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, one_line: bool = False
) -> None:
    """Print a table to stdout. Columns of numbers are aligned to the right; None is shown as `-`.

    On a narrow terminal text wraps between words, and no word is cut. With `one_line` nothing wraps. A
    wider table runs over the edge, and the terminal wraps its lines.
    """
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    title, columns = printable(title), [printable(column) for column in columns]
    cells = [[_text(cell) for cell in row] for row in rows]
    with results() as stdout:
        if _is_terminal(stdout):
            _rich_table(title, columns, cells, numeric, one_line)
        else:
            print("\n".join(_plain_table(title, columns, cells, numeric)), file=stdout)


LISTED = 50
"""Rows of a table that may have thousands, unless `--all` is given."""


def first_rows(
    title: str,
    columns: Sequence[str],
    items: Sequence[T],
    more: str,
    *,
    every: bool,
    row: Callable[[T], Sequence[Cell]] = lambda item: cast("Sequence[Cell]", item),
) -> None:
    """A table with the `row` of each of the first `LISTED` items, or of `every` one; `more` names the others:
    `classes`."""
    table(title, columns, [row(item) for item in (items if every else items[:LISTED])])
    if len(items) > LISTED and not every:
        say(f"  and {len(items) - LISTED} more {more} (--all lists them)")


MAX_PROBLEMS = 20
"""Problems of one kind that are listed; `--json` lists all."""


def say_problems(kinds: Mapping[str, Sequence[str]]) -> None:
    """Each kind that there is, with the first of its problems."""
    for title, lines in kinds.items():
        if not lines:
            continue
        say()
        say(f"{title} ({len(lines)})")
        for line in lines[:MAX_PROBLEMS]:
            say(f"  {line}")
        if len(lines) > MAX_PROBLEMS:
            say(f"  and {len(lines) - MAX_PROBLEMS} more; --json lists them all")


def say(text: str = "") -> None:
    """A line of a result, on stdout."""
    with results() as stdout:
        print(printable(redacted(text)), file=stdout)


def print_json(obj: object) -> None:
    """Print one JSON object to stdout; NaN and infinity, which JSON lacks, raise ValueError."""
    emit(f"{json_text(obj)}\n".encode())


_BEYOND_ASCII = re.compile(r"[^\n -~]")


def json_text(obj: object) -> str:
    """JSON that is safe on a terminal: characters that are not printable have JSON's own escape."""

    def escaped(mark: re.Match[str]) -> str:
        return mark[0] if mark[0].isprintable() else json.dumps(mark[0])[1:-1]

    return _BEYOND_ASCII.sub(escaped, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False))


def emit(data: bytes) -> None:
    """Write bytes to stdout as they are; on a terminal, control characters are escaped."""
    with results() as stdout:
        if stdout.isatty():
            stdout.write("\n".join(map(printable, data.decode(errors="surrogateescape").split("\n"))))
        else:
            stdout.flush()
            stdout.buffer.write(data)
            stdout.buffer.flush()


def warn(text: str) -> None:
    note(f"warning: {text}")


def warn_each(lines: Sequence[str], more: str, *, every: bool) -> None:
    """The first `LISTED` warnings of a kind, or `every` one; `more` names the others."""
    for line in lines if every else lines[:LISTED]:
        warn(line)
    if len(lines) > LISTED and not every:
        warn(f"the same of {len(lines) - LISTED} more {more} (--all lists them)")


class ProgressDisplay(Protocol):
    def update(self, snapshot: Snapshot) -> None: ...


@contextmanager
def progress_display(title: str) -> Iterator[ProgressDisplay]:
    """A live display where stderr is a terminal, elsewhere one line every 10 s and one at the end."""
    if _is_terminal(sys.stderr):
        with _live_display(title) as display:
            yield display
        return
    lines = LineDisplay()
    try:
        yield lines
    finally:
        lines.close()


@contextmanager
def counting(noun: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of `total` things: a bar where stderr is a terminal, else one line every 10 s.

    Yields a function to call with the number done.
    """
    if not _is_terminal(sys.stderr):
        yield _counted_lines(noun, total)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(noun, total=total)
        yield lambda done: progress.update(task, completed=done)


def watch_images(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Progress of an audit."""
    return counting("images read", total)


def _counted_lines(
    noun: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Callable[[int], None]:
    printed_s = clock()

    def count(done: int) -> None:
        nonlocal printed_s
        if clock() - printed_s >= LINE_INTERVAL_S:
            printed_s = clock()
            note(f"{done} of {total} {noun} ({percent(done, total, nothing='-')})")

    return count


class LineDisplay:
    """Progress as plain lines, at most one every `LINE_INTERVAL_S`, the last snapshot always.

    `clock` counts seconds for the interval; each line begins with the time of day from `now`.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._now = now
        self._pending: Snapshot | None = None
        self._printed_s: float | None = None

    def update(self, snapshot: Snapshot) -> None:
        if self._printed_s is None or self._clock() - self._printed_s >= LINE_INTERVAL_S:
            self._print(snapshot)
        else:
            self._pending = snapshot

    def close(self) -> None:
        if self._pending is not None:
            self._print(self._pending)

    def _print(self, snapshot: Snapshot) -> None:
        self._show(snapshot)
        self._pending, self._printed_s = None, self._clock()

    def _show(self, snapshot: Snapshot) -> None:
        line = f"{self._now():%H:%M:%S} {progress_line(snapshot)}"
        print(line, file=self._stream or sys.stderr, flush=True)


def figure(value: float, unit: str = "") -> str:
    """Three digits, which is all an estimate is worth: `1.16`, `0.000312`, `1240 s`."""
    digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{digits} {unit}".rstrip()


def per_image_rows(figures: Mapping[str, Any]) -> list[list[Cell]]:
    """Candidates, time and cost of an accepted image, with the basis of each figure (`plan.PerImage`)."""
    units = {"candidates": "", "seconds": "s", "cost": ""}
    expected = {name: figures[f"{name}_per_image"] for name in units}
    return [
        [
            f"{'time' if name == 'seconds' else name} per image",
            None if value is None else figure(value, units[name]),
            figures[f"{name}_per_image_basis"],
        ]
        for name, value in expected.items()
    ]


def is_terminal() -> bool:
    """Whether stdout is a terminal, even a dumb one."""
    return sys.stdout.isatty()


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _text(cell: Cell) -> str:
    return "-" if cell is None else printable(str(cell))


def _is_numeric(column: Sequence[Cell]) -> bool:
    return all(
        cell is None or isinstance(cell, int | float) or _BOUND.fullmatch(cell) is not None for cell in column
    )


def _plain_table(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> Iterator[str]:
    from rich.cells import cell_len  # a Chinese character is two columns wide, a combining mark none

    lines = [columns, *cells]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    yield title
    for line in lines:
        padded = []
        for cell, width, right in zip(line, widths, numeric, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if right else cell + space)
        yield "  " + "  ".join(padded).rstrip()


def _rich_table(
    title: str,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    one_line: bool,
) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    # Text throughout: a name with brackets is not markup.
    grid = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, (column, right) in enumerate(zip(columns, numeric, strict=True)):
        shown = [column, *(row[number] for row in cells)]
        pieces = shown if one_line else [word for text in shown for word in text.split()]
        grid.add_column(
            Text(column),
            justify="right" if right else "left",
            min_width=max(map(cell_len, pieces), default=0),
            no_wrap=one_line,
        )
    for row in cells:
        grid.add_row(*map(Text, row))
    console = Console()
    least = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), grid).minimum
    console.width = max(console.width, least)  # in less, columns get a width of 0
    with console.capture() as drawn:
        console.print(grid, crop=False)
    print(_PADDING.sub("", drawn.get()), end="")


@contextmanager
def _live_display(title: str) -> Iterator[ProgressDisplay]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    class Display:
        def update(self, snapshot: Snapshot) -> None:
            live.update(_live_view(title, snapshot))

    with Live(Text(printable(title)), console=Console(stderr=True), refresh_per_second=4) as live:
        yield Display()


def _live_view(title: str, snapshot: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    heading = Text(f"{printable(title)}  {duration(snapshot.elapsed_s)}", style="bold")
    return Group(heading, _class_bars(snapshot), Text(progress_line(snapshot)))


def _class_bars(snapshot: Snapshot) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    shown = list(snapshot.by_class.items())
    if len(shown) > BARS:
        shown = heapq.nsmallest(BARS, shown, key=lambda item: item[1].accepted / max(item[1].wanted, 1))
    for name, progress in shown:
        short = f"{progress.short} short" if progress.short else ""
        bar = ProgressBar(total=max(progress.wanted, 1), completed=progress.accepted, width=40)
        count = Text(f"{progress.accepted}/{progress.wanted}", justify="right")
        grid.add_row(Text(f"  {printable(name)}"), bar, count, Text(short, style="yellow"))
    if len(shown) < len(snapshot.by_class):
        fuller = len(snapshot.by_class) - len(shown)
        more = counted(fuller, "class that is", "classes that are")
        grid.add_row(Text(f"  and {more} fuller"))
    return grid
