"""Refuse `ulimit` values under which libraries hang or crash instead of failing."""

from __future__ import annotations

import os
import resource

from balancer.errors import UnavailableError

MIN_PROCESSES = 16
"""Arrow hangs if it cannot start threads. Measured: it hangs with 3; all commands work with 24."""


def refuse_too_few_processes() -> None:
    """The limit counts all threads of this user and does not apply to root."""
    if os.geteuid():
        refuse_less(
            resource.RLIMIT_NPROC, MIN_PROCESSES, "processes and threads", "ulimit -u 4096", "balancer"
        )


def refuse_less(kind: int, least: int, noun: str, command: str, user: str) -> None:
    """Raise UnavailableError if the limit on `noun` is below the `least` that `user` needs."""
    limit, most = resource.getrlimit(kind)
    if limit == resource.RLIM_INFINITY or limit >= least:
        return
    allowed = most == resource.RLIM_INFINITY or most >= least
    raise UnavailableError(
        f"the limit on {noun} is {limit:,}, and {user} needs {least:,}",
        hint=f"{'raise it' if allowed else 'ask an administrator to raise it'}: `{command}`",
    )
