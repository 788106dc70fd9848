"""Signals while the command's own modules are imported, which takes tenths of a second: a line and the exit
code of a shell, where Python would print a traceback or end without a word.

Nothing has been begun that needs an orderly end. Before this, while Python itself starts, there is nobody to
catch a signal. A program that imports the package keeps its own handlers.
"""

from __future__ import annotations

import os
import signal
import sys


def is_command(argv: list[str], original: list[str]) -> bool:
    """Whether this process is `balancer` or `python -m balancer`; of the latter, `argv` is not set yet."""
    if argv[:1] == ["-m"]:
        return "balancer" in original
    return bool(argv) and os.path.basename(argv[0]) in ("balancer", "balancer.exe")


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


if is_command(sys.argv, sys.orig_argv):
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(_number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(_number, _end)
