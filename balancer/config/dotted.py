"""Dotted paths into a config: `classes.burnt.prompts`, or `classes."v1.0".prompts` for a name with a dot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from balancer.text.names import composed

SETTING_HELP = """Override a config value. Quote a name that has a dot: 'classes."v1.0".prompts=[x]'."""
DATASET_SETTING_HELP = "A setting of the config's section `dataset`, such as dataset.layout=splits."

_PART = re.compile(r'"((?:[^"\\]|\\.)*)"(?=[.=]|$)|\'([^\']*)\'(?=[.=]|$)|[^.=]*')


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a dotted path. A quoted part may contain dots."""

    text: str
    quoted: bool


def split_setting(setting: str) -> tuple[list[Part], str | None]:
    """Split `path=value` into the parts of the path and the value; None for the value if there is no `=`."""
    parts, position = [], 0
    while match := _PART.match(setting, position):
        double, single = match.groups()
        quoted = re.sub(r"\\(.)", r"\1", double) if double is not None else single
        parts.append(Part(composed(match[0] if quoted is None else quoted), quoted is not None))
        position = match.end()
        if setting[position : position + 1] != ".":
            break
        position += 1
    rest = setting[position:]
    return parts, rest[1:] if rest.startswith("=") else None


def resolve_keys(parts: Sequence[Part], value: object) -> tuple[str, ...]:
    """The keys that a path means in a document. An existing key with a dot need not be quoted."""
    plain = tuple(part.text for part in parts)
    return next(_matching_paths(parts, value), plain)


def join_keys(path: Sequence[str | int]) -> str:
    return ".".join(_quoted(str(key)) if "." in str(key) else str(key) for key in path)


def _quoted(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _matching_paths(parts: Sequence[Part], value: object) -> Iterator[tuple[str, ...]]:
    """Paths whose keys all exist; the last one may be new if it has no dot. Short keys come first."""
    if not isinstance(value, dict):
        return
    for count in range(1, len(parts) + 1):
        if count > 1 and any(part.quoted for part in parts[:count]):
            return
        key = ".".join(part.text for part in parts[:count])
        if count == len(parts):
            if count == 1 or key in value:
                yield (key,)
        elif key in value:
            yield from ((key, *rest) for rest in _matching_paths(parts[count:], value[key]))
