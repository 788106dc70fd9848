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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from balancer.audit.picture import Limits, Picture, parse_answer

MOST_LANES = 8
"""Enough for a fast disk; each may hold a picture of the largest size several times over."""

IMAGES_A_LANE = 16
"""For fewer, another process does not pay."""

LONGEST_ANSWER = 10_000
LONGEST_WAIT_S = 600.0
"""A decoder is ended long before, by the time it may compute; this is for one that does nothing at all."""

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
        # The same packages as here, wherever they come from, and no secrets.
        code = f"import sys; sys.path[:] = {sys.path!r}; from balancer.audit.child import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            process_group=0,
        )
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
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
