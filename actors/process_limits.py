"""Limits of this process under which Ray does not fail but hangs: told before Ray is started.

Measured with Ray 2.60 on Linux: with 64 open files it never comes up and with 80 it does; its raylet ends
again and again unless a file may be as large as the object store; with an address space of 1 GB more than
that store it cannot even be interrupted, and with 8 GB more all is well.
"""

from __future__ import annotations

import resource

import ray._private.utils as ray_utils

from balancer.errors import ClusterError

MIN_OPEN_FILES = 128
ROOM_BYTES = 8_000_000_000
"""Address space besides the object store: torch and diffusers map gigabytes before they hold any weights."""


def refuse_tight_limits() -> None:
    """ClusterError if a limit of this process is below what Ray on this machine needs."""
    store = ray_utils.resolve_object_store_memory(ray_utils.estimate_available_memory())
    _refuse_less(resource.RLIMIT_NOFILE, MIN_OPEN_FILES, "open files", "ulimit -n 4096")
    _refuse_less(resource.RLIMIT_FSIZE, store, "the bytes of a file", "ulimit -f unlimited")
    _refuse_less(resource.RLIMIT_AS, store + ROOM_BYTES, "bytes of address space", "ulimit -v unlimited")


def _refuse_less(kind: int, least: int, of_what: str, command: str) -> None:
    limit, most = resource.getrlimit(kind)
    if limit == resource.RLIM_INFINITY or limit >= least:
        return
    raised = most == resource.RLIM_INFINITY or most >= least
    raise ClusterError(
        f"the limit on {of_what} is {limit:,}, and Ray on this machine needs {least:,}",
        hint=f"raise it with `{command}`" if raised else f"have an administrator raise it: `{command}`",
    )
