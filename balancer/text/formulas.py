"""Text in CSV that a spreadsheet would run as a formula, with an apostrophe before it, and back."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Also behind apostrophes, so that each text has a form of its own."""


def as_text(text: str) -> str:
    """`'=1+1` for `=1+1`."""
    return f"'{text}" if _FORMULA.match(text) else text


def as_written(text: str) -> str:
    """`=1+1` for `'=1+1`: what `as_text` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
