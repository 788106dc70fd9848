"""Limits for child processes that work on files of strangers."""

from __future__ import annotations

import contextlib
import math
import resource
from pathlib import Path


def limit_process(cpu_seconds: int, memory_bytes: int) -> None:
    """Allow this process this much more CPU time and memory from now on, and no file writes."""
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    spent = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    limits = {resource.RLIMIT_CPU: spent + cpu_seconds, resource.RLIMIT_AS: _used_bytes() + memory_bytes}
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a system without this limit, or with a tighter one
            # The hard limit stays: a process may get new limits for its next file.
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _used_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
