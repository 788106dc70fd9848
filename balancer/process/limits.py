"""Limits of this process (`ulimit`) under which libraries hang or crash instead of failing: told before."""

from __future__ import annotations

import os
import resource

from balancer.errors import UnavailableError

MIN_PROCESSES = 16
"""Arrow waits for ever for its threads if it may have none: measured with 3, at 24 all commands work."""


def refuse_too_few_processes() -> None:
    """The limit counts threads, all those of this user, and does not hold for root."""
    if os.geteuid():
        refuse_less(
            resource.RLIMIT_NPROC, MIN_PROCESSES, "processes and threads", "ulimit -u 4096", "balancer"
        )


def refuse_less(kind: int, least: int, of_what: str, command: str, who: str) -> None:
    """UnavailableError if a limit is below what somebody needs."""
    limit, most = resource.getrlimit(kind)
    if limit == resource.RLIM_INFINITY or limit >= least:
        return
    allowed = most == resource.RLIM_INFINITY or most >= least
    raise UnavailableError(
        f"the limit on {of_what} is {limit:,}, and {who} needs {least:,}",
        hint=f"{'raise it' if allowed else 'have an administrator raise it'}: `{command}`",
    )
