"""Start fewer processes for a Ray on this machine: those that a run has no use for cost it seconds.

Beside its daemons Ray starts three Python programs at the head, one after the other, before the first worker
can: one for the autoscaler, one for the dashboard, which is there without a dashboard, too, and one that
copies what workers print to the driver. A local Ray has no autoscaler, and its driver asks for no copies
(`log_to_driver`). Measured with Ray 2.60: half the time to start it, and half the processor time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray._private.node import Node

_STARTERS = ("start_monitor", "start_api_server", "start_log_monitor")


@contextlib.contextmanager
def few_head_processes() -> Iterator[None]:
    """For the time in which Ray is started here. Other versions of Ray may start them by other names: then
    they are started."""
    starters = {name: getattr(Node, name) for name in _STARTERS if hasattr(Node, name)}
    for name in starters:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, starter in starters.items():
            setattr(Node, name, starter)


def _nothing(_node: Node, **_options: Any) -> None:
    """In the place of a method that starts a process."""
