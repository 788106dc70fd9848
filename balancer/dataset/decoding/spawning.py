"""Start and end the processes that work on files of strangers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# glibc: keep freed memory for the next image; returning it takes a fifth of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
_KEPT = frozenset(("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "SYSTEMROOT"))


def spawn(call: str, requests: socket.socket | None = None) -> subprocess.Popen[bytes]:
    """Call a function of `child` in a process with the same packages as this one and no secrets. Its standard
    input is `requests`, or a pipe."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from balancer.dataset.decoding import child; child.{call}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE if requests is None else requests.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
        process_group=0,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """The process and its child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes]) -> None:
    kill(process)
    with contextlib.suppress(OSError), process:
        pass  # closes its pipes and waits for it


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("PYTHON")}
    return kept | _ONE_THREAD | _KEEP_MEMORY
