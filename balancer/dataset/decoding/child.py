"""The processes that decode images for the audit and read its tables.

A request is a line with the path and the limits, an answer a line as in `image_info`. The first process
decodes nothing: it forks a child for that. If an image kills the child, the first process answers in its
place and forks another one. Memory and time of a child are limited, it has no network where the system
allows that, it writes no files, and it is replaced after some images.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import select
import signal
import sys

from balancer.dataset.decoding.image_info import DecodeLimits, answer
from balancer.dataset.decoding.members import work_in_child
from balancer.dataset.table_reader import read_table_answer
from balancer.process.child_limits import limit_process

BYTES_PER_PIXEL = 32
"""Address space per allowed pixel: decoding, turning and blending hold several copies."""

HEADROOM_BYTES = 256_000_000
TABLE_BYTES = 2_000_000_000
"""Memory for reading tables."""

TABLE_SECONDS = 60
"""CPU time for reading tables."""

CPU_SECONDS = 10
CPU_SECONDS_PER_MEGAPIXEL = 0.2
"""For one image, and per allowed megapixel: several times the slowest honest image, a progressive JPEG of
noise at 0.04 s per megapixel."""

IMAGES_PER_CHILD = 500

SIGNALS = {
    signal.SIGXCPU: (
        f"decoding it takes more than {CPU_SECONDS} s and {CPU_SECONDS_PER_MEGAPIXEL} s per megapixel of"
        " dataset.max_image_megapixels"
    ),
    signal.SIGKILL: "the system killed its decoder, most likely for lack of memory",
}


def serve() -> None:
    """Answer requests on standard input until it ends."""
    import imagehash  # noqa: F401  # once, not in every child
    import scipy.fftpack  # noqa: F401

    leave_network()
    work_in_child()
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
    """Read the tables that come on standard input, each as its path in hex and its columns, and write their
    lines."""
    requests = [json.loads(line) for line in sys.stdin]
    names = [os.fsdecode(bytes.fromhex(path)) for path, _, _ in requests]
    if any(name.lower().endswith((".parquet", ".arrow")) for name in names):
        import pyarrow.parquet  # noqa: F401  # before memory is limited

    leave_network()
    limit_process(TABLE_SECONDS, TABLE_BYTES)
    for name, (_, columns, packed) in zip(names, requests, strict=True):
        for line in read_table_answer(name, columns, packed):
            _say(line.decode())


def leave_network() -> bool:
    """Enter a namespace without network; False if the system does not allow it."""
    new_user, new_network = 0x10000000, 0x40000000
    # In a new user namespace, root would lose the right to read files of others; root does not need one.
    flags = new_network if os.geteuid() == 0 else new_network | new_user
    try:
        return bool(ctypes.CDLL(None).unshare(flags) == 0)
    except AttributeError:
        return False


def _death(number: int) -> str:
    known = SIGNALS.get(signal.Signals(number)) if number in signal.valid_signals() else None
    return known or f"its decoder crashed (signal {number}): the file is damaged or malicious"


def _decode_some() -> None:
    """In the child: decode up to IMAGES_PER_CHILD images."""
    for _ in range(IMAGES_PER_CHILD):
        line = _next_line()
        if not line:
            return
        path, max_bytes, max_pixels = json.loads(line)
        limits = DecodeLimits(max_bytes, max_pixels)
        limit_process(
            math.ceil(CPU_SECONDS + CPU_SECONDS_PER_MEGAPIXEL * limits.max_pixels / 1e6),
            BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes + HEADROOM_BYTES,
        )
        _say(answer(os.fsdecode(bytes.fromhex(path)), limits))


def _has_more() -> bool:
    """Wait for a request without reading it, since the child reads it; False at the end."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    [(_, event)] = poll.poll()
    return bool(event & select.POLLIN)


def _next_line() -> bytes:
    """The next request; empty at the end. Requests come one at a time, so nothing is read ahead."""
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
