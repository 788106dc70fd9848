"""Ids of submitted jobs, and what to do about those that are there already.

Ray takes an id once, whatever became of the job. So the id of a run gets a suffix with each attempt:
`balancer-FOLDER-CONFIG`, then `balancer-FOLDER-CONFIG-2`. Two submissions at the same moment choose the same
id, and Ray refuses one of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ACTIVE = ("PENDING", "RUNNING")
SUCCEEDED = "SUCCEEDED"
STOPPED = "STOPPED"

_DIGITS = 10
_ID = re.compile(rf"(balancer-[0-9a-f]{{{_DIGITS}}})-([0-9a-f]{{{_DIGITS}}})(?:-([1-9][0-9]{{0,5}}))?")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A job of Ray's. `exit_code` is None unless its command has ended."""

    id: str
    status: str
    start_ms: int = 0
    exit_code: int | None = None
    message: str = ""

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class Decision:
    """`submit` under a new id, `attach` to the attempt under way, or nothing: an attempt has `finished` the
    run, or another config is at work in this run folder (`busy`)."""

    kind: Literal["submit", "attach", "finished", "busy"]
    id: str


def folder_id(out: str) -> str:
    """What the ids of all jobs of a run folder begin with."""
    return f"balancer-{_short(out)}"


def run_id(out: str, config: str) -> str:
    """The id of the first attempt. `config` is the fingerprint of everything that is sent."""
    return f"{folder_id(out)}-{_short(config)}"


def of_folder(attempts: Sequence[Attempt], out: str) -> list[Attempt]:
    """The attempts in a run folder by any config, the first one first."""
    here = [
        attempt for attempt in attempts if (found := _ID.fullmatch(attempt.id)) and found[1] == folder_id(out)
    ]
    return sorted(here, key=lambda attempt: (attempt.start_ms, _number(attempt.id)))


def decide(attempts: Sequence[Attempt], out: str, config: str, *, again: bool = False) -> Decision:
    """What a submission has to do. `again` submits a finished run once more, for a dataset that has grown."""
    first = run_id(out, config)
    here = of_folder(attempts, out)
    for attempt in reversed(here):
        if attempt.is_active:
            return Decision("attach" if _first(attempt.id) == first else "busy", attempt.id)
    if here and here[-1].status == SUCCEEDED and _first(here[-1].id) == first and not again:
        return Decision("finished", here[-1].id)
    numbers = [_number(attempt.id) for attempt in here if _first(attempt.id) == first]
    number = max(numbers, default=0) + 1
    return Decision("submit", first if number == 1 else f"{first}-{number}")


def _first(id: str) -> str:
    found = _ID.fullmatch(id)
    assert found is not None
    return f"{found[1]}-{found[2]}"


def _number(id: str) -> int:
    found = _ID.fullmatch(id)
    assert found is not None
    return int(found[3] or 1)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
