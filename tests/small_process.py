"""A call in a process of its own, and the memory that its children took.

`ru_maxrss` of a child starts at what its parent holds, and that of all children is the most of any before it:
in the process of the tests, both say how much the tests took.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_CODE = """
import json, pickle, resource, sys, time
from balancer.errors import WeightsError
function, arguments = pickle.load(sys.stdin.buffer)
began, message = time.monotonic(), ""
try:
    function(*arguments)
except WeightsError as error:
    message = error.message
seconds = time.monotonic() - began
json.dump([message, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024], sys.stdout)
"""


class Ended(NamedTuple):
    message: str
    """Of the WeightsError; empty if there was none."""

    seconds: float
    child_bytes: int


def call(function: Callable[..., Any], *arguments: Any) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        input=pickle.dumps((function, arguments)),
        stdout=subprocess.PIPE,
        check=True,
    )
    return Ended(*json.loads(done.stdout))
