"""Paths as a user writes them: `~` is a home folder."""

from __future__ import annotations

import os
from pathlib import Path

from balancer.errors import UsageError


def expanded(path: str | os.PathLike[str], what: str = "") -> Path:
    """A path with the home folder that it begins with, if any. UsageError if there is no such home; `what`
    says how the user named the path."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        prefix = f"{what}: " if what else ""
        name = os.fspath(path).split(os.sep)[0]
        raise UsageError(
            f"{prefix}{os.fspath(path)}: the home folder {name} is not known",
            hint="set HOME, or write the path in full (./~name for a folder of that name)",
        ) from error
