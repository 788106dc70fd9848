"""Read YAML or JSON into plain values, each with its place. Constructs no Python objects.

Values follow YAML 1.2, which includes JSON: only `true` and `false` are booleans, so a class called `no` or
`on` stays a name, and `1e-3` is a number. Keys are text, composed by `balancer.text.names`: keys that look
the same are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from balancer.errors import ConfigError
from balancer.text.names import composed
from balancer.text.safetext import has_credentials

MAX_NODES = 200_000
"""Keys and values in one document, with aliases expanded."""

MAX_CHARACTERS = 10_000_000
"""In all keys and values of one document, with aliases expanded. A file has a tenth of that at most."""

MAX_PROBLEMS = 100
"""Problems listed for one document; nobody reads more."""

MAX_DEPTH = 30

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """`place` is where the user wrote it: `file:line`, or the override."""

    path: KeyPath
    place: str
    text: str


@dataclass(slots=True)
class Document:
    """`places` has the `file:line` where each path begins; a mapping entry begins at its key."""

    value: object = None
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)


def read_document(text: str, place_of_line: Callable[[int], str]) -> Document | None:
    """Parse a text; None if it is empty. Lines count from 1.

    Raises ConfigError for invalid or too large YAML. Lesser faults (a duplicate key, a tag, a number that is
    not finite) go to `problems`.
    """
    try:
        # JSON allows tabs between tokens, YAML does not. JSON strings contain no raw tabs.
        json_like = text.lstrip().startswith(("{", "["))
        root = yaml.compose(text.replace("\t", " ") if json_like else text, Loader=_Loader)
    except _TooManyNodesError as error:
        raise ConfigError([f"{place_of_line(error.line)}: {_TOO_MANY_NODES}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, place_of_line)]) from error
    except RecursionError as error:
        raise ConfigError([f"{place_of_line(1)}: nested too deeply to read"]) from error
    if root is None:
        return None
    reader = _Reader(place_of_line)
    reader.document.value = reader.read(root, ())
    return reader.document


_TOO_MANY_NODES = f"more than {MAX_NODES} keys and values once aliases are expanded"


class _TooManyNodesError(Exception):
    def __init__(self, line: int) -> None:
        self.line = line


class _Loader(yaml.SafeLoader):
    """Resolves plain words by YAML 1.2's core schema; PyYAML itself follows 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the name and type PyYAML expects
    _composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts while composing: a megabyte of short values would take half a minute."""
        self._composed += 1
        if self._composed > MAX_NODES:
            raise _TooManyNodesError(self.line + 1)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _resolve(tag: str, pattern: str, first: Sequence[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))


_resolve("null", r"~|null|Null|NULL|", ["~", "n", "N", ""])
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?[0-9]+", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")


class _Reader:
    """Walks the node graph once and expands aliases."""

    def __init__(self, place_of_line: Callable[[int], str]) -> None:
        self.document = Document()
        self._place_of_line = place_of_line
        self._nodes = self._characters = 0

    def read(self, node: yaml.Node, path: KeyPath) -> object:
        self._count(node)
        if len(path) > MAX_DEPTH:
            raise self._refusal(node, f"nested deeper than {MAX_DEPTH} levels")
        self.document.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _count(self, node: yaml.Node) -> None:
        """Before a key or value is looked at: an alias costs what it stands for."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._refusal(node, _TOO_MANY_NODES)
        if isinstance(node, yaml.ScalarNode):
            self._characters += len(node.value)
            if self._characters > MAX_CHARACTERS:
                raise self._refusal(node, f"more than {MAX_CHARACTERS} characters once aliases are expanded")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in node.value:
            name = self._key(key, path)
            if name is None:
                continue
            if name in values:
                first = self.document.places[*path, name]
                self._problem(key, (*path, name), f"given twice, first at {first}{_as_written(key, name)}")
            else:
                self.document.places[*path, name] = self._place(key)
                values[name] = self.read(value, (*path, name))
        return values

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        """The text of a key. If it is not text: None, and a problem is recorded."""
        self._count(node)
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "a key must be plain text")
            return None
        self._refuse_credentials(node)
        try:
            return composed(_joined_surrogates(node.value))
        except ValueError:
            self._problem(node, path, f"the key {node.value[:40]!r} is not valid text")
            return None

    def _scalar(self, node: yaml.Node, path: KeyPath) -> object:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        self._refuse_credentials(node)
        try:
            if kind == "str":
                return _joined_surrogates(text)
            if kind in _SCALARS:
                return _SCALARS[kind](text)
        except ValueError:
            wanted = "valid text" if kind == "str" else "a finite number of reasonable length"
            self._problem(node, path, f"{text[:40]!r} is not {wanted}")
            return ""
        self._problem(node, path, f"the tag {node.tag} is not supported; write plain values")
        return None

    def _refuse_credentials(self, node: yaml.Node) -> None:
        """Checked here, before a message repeats the value or a run records it."""
        if has_credentials(str(node.value)):
            raise self._refusal(node, "this address holds a user or a password, so it is not shown")

    def _refusal(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError([f"{self._place(node)}: {text}"])

    def _problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        if len(self.document.problems) == MAX_PROBLEMS:
            first = self.document.problems[0]
            raise self._refusal(
                node, f"{text}; more than {MAX_PROBLEMS} such problems, the first at {first.place}"
            )
        self.document.problems.append(ConfigProblem(path, self._place(node), text))

    def _place(self, node: yaml.Node) -> str:
        return self._place_of_line(node.start_mark.line + 1)


def _as_written(key: yaml.Node, name: str) -> str:
    """A note for a key whose written form differs invisibly from its name."""
    return "" if key.value == name else f" (written {key.value!a}, which is the same name)"


def _finite(text: str) -> float:
    value = float(text)  # Python refuses `.inf` and `.nan` here, as it should
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_SCALARS: dict[str, Callable[[str], object]] = {
    "null": lambda _text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": _finite,
}


def _joined_surrogates(text: str) -> str:
    """Join the surrogate pairs of JSON escapes. Raises ValueError for a lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def _syntax_problem(error: yaml.YAMLError, place_of_line: Callable[[int], str]) -> str:
    mark = getattr(error, "problem_mark", None)
    place = place_of_line(mark.line + 1 if mark else 1)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{place}: not valid YAML or JSON: {reason}"
