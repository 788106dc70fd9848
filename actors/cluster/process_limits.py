"""Limits of this process under which Ray does not fail but hangs. They are checked before Ray starts.

Measured with Ray 2.60 on Linux: with 64 open files it never comes up and with 80 it does; its raylet ends
again and again unless a file may be as large as the object store; with an address space of 1 GB more than
that store it cannot even be interrupted, and with 8 GB more all is well.
"""

from __future__ import annotations

import resource

import ray._private.utils as ray_utils

from balancer.process.limits import refuse_less

RAY = "Ray on this machine"
MIN_OPEN_FILES = 128
ROOM_BYTES = 8_000_000_000
"""Address space besides the object store: torch and diffusers map gigabytes before they hold any weights."""


def refuse_tight_limits() -> None:
    """UnavailableError if a limit of this process is below what Ray on this machine needs."""
    store = ray_utils.resolve_object_store_memory(ray_utils.estimate_available_memory())
    refuse_less(resource.RLIMIT_NOFILE, MIN_OPEN_FILES, "open files", "ulimit -n 4096", RAY)
    refuse_less(resource.RLIMIT_FSIZE, store, "the bytes of a file", "ulimit -f unlimited", RAY)
    refuse_less(resource.RLIMIT_AS, store + ROOM_BYTES, "bytes of address space", "ulimit -v unlimited", RAY)
