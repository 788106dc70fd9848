"""Signals while the command's own modules are imported, which takes tenths of a second: a line and the exit
code of a shell, where Python would print a traceback or end without a word.

Nothing has been begun that needs an orderly end. Before this, while Python itself starts, there is nobody to
catch a signal. A program that imports the package keeps its own handlers.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import time


def is_command(argv: list[str], original: list[str]) -> bool:
    """Whether this process is `balancer` or `python -m balancer`; of the latter, `argv` is not set yet."""
    if argv[:1] == ["-m"]:
        return "balancer" in original
    return bool(argv) and os.path.basename(argv[0]) in ("balancer", "balancer.exe")


def end_command(number: int, frame: object = None) -> None:
    """End the process as interrupted if it is a command's: without the interpreter's own end, in which
    threads of libraries may hang. A program that imports the package goes on."""
    if not _IS_COMMAND:
        return
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


def leave_command(code: object) -> None:
    """End the process with this exit code if it is a command's: without the interpreter's own end, which
    takes tenths of a second in which a signal would make another exit code of work that is done."""
    if not _IS_COMMAND or not isinstance(code, int | None):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def end_within(seconds: float, number: int) -> None:
    """Do so if the process is still there after `seconds`. Called by a handler of signals: a Thread would
    want locks that the interrupted code may hold."""

    def wait() -> None:
        time.sleep(seconds)
        end_command(number)

    if _IS_COMMAND:
        _thread.start_new_thread(wait, ())


_IS_COMMAND = is_command(sys.argv, sys.orig_argv)
if _IS_COMMAND:
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(_number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(_number, end_command)
