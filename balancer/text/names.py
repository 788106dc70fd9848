"""Normalise and compare names from users.

`é` can be one character or two, and systems disagree on the form they store. Names from configs, tables and
folders are composed when read (NFC, stripped). Paths on the disk stay as they are.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

MAX_COMPOSED_CHARS = 4096
"""Composing combining marks takes quadratic time. No name is this long."""

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def composed(name: str) -> str:
    """The normal form of a name."""
    if len(name) > MAX_COMPOSED_CHARS:
        return name.strip()
    return unicodedata.normalize("NFC", name).strip()


def without_case(name: str) -> str:
    if name.isascii():
        return name.lower().strip()
    return composed(composed(name).casefold())


def pick(name: str, choices: Iterable[str]) -> str | None:
    """The choice equal to `name`, or the only one that differs just in case."""
    choices = list(choices)
    if name in choices:
        return name
    matches = [choice for choice in choices if without_case(choice) == without_case(name)]
    return matches[0] if len(matches) == 1 else None


def pick_value(text: str, values: Sequence[str]) -> str | None:
    """The value equal to a table's text, or the only one that is the same boolean or number (`True` is
    `true`, `1.0` is `1`). Case matters for all other text."""
    if text in values:
        return text
    matches = [value for value in values if _plain_value(value) == _plain_value(text)]
    return matches[0] if len(matches) == 1 else None


def near(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a misspelt name is closest to, in any case; for "did you mean"."""
    by_form = {without_case(choice): choice for choice in choices}
    matches = difflib.get_close_matches(without_case(name), by_form, n=1)
    return by_form[matches[0]] if matches else None


def free_names(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """A free column name for each name: the name itself, or with underscores appended if it is taken.
    Case does not count, as in SQL."""
    used = {name.casefold() for name in taken}
    columns = {}
    for name in names:
        free = name
        while free.casefold() in used:
            free += "_"
        used.add(free.casefold())
        columns[name] = free
    return columns


def _plain_value(text: str) -> str:
    text = composed(text)
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if _NUMBER.fullmatch(text):
        plain = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if plain == "-0" else plain
    return text
