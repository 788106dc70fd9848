"""Command lines that messages suggest."""

from __future__ import annotations

import os
import shlex


def suggested(command: str, *arguments: str | os.PathLike[str]) -> str:
    """`` `balancer COMMAND ARGUMENTS` `` in backticks, its arguments quoted for a shell."""
    return f"`{' '.join(['balancer', command, *quoted(*arguments)])}`"


def quoted(*arguments: str | os.PathLike[str]) -> list[str]:
    return [shlex.quote(os.fspath(argument)) for argument in arguments]
