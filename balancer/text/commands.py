"""Command lines that messages suggest."""

from __future__ import annotations

import os
import shlex


def suggested(command: str, *arguments: str | os.PathLike[str]) -> str:
    """`balancer COMMAND ARGUMENTS` in backticks, with the arguments quoted for a shell."""
    return f"`{shlex.join(['balancer', command, *map(os.fspath, arguments)])}`"
