"""Read images that lie inside other files, in a process with limits.

`train.parquet/12` is the path of an image in a file as if that were a folder; see `readers.packed_files` and
`readers.crops`.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from balancer.dataset.decoding.spawning import end, spawn
from balancer.dataset.readers.crops import parse_crop
from balancer.dataset.readers.packed_files import SUFFIXES, read_member
from balancer.process.child_limits import limit_process
from balancer.text.json_reading import read_json

CPU_SECONDS = 120
MEMORY_BYTES = 4_000_000_000
"""A group of rows of a Parquet file is decoded at once."""

ReadMember = Callable[[Path, str, int], bytes]

MAX_ANSWER_LINE_BYTES = 10_000
MAX_REASON_CHARS = 500

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_in_child = False


def _no_crop(file: Path, member: str, max_bytes: int) -> bytes:
    raise ValueError("no such file")


_read_crop: ReadMember = _no_crop


class InsideError(OSError):
    """An image inside a file that cannot be read; `strerror` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


def read_inside(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The bytes of an image inside a file. Raises InsideError."""
    file, member = _split(Path(path))
    if not member:
        raise InsideError("no such file")
    with _lock:  # one file is open at a time
        return (_answer if _in_child else _ask)(file, member, max_bytes)


def serve() -> None:
    """Answer requests on standard input: a line of JSON with the size or a reason, then the bytes."""
    for line in sys.stdin.buffer:
        file, member, max_bytes = json.loads(line)
        limit_process(CPU_SECONDS, MEMORY_BYTES)
        try:
            data = _answer(Path(os.fsdecode(bytes.fromhex(file))), member, max_bytes)
            header: dict[str, object] = {"size": len(data)}
        except InsideError as error:
            data, header = b"", {"reason": error.strerror}
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + data)
        sys.stdout.buffer.flush()


def work_in_child(read_crop: ReadMember) -> None:
    """Read in this process from now on, because it has limits itself."""
    global _in_child
    _in_child = True
    cut_with(read_crop)


def cut_with(read_crop: ReadMember) -> None:
    """How to read a crop, which takes a decoder: that one in turn reads images inside files."""
    global _read_crop
    _read_crop = read_crop


def close() -> None:
    """End the process, if there is one."""
    global _process
    process, _process = _process, None
    if process is not None:
        end(process)


def _answer(file: Path, member: str, max_bytes: int) -> bytes:
    try:
        read = read_member if file.suffix.lower() in SUFFIXES else _read_crop
        return read(file, member, max_bytes)
    except MemoryError as error:
        raise InsideError("out of memory while reading the file around it") from error
    except Exception as error:  # pyarrow and tarfile raise a dozen kinds on broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InsideError(f"cannot be read from {file.name}: {reason}"[:MAX_REASON_CHARS]) from error


def _ask(file: Path, member: str, max_bytes: int) -> bytes:
    process = _started()
    assert process.stdin is not None
    assert process.stdout is not None
    request = [os.fsencode(file.absolute()).hex(), member, max_bytes]
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        header = read_json(process.stdout.readline(MAX_ANSWER_LINE_BYTES))
        if isinstance(header, dict) and isinstance(reason := header.get("reason"), str):
            raise InsideError(reason[:MAX_REASON_CHARS])
        size = header.get("size") if isinstance(header, dict) else None
        if type(size) is not int or not 0 <= size <= max_bytes:
            raise ValueError("a wrong size")
        return process.stdout.read(size)
    except InsideError:
        raise
    except (ValueError, OSError) as error:
        close()  # its state is unknown
        raise InsideError("its reader ended unexpectedly") from error


def _started() -> subprocess.Popen[bytes]:
    global _process
    if _process is None:
        _process = spawn("serve_members()")
        atexit.register(close)
    return _process


def _split(path: Path) -> tuple[Path, str]:
    """The file that holds an image, and its name in it; the name is empty if there is no such file."""
    for parent in path.parents:
        if parent.suffix.lower() in SUFFIXES and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    if parse_crop(path.name) and path.parent.is_file():
        return path.parent, path.name
    return path, ""
