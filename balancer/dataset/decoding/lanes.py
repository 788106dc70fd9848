"""Images are decoded in processes of their own: one that crashes its decoder, or makes it take all memory,
costs no more than itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from balancer.dataset.decoding.child import TABLE_SECONDS
from balancer.dataset.decoding.picture import Limits, Picture, parse_answer
from balancer.dataset.table_reader import MAX_ANSWER_BYTES

MOST_LANES = 8
"""Enough for a fast disk; each may hold a picture of the largest size several times over."""

IMAGES_A_LANE = 16
"""For fewer, another process does not pay."""

LONGEST_ANSWER = 10_000
LONGEST_WAIT_S = 600.0
"""A decoder is ended long before, by the time it may compute; this is for one that does nothing at all."""

LONGEST_TABLE = 2 * MAX_ANSWER_BYTES
LONGEST_ROW = 16_000_000

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Of glibc: not to give back after each image what the next one takes again, which costs a fifth of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
_KEPT = frozenset(("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "SYSTEMROOT"))
_NO_ANSWER = "its decoder gave no answer that makes sense"


def look_at_all(root: Path, names: Sequence[str], limits: Limits) -> list[Picture | str]:
    """What is in each file below `root`, or why it cannot be used."""
    if not names:
        return []
    count = min(MOST_LANES, os.cpu_count() or 1, -(-len(names) // IMAGES_A_LANE))
    lanes = [Lane() for _ in range(count)]
    free: SimpleQueue[Lane] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def look(name: str) -> Picture | str:
        lane = free.get()
        try:
            return lane.look_at(root / name, limits)
        finally:
            free.put(lane)

    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(look, names))
    finally:
        for lane in lanes:
            lane.close()


@dataclass(slots=True)
class Lane:
    """A process that looks at one image after another; started when the first one comes."""

    _process: subprocess.Popen[bytes] | None = field(default=None)

    def look_at(self, path: Path, limits: Limits) -> Picture | str:
        request = [os.fsencode(path.absolute()).hex(), limits.max_bytes, limits.max_pixels]
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return parse_answer(_answer(process))
        except (ValueError, OSError):
            self.close()  # whatever it is now, it is no lane
            return _NO_ANSWER

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = _spawn("serve()")
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


def table_lines(paths: Sequence[Path]) -> Iterator[bytes]:
    """What a process that reads the tables at `paths`, one after the other, says of them, as in
    `table_reader`; ValueError with the reason if it does not live to say it."""
    process = _spawn("serve_tables()")
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.writelines(os.fsencode(path.absolute()).hex().encode() + b"\n" for path in paths)
        yield from _lines(process)
        if status := process.wait(LONGEST_WAIT_S):
            raise ValueError(_reader_death(-status))
    finally:
        _end(process)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    give_up, size, rest = time.monotonic() + LONGEST_WAIT_S, 0, b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, give_up - time.monotonic()))
        part = os.read(process.stdout.fileno(), 1 << 20) if ready else None
        if part is None:
            raise ValueError(f"its reader took more than {LONGEST_WAIT_S:g} s")
        if not part:
            return
        size += len(part)
        *lines, rest = (rest + part).split(b"\n")
        if size > LONGEST_TABLE or len(rest) > LONGEST_ROW:
            raise ValueError("its reader gave no answer that makes sense")
        yield from lines


def _reader_death(number: int) -> str:
    if number == signal.SIGXCPU:
        return f"reading it takes more than {TABLE_SECONDS} s"
    if number == signal.SIGKILL:
        return "the system ended its reader, most likely for lack of memory"
    return "its reader crashed: it is damaged, or made to do harm"


def _spawn(call: str) -> subprocess.Popen[bytes]:
    """A call to a function of `child` in a process with the same packages as here, wherever they come from,
    and no secrets."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from balancer.dataset.decoding import child; child.{call}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        process_group=0,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it and its child
    with contextlib.suppress(OSError), process:
        pass  # closes its pipes, and waits for it


def _answer(process: subprocess.Popen[bytes]) -> bytes:
    """A line. ValueError if none comes."""
    assert process.stdout is not None
    give_up, line = time.monotonic() + LONGEST_WAIT_S, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, give_up - time.monotonic()))
        part = os.read(process.stdout.fileno(), LONGEST_ANSWER) if ready else b""
        line += part
        if not part or len(line) > LONGEST_ANSWER:
            raise ValueError("no answer")
    return line


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("PYTHON")}
    return kept | _ONE_THREAD | _KEEP_MEMORY
