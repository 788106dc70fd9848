"""Decode images in separate processes: an image that crashes or exhausts its decoder costs only itself."""

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
from balancer.dataset.decoding.image_info import DecodeLimits, ImageInfo, parse_answer
from balancer.dataset.table_reader import MAX_ANSWER_BYTES, OWN_NAMES, ColumnNames

MAX_DECODERS = 8
"""Enough for a fast disk. Each may hold several copies of an image of the largest size."""

IMAGES_PER_DECODER = 16
"""For fewer images, another process does not pay off."""

MAX_ANSWER_LINE_BYTES = 10_000
MAX_WAIT_S = 600.0
"""The CPU limit ends a decoder long before; this is for one that sleeps."""

MAX_TABLE_BYTES = 2 * MAX_ANSWER_BYTES
MAX_ROW_BYTES = 16_000_000

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# glibc: keep freed memory for the next image; returning it takes a fifth of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
_KEPT = frozenset(("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "SYSTEMROOT"))
_NO_ANSWER = "its decoder gave an invalid answer"


def read_all_images(root: Path, names: Sequence[str], limits: DecodeLimits) -> list[ImageInfo | str]:
    """The image info of each file below `root`, or the reason why it cannot be used."""
    if not names:
        return []
    count = min(MAX_DECODERS, os.cpu_count() or 1, -(-len(names) // IMAGES_PER_DECODER))
    decoders = [DecoderProcess() for _ in range(count)]
    free: SimpleQueue[DecoderProcess] = SimpleQueue()
    for decoder in decoders:
        free.put(decoder)

    def look(name: str) -> ImageInfo | str:
        decoder = free.get()
        try:
            return decoder.read(root / name, limits)
        finally:
            free.put(decoder)

    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(look, names))
    finally:
        for decoder in decoders:
            decoder.close()


@dataclass(slots=True)
class DecoderProcess:
    """A process that decodes one image after another; it starts with the first one."""

    _process: subprocess.Popen[bytes] | None = field(default=None)

    def read(self, path: Path, limits: DecodeLimits) -> ImageInfo | str:
        request = [os.fsencode(path.absolute()).hex(), limits.max_bytes, limits.max_pixels]
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return parse_answer(_answer(process))
        except (ValueError, OSError):
            self.close()  # its state is unknown
            return _NO_ANSWER

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = spawn("child", "serve()")
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process)


def read_table_lines(
    paths: Sequence[Path], columns: ColumnNames = OWN_NAMES, packed: bool = False
) -> Iterator[bytes]:
    """The lines about the tables at `paths`, as in `table_reader`, from one process that reads them in turn.
    Raises ValueError with the reason if the process dies."""
    process = spawn("child", "serve_tables()")
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


def spawn(module: str, call: str) -> subprocess.Popen[bytes]:
    """Call a function of a module here in a process with the same packages as this one and no secrets."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from balancer.dataset.decoding import {module};"
        f" {module}.{call}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        process_group=0,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the process and its child
    with contextlib.suppress(OSError), process:
        pass  # closes its pipes and waits for it


def _answer(process: subprocess.Popen[bytes]) -> bytes:
    """Read one line. Raises ValueError if none comes."""
    assert process.stdout is not None
    give_up, line = time.monotonic() + MAX_WAIT_S, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, give_up - time.monotonic()))
        part = os.read(process.stdout.fileno(), MAX_ANSWER_LINE_BYTES) if ready else b""
        line += part
        if not part or len(line) > MAX_ANSWER_LINE_BYTES:
            raise ValueError("no answer")
    return line


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("PYTHON")}
    return kept | _ONE_THREAD | _KEEP_MEMORY
