"""Streams that say they are a terminal."""

from __future__ import annotations

import io
import sys

import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch, kind: str = "xterm", columns: int = 120) -> Terminal:
    """What is written to stdout and stderr from now on."""
    stream = Terminal()
    for name, value in {"TERM": kind, "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream
