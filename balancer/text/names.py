"""Names from users: one form in which they are kept, and looser ones in which they are compared.

A name can be typed in two ways that look the same (`é` as one character or as two), and systems disagree
about which one they store. So names from configs, tables and folders are composed where they are read (NFC,
no space at the ends). Paths on the disk stay as they are.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

MAX_COMPOSED_CHARS = 4096
"""Composing a text of combining marks takes time that grows with its square; no name is that long."""

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def composed(name: str) -> str:
    """The form in which a name is kept."""
    if len(name) > MAX_COMPOSED_CHARS:
        return name.strip()
    return unicodedata.normalize("NFC", name).strip()


def without_case(name: str) -> str:
    return composed(composed(name).casefold())


def pick(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a name certainly means: itself, or the only one that differs in case alone."""
    named = list(choices)
    if name in named:
        return name
    alike = [choice for choice in named if without_case(choice) == without_case(name)]
    return alike[0] if len(alike) == 1 else None


def pick_value(text: str, values: Sequence[str]) -> str | None:
    """The value that a table's text certainly means: itself, or the same truth value or number (`True` is
    `true`, `1.0` is `1`). Case says something otherwise."""
    if text in values:
        return text
    alike = [value for value in values if _plain_value(value) == _plain_value(text)]
    return alike[0] if len(alike) == 1 else None


def near(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a name may be a slip of."""
    by_form = {without_case(choice): choice for choice in choices}
    found = difflib.get_close_matches(without_case(name), by_form, n=1)
    return by_form[found[0]] if found else None


def free_names(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """A column name for each name: itself, or with underscores behind where the name means something else.
    Upper and lower case are the same in SQL."""
    used = {name.casefold() for name in taken}
    found = {}
    for name in names:
        free = name
        while free.casefold() in used:
            free += "_"
        used.add(free.casefold())
        found[name] = free
    return found


def _plain_value(text: str) -> str:
    text = composed(text)
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if _NUMBER.fullmatch(text):
        plain = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if plain == "-0" else plain
    return text
