"""The standard streams of a command: a broken stream never stops its work."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from balancer.errors import UnavailableError
from balancer.text.safetext import printable, redacted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = 0, 1, 2


def prepare() -> None:
    """Called before anything is opened.

    A closed stream is replaced, or the next file to be opened would get its number, and with it whatever a
    library prints. Writing to a closed stdout stays an error; text that stderr cannot take is dropped.
    """
    for number in (STDIN, STDOUT, STDERR):
        _fill_if_closed(number)
    if sys.stdin is None:
        sys.stdin = open(STDIN, closefd=False)  # noqa: SIM115 - stays open until the process ends
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not fit its encoding
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        sys.stderr = io.TextIOWrapper(_Stderr(), encoding, "backslashreplace", write_through=True)
    logging.lastResort = _AsNotes(logging.WARNING)


def note(text: str) -> None:
    """A line, or several, for the person watching, on stderr."""
    print("\n".join(printable(redacted(line)) for line in text.split("\n")), file=sys.stderr, flush=True)


@contextlib.contextmanager
def results() -> Iterator[TextIO]:
    """Standard output, for results; UnavailableError if it cannot be written. BrokenPipeError passes: the
    reader has seen enough."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnavailableError(f"standard output cannot be written: {reason}") from error


def abandon_stdout() -> None:
    """Drop what is buffered and cannot be written, or Python would try again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout.fileno() == STDOUT:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, STDOUT)
                os.close(null)


def _fill_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_WRONLY if number == STDERR else os.O_RDONLY)
        os.dup2(opened, number)
        os.set_inheritable(number, True)  # child processes need it filled as well
        if opened != number:
            os.close(opened)


class _Stderr(io.RawIOBase):
    """A stderr that drops what it cannot write, unless its reader has gone away."""

    name = "<stderr>"

    def fileno(self) -> int:
        return STDERR

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(STDERR)

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[os.write(STDERR, rest) :]
        except BrokenPipeError:
            raise
        except OSError:
            pass
        return size


class _AsNotes(logging.Handler):
    """Prints warnings that no other handler takes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
