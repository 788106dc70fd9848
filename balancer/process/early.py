"""Handle signals while the command's modules are imported.

Imports take tenths of a second. A signal during them prints one line and exits as a shell would, instead of
a traceback. Nothing needs an orderly end yet. A program that imports the package keeps its own handlers.
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
    """Whether this process is `balancer` or `python -m balancer`. For the latter, `argv` is not set yet."""
    if argv[:1] == ["-m"]:
        return "balancer" in original
    return bool(argv) and os.path.basename(argv[0]) in ("balancer", "balancer.exe")


def end_command(number: int, frame: object = None) -> None:
    """Exit as interrupted if this process is the command. Skips the interpreter's shutdown, in which library
    threads may hang. A program that imports the package goes on."""
    if not _IS_COMMAND:
        return
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


def leave_command(code: object) -> None:
    """Exit with this code if this process is the command. Skips the interpreter's shutdown: it takes tenths
    of a second, and a signal during it would change the exit code of finished work."""
    if not _IS_COMMAND or not isinstance(code, int | None):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def end_within(seconds: float, number: int) -> None:
    """Call `end_command` after `seconds`. Runs in a signal handler, where starting a `threading.Thread` could
    wait for a lock that the interrupted code holds."""

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
