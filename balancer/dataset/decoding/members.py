"""Read images that lie inside other files, in a process with limits.

`train.parquet/12` is the path of an image in a file as if that were a folder; see `readers.packed_files`.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from balancer.dataset.readers.packed_files import SUFFIXES
from balancer.dataset.readers.packed_files import read_member as read_here
from balancer.images import UnreadableImage
from balancer.process.child_limits import limit_process

CPU_SECONDS = 120
MEMORY_BYTES = 4_000_000_000
"""A group of rows of a Parquet file is decoded at once."""

MAX_ANSWER_LINE_BYTES = 10_000

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_in_child = False


def read_inside(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The bytes of an image inside a file. Raises UnreadableImage."""
    file, member = _split(Path(path))
    if not member:
        raise UnreadableImage("no such file", path)
    if _in_child:
        return _answer(file, member, max_bytes)
    with _lock:
        return _ask(file, member, max_bytes)


def serve_members() -> None:
    """Answer requests on standard input: a line of JSON with the size or a reason, then the bytes."""
    from balancer.dataset.decoding.child import leave_network

    leave_network()
    for line in sys.stdin.buffer:
        file, member, max_bytes = json.loads(line)
        limit_process(CPU_SECONDS, MEMORY_BYTES)
        try:
            data = _answer(Path(os.fsdecode(bytes.fromhex(file))), member, max_bytes)
            header: dict[str, object] = {"size": len(data)}
        except UnreadableImage as error:
            data, header = b"", {"reason": error.reason}
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + data)
        sys.stdout.buffer.flush()


def work_in_child() -> None:
    """Read in this process from now on, because it has limits itself."""
    global _in_child
    _in_child = True


def _answer(file: Path, member: str, max_bytes: int) -> bytes:
    try:
        return read_here(file, member, max_bytes)
    except MemoryError as error:
        raise UnreadableImage("out of memory while reading the file around it") from error
    except Exception as error:  # pyarrow and tarfile raise a dozen kinds on broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"cannot be read from {file.name}: {reason}"[:500]) from error


def _ask(file: Path, member: str, max_bytes: int) -> bytes:
    global _process
    if _process is None:
        _process = _start()
    assert _process.stdin is not None
    assert _process.stdout is not None
    try:
        request = [os.fsencode(file.absolute()).hex(), member, max_bytes]
        _process.stdin.write(json.dumps(request).encode() + b"\n")
        _process.stdin.flush()
        header = json.loads(_process.stdout.readline(MAX_ANSWER_LINE_BYTES))
        if isinstance(reason := header.get("reason"), str):
            raise UnreadableImage(reason, file / member)
        size = header["size"]
        if type(size) is not int or not 0 <= size <= max_bytes:
            raise ValueError("a wrong size")
        data = _process.stdout.read(size)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        _close()
        raise UnreadableImage("its reader ended unexpectedly", file / member) from error
    return data


def _start() -> subprocess.Popen[bytes]:
    from balancer.dataset.decoding.decoders import spawn

    atexit.register(_close)
    return spawn("members", "serve_members()")


def _close() -> None:
    from balancer.dataset.decoding.decoders import end

    global _process
    process, _process = _process, None
    if process is not None:
        end(process)


def _split(path: Path) -> tuple[Path, str]:
    """The file that holds an image, and its name in it; the name is empty if there is no such file."""
    for parent in path.parents:
        if parent.suffix.lower() in SUFFIXES and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""
