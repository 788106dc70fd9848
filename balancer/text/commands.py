"""Command lines that messages suggest."""

from __future__ import annotations

import os
import shlex


def suggested(command: str, *arguments: str | os.PathLike[str]) -> str:
    """`balancer COMMAND ARGUMENTS` in backticks, with the arguments quoted for a shell."""
    words = ["balancer", command, *(os.fspath(argument) for argument in arguments)]
    return f"`{shlex.join(words)}`"
