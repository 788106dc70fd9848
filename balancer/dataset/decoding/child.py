"""The processes that decode images for the audit and read its tables.

A request is a packet with a number, the limits and the path, an answer a line with the number and what
`image_info` says. The first process decodes nothing: it forks a child for that. If an image kills the child,
the first process answers in its place and forks another one. Packets make that possible: a child that takes
one leaves the others in the queue. Memory and time of a child are limited, it has no network where the system
allows that, it writes no files, and it is replaced after some images.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import socket
import sys
import time

from balancer.dataset.decoding import members
from balancer.dataset.decoding.cutting import read_crop
from balancer.dataset.decoding.image_info import DecodeLimits, answer
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

IMAGES_PER_CHILD = 2000
REFRESHED_S = 0.5
"""CPU time after which the next image gets limits of its own: four system calls for each of many small images
would take as long as decoding them."""

UNNUMBERED = "?"
"""Before the answer for an image that its child did not survive."""

MAX_REQUEST_BYTES = 1 << 16

SIGNALS = {
    signal.SIGXCPU: (
        f"decoding it takes more than {CPU_SECONDS} s and {CPU_SECONDS_PER_MEGAPIXEL} s per megapixel of"
        " dataset.max_image_megapixels"
    ),
    signal.SIGKILL: "the system killed its decoder, most likely for lack of memory",
}


def serve() -> None:
    """Answer requests on standard input, a socket, until it ends."""
    import imagehash  # noqa: F401  # once, not in every child
    import scipy.fftpack  # noqa: F401

    leave_network()
    members.work_in_child(read_crop)
    requests = socket.socket(fileno=os.dup(0))
    while requests.recv(1, socket.MSG_PEEK):
        child = os.fork()
        if child == 0:
            _decode_some(requests)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            _say(UNNUMBERED, json.dumps({"reason": _death(os.WTERMSIG(status))}))
        elif os.WEXITSTATUS(status) != 0:
            _say(UNNUMBERED, json.dumps({"reason": "its decoder ended unexpectedly"}))
    os._exit(0)  # without the second that libraries take to leave


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
            _write(line + b"\n")


def serve_members() -> None:
    """Read images inside files, as `members` asks."""
    leave_network()
    members.cut_with(read_crop)
    members.serve()


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


def _decode_some(requests: socket.socket) -> None:
    """In the child: decode up to IMAGES_PER_CHILD images."""
    refreshed_s = -math.inf
    for _ in range(IMAGES_PER_CHILD):
        if not (request := requests.recv(MAX_REQUEST_BYTES)):
            return
        number, max_bytes, max_pixels, path = request.split(b" ", 3)
        limits = DecodeLimits(int(max_bytes), int(max_pixels))
        if time.process_time() - refreshed_s > REFRESHED_S:
            refreshed_s = time.process_time()
            limit_process(
                math.ceil(REFRESHED_S + CPU_SECONDS + CPU_SECONDS_PER_MEGAPIXEL * limits.max_pixels / 1e6),
                BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes + HEADROOM_BYTES,
            )
        _say(number.decode(), answer(os.fsdecode(path), limits))


def _say(number: str, text: str) -> None:
    _write(f"{number} {text}\n".encode())


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
