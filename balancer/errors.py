"""Errors that users see, and the exit code of each.

BalancerError                 1  something went wrong
├── UsageError                2  invalid command line, filter or destination
│   ├── ConfigError           2  the config file; lists every problem at once
│   └── DatasetError          2  the dataset folder cannot be balanced as it is
├── UnavailableError          4  the run lacks something it needs
│   ├── ClusterError          4  Ray, or not enough CPUs or GPUs
│   ├── WeightsError          4  model files are missing or refused
│   └── StorageError          4  the run folder cannot be read or written
├── ManifestError             1  a committed manifest breaks one of its rules
├── StalledError              1  actors keep dying and the run makes no progress
├── FencedError               5  another driver has taken this run over
└── InterruptedRun  129/130/143  stopped by a signal; everything accepted is committed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from balancer.text.safetext import redacted, shortened

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_line(error: BaseException) -> str:
    """The first line of another library's error; the name of its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_problem(error: ValidationError, *within: str) -> str:
    """What is wrong with a document, `seed: must be an integer`; `within` leads to its place in another."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, (*within, *problem['loc'])))}: {problem['msg']}"


MAX_LINE = 2000
"""Characters per line of a message. File names and quoted text can have millions."""


def _bounded(text: str) -> str:
    return "\n".join(shortened(line, MAX_LINE) for line in text.split("\n"))


EXIT_SHORT = 3
"""Of a run that ended with images missing, which is no error."""


class BalancerError(Exception):
    """A message that names the thing, and a hint that names the setting to change.

    Addresses lose their passwords here, before anyone shows the error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _bounded(redacted(message))
        self.hint = redacted(hint)
        super().__init__(self.message)


class UsageError(BalancerError):
    exit_code = 2


class ConfigError(UsageError):
    """All problems of one config file, each already formatted as `file:line: path: problem`."""

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = tuple(map(redacted, problems))


class DatasetError(UsageError):
    pass


class UnavailableError(BalancerError):
    exit_code = 4


class ClusterError(UnavailableError):
    pass


class WeightsError(UnavailableError):
    pass


class StorageError(UnavailableError):
    pass


class ManifestError(BalancerError):
    pass


class StalledError(BalancerError):
    pass


class FencedError(BalancerError):
    exit_code = 5


class InterruptedRun(BalancerError):
    """Exits with 128 + `signal_number`, as shells do."""

    def __init__(self, message: str, *, signal_number: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number
