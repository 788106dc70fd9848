"""Write plain values as YAML for people to edit: block style, with comments, quotes only where needed."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping

from balancer.config.yaml_reading import KeyPath
from balancer.errors import UsageError
from balancer.storage.user_paths import expanded

Comments = Mapping[KeyPath, str]

MAX_COLUMNS = 110

_PLAIN = re.compile(r"[^\W\d_](?:(?:[\w ,.()'/-]|:(?=\w))*[\w.)])?")
# Words that YAML 1.1 or 1.2 does not read as text.
_NOT_TEXT = frozenset("y n yes no on off true false null".split())


def yaml_text(
    value: Mapping[str, object],
    *,
    heading: str = "",
    above: Comments | None = None,
    beside: Comments | None = None,
) -> str:
    """`read_document` reads the text back as the same value.

    `above` and `beside` hold comments by the path of their key.
    """
    lines = [*_comment(heading, "")]
    after_section = True
    for key, item in value.items():
        is_section = isinstance(item, dict | list)
        lines += [""] if is_section or after_section else []
        lines += _entry((key,), item, above or {}, beside or {})
        after_section = is_section
    return "\n".join(lines).lstrip("\n") + "\n"


def check_free(path: str | os.PathLike[str]) -> None:
    """Raise UsageError if `path` exists."""
    if os.path.lexists(expanded(path)):
        raise _taken(path)


def create_file(path: str | os.PathLike[str], text: str) -> None:
    """Write a new file atomically.

    Raises UsageError if it exists, StorageError if it cannot be written.
    """
    from balancer.storage import LocalStorage

    folder, name = os.path.split(expanded(path))
    if not LocalStorage.make(folder or ".").create(name, text.encode()):
        raise _taken(path)


def _taken(path: str | os.PathLike[str]) -> UsageError:
    return UsageError(f"{os.fspath(path)} already exists", hint="name another file, or move that one away")


def _entry(path: KeyPath, item: object, above: Comments, beside: Comments) -> Iterator[str]:
    indent = "  " * (len(path) - 1)
    yield from _comment(above.get(path, ""), indent)
    head = f"{indent}{_text(str(path[-1]))}:"
    note = f" # {_printable(beside[path])}" if path in beside else ""
    if isinstance(item, dict) and item:
        yield head + note
        for key, child in item.items():
            yield from _entry((*path, key), child, above, beside)
    elif isinstance(item, list) and item:
        yield head + note
        yield from (f"{indent}  - {_scalar(child)}" for child in item)
    else:
        yield f"{head} {_scalar(item)}{note}"


def _scalar(value: object) -> str:
    """A scalar, or a mapping or list on one line, since JSON is YAML."""
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.isprintable() and text.lower() not in _NOT_TEXT:
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(quoted)}"'


def _printable(text: str) -> str:
    """Escape as in double quotes. YAML forbids some characters even in comments."""
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _comment(text: str, indent: str) -> Iterator[str]:
    """Comment lines, each wrapped with a hanging indent."""
    for line in text.split("\n") if text else ():
        margin = line[: len(line) - len(line.lstrip(" "))]
        wrapped = textwrap.wrap(
            _printable(line),
            MAX_COLUMNS - len(indent) - 2,
            subsequent_indent=margin and margin + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (f"{indent}# {part}".rstrip() for part in wrapped or [""])
