"""Decode images in separate processes: an image that crashes or exhausts its decoder costs only itself."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import cast

from balancer.dataset.decoding.child import TABLE_SECONDS, UNNUMBERED
from balancer.dataset.decoding.image_info import DecodeLimits, ImageInfo, parse_answer
from balancer.dataset.decoding.spawning import end, kill, spawn
from balancer.dataset.decoding.watching import Count, ignore_count
from balancer.dataset.table_reader import MAX_ANSWER_BYTES, OWN_NAMES, ColumnNames

MAX_DECODERS = 8
"""Enough for a fast disk. Each may hold several copies of an image of the largest size."""

IMAGES_PER_DECODER = 16
"""For fewer images, another process does not pay off."""

UNDER_WAY = 16
"""Requests that a decoder has at a time."""

COUNT_EVERY_S = 0.5
LEAVE_S = 5.0
MAX_ANSWER_LINE_BYTES = 10_000
MAX_WAIT_S = 600.0
"""The CPU limit ends a decoder long before; this is for one that sleeps."""

MAX_TABLE_BYTES = 2 * MAX_ANSWER_BYTES
MAX_ROW_BYTES = 16_000_000

_NO_ANSWER = "its decoder gave an invalid answer"


def read_all_images(
    root: Path,
    names: Sequence[str],
    limits: DecodeLimits,
    count: Count = ignore_count,
) -> list[ImageInfo | str]:
    """The image info of each file below `root`, or the reason why it cannot be used. `count` gets the number
    of files that were read, now and then."""
    answers: list[ImageInfo | str | None] = [None] * len(names)
    processes = min(MAX_DECODERS, os.cpu_count() or 1, -(-len(names) // IMAGES_PER_DECODER))
    top, places = os.path.abspath(root), iter(range(len(names)))
    decoders = [DecoderProcess(limits) for _ in range(processes)]

    def decode(decoder: DecoderProcess) -> None:
        requests = ((place, os.fsencode(os.path.join(top, names[place]))) for place in places)
        for place, answer in decoder.read_each(requests):
            answers[place] = answer
            decoder.answered += 1

    try:
        with ThreadPoolExecutor(max(processes, 1)) as threads:
            try:
                running = {threads.submit(decode, decoder) for decoder in decoders}
                while running:
                    done, running = wait(running, COUNT_EVERY_S, FIRST_EXCEPTION)
                    for each in done:
                        each.result()
                    count(sum(decoder.answered for decoder in decoders))
            except BaseException:
                for decoder in decoders:
                    decoder.stop()
                raise
    finally:
        for decoder in decoders:
            decoder.close()
    return cast("list[ImageInfo | str]", answers)


class DecoderProcess:
    """A process that decodes one image after another. It starts with the first one, and again after an image
    that leaves it in an unknown state."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.answered = 0
        self._limits = f"{limits.max_bytes} {limits.max_pixels}".encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._buffer = b""
        self._stopped = False

    def read_each(self, paths: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, ImageInfo | str]]:
        """Numbers with what is known of their images, in order. Some requests are always under way, so the
        process does not wait for this one."""
        under_way: deque[tuple[int, bytes]] = deque()
        while not self._stopped:
            requests: Iterable[tuple[int, bytes]] = [*islice(paths, UNDER_WAY - len(under_way))]
            under_way.extend(requests)
            if not under_way:
                return
            if self._process is None:
                self._start()
                requests = under_way
            try:
                for request in requests:
                    self._send(request)
                answer = self._answer(under_way[0][0])
            except (ValueError, OSError):
                self._kill()  # its state is unknown
                self.close()
                answer = _NO_ANSWER
            yield under_way.popleft()[0], answer

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = spawn("serve()", theirs)

    def _send(self, request: tuple[int, bytes]) -> None:
        assert self._requests is not None
        self._requests.send(b"%d %s %s" % (request[0], self._limits, request[1]))

    def _answer(self, number: int) -> ImageInfo | str:
        mark, _, answer = self._next_line().partition(b" ")
        if mark not in (b"%d" % number, UNNUMBERED.encode()):
            raise ValueError("an answer for another image")
        return parse_answer(answer)

    def _next_line(self) -> bytes:
        """Raises ValueError if none comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        output, give_up = self._process.stdout.fileno(), time.monotonic() + MAX_WAIT_S
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([output], [], [], max(0.0, give_up - time.monotonic()))
            part = os.read(output, 1 << 16) if ready else b""
            self._buffer += part
            if not part or len(self._buffer.partition(b"\n")[0]) > MAX_ANSWER_LINE_BYTES:
                raise ValueError("no answer")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def stop(self) -> None:
        """Let another thread read no more answers."""
        self._stopped = True
        self._kill()

    def _kill(self) -> None:
        if (process := self._process) is not None:
            kill(process)

    def close(self) -> None:
        requests, self._requests = self._requests, None
        process, self._process, self._buffer = self._process, None, b""
        if requests is not None:
            requests.close()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_S)  # it has nothing left to do
            end(process)


def read_table_lines(
    paths: Sequence[Path], columns: ColumnNames = OWN_NAMES, packed: bool = False
) -> Iterator[bytes]:
    """The lines about the tables at `paths`, as in `table_reader`, from one process that reads them in turn.
    Raises ValueError with the reason if the process dies."""
    process = spawn("serve_tables()")
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            for path in paths:
                request = [os.fsencode(path.absolute()).hex(), columns, packed]
                process.stdin.write(json.dumps(request).encode() + b"\n")
        yield from _lines(process)
        if status := process.wait(MAX_WAIT_S):
            raise ValueError(_reader_death(-status))
    finally:
        end(process)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    give_up, size, rest = time.monotonic() + MAX_WAIT_S, 0, b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, give_up - time.monotonic()))
        part = os.read(process.stdout.fileno(), 1 << 20) if ready else None
        if part is None:
            raise ValueError(f"its reader took more than {MAX_WAIT_S:g} s")
        if not part:
            return
        size += len(part)
        *lines, rest = (rest + part).split(b"\n")
        if size > MAX_TABLE_BYTES or len(rest) > MAX_ROW_BYTES:
            raise ValueError("its reader gave an invalid answer")
        yield from lines


def _reader_death(number: int) -> str:
    if number == signal.SIGXCPU:
        return f"reading it takes more than {TABLE_SECONDS} s"
    if number == signal.SIGKILL:
        return "the system killed its reader, most likely for lack of memory"
    return "its reader crashed: the file is damaged or malicious"
