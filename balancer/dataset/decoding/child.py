"""The processes that decode images for the audit, a lane of them, one after the other, and read its table.

A request is a line with the path and the limits, an answer a line as in `picture`. The first process decodes
nothing: it has a child do so, and when that dies of an image it says so in the child's place and makes
another. A child may take so much memory and time, has no network where the system allows to take it away,
writes no files, and is replaced after some images.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
from pathlib import Path

from balancer.dataset.decoding.picture import Limits, answer
from balancer.dataset.table_reader import answer_lines

BYTES_PER_PIXEL = 32
"""Address space for each pixel that is allowed: decoding, turning and blending hold several copies."""

ROOM_BYTES = 256_000_000
TABLE_BYTES = 2_000_000_000
"""Memory to read a table in."""

TABLE_SECONDS = 60
"""Of the CPU's time, to read tables in."""

CPU_SECONDS = 10
CPU_SECONDS_PER_MEGAPIXEL = 0.2
"""For one image, and for each megapixel that one may have: several times what the slowest honest one takes,
0.04 s a megapixel for a progressive JPEG of noise."""

IMAGES_A_CHILD = 500

SIGNALS = {
    signal.SIGXCPU: (
        f"decoding it takes more than {CPU_SECONDS} s and {CPU_SECONDS_PER_MEGAPIXEL} s for each megapixel of"
        " dataset.max_image_megapixels"
    ),
    signal.SIGKILL: "the system ended its decoder, most likely for lack of memory",
}


def serve() -> None:
    """Answer requests on standard input until it ends."""
    import imagehash  # noqa: F401  # once, and not in every child
    import scipy.fftpack  # noqa: F401

    leave_network()
    while _has_more():
        child = os.fork()
        if child == 0:
            _decode_some()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            _say(json.dumps({"reason": _death(os.WTERMSIG(status))}))
        elif os.WEXITSTATUS(status) != 0:
            _say(json.dumps({"reason": "its decoder ended unexpectedly"}))


def serve_tables() -> None:
    """Say what the tables hold whose paths, in hex, come on standard input."""
    names = [os.fsdecode(bytes.fromhex(line)) for line in sys.stdin]
    if any(name.lower().endswith(".parquet") for name in names):
        import pyarrow.parquet  # noqa: F401  # before memory is counted

    leave_network()
    _limit_files()
    _limit(TABLE_BYTES, TABLE_SECONDS)
    for name in names:
        for line in answer_lines(name):
            _say(line.decode())


def leave_network() -> bool:
    """Go where there is no network; False if the system does not let us."""
    new_user, new_network = 0x10000000, 0x40000000
    # Root would lose the right to read what belongs to others, and does not need to be another user.
    flags = new_network if os.geteuid() == 0 else new_network | new_user
    try:
        return bool(ctypes.CDLL(None).unshare(flags) == 0)
    except AttributeError:
        return False


def _death(number: int) -> str:
    known = SIGNALS.get(signal.Signals(number)) if number in signal.valid_signals() else None
    return known or f"its decoder crashed (signal {number}): it is damaged, or made to do harm"


def _decode_some() -> None:
    """In the child: no more than it may, so that another one has the rest."""
    _limit_files()
    for _ in range(IMAGES_A_CHILD):
        line = _next_line()
        if not line:
            return
        path, max_bytes, max_pixels = json.loads(line)
        limits = Limits(max_bytes, max_pixels)
        _limit(
            BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes + ROOM_BYTES,
            math.ceil(CPU_SECONDS + CPU_SECONDS_PER_MEGAPIXEL * limits.max_pixels / 1e6),
        )
        _say(answer(os.fsdecode(bytes.fromhex(path)), limits))


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """From now on, so much more memory and so much more time."""
    with contextlib.suppress(ValueError, OSError):  # a system without such limits, or with tighter ones
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, resource.RLIM_INFINITY))
    with contextlib.suppress(ValueError, OSError):
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(spent) + cpu_seconds, resource.RLIM_INFINITY))


def _has_more() -> bool:
    """Whether a request comes; without reading any of it, which is the child's."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    [(_, event)] = poll.poll()
    return bool(event & select.POLLIN)


def _next_line() -> bytes:
    """A request; nothing at the end. Only one is ever under way, so that nothing is read ahead."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return b""
        line += part
    return line


def _say(text: str) -> None:
    data = text.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]
