"""Close a log when the work on it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, FencedError, InterruptedRun

if TYPE_CHECKING:
    from balancer.manifest.log.fragment import State
    from balancer.manifest.log.writer import ManifestLog


@contextlib.contextmanager
def closing_on_error(log: ManifestLog, state: State = "failed", reason: str = "") -> Iterator[None]:
    """If the block fails, close the log in `state`, with the error's message unless there is a `reason`.

    Not if another driver owns the log now, nor for an interrupted run, which its driver closes.
    """
    try:
        yield
    except (FencedError, InterruptedRun):
        raise
    except BalancerError as error:
        with contextlib.suppress(BalancerError):  # report the first error
            log.close(state, {"reason": reason or error.message})
        raise
