"""Build a document in the current layout from a legacy one, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from balancer.config.legacy.fields import BLOCK, NO_SETTING, PROMPTS, REASONS, SECTIONS, TARGETS
from balancer.config.yaml_reading import ConfigProblem, Document, KeyPath
from balancer.errors import ConfigError


class Conversion:
    """The new document, and the legacy fields that were used for it."""

    def __init__(self, source: Document) -> None:
        place = source.places[BLOCK,]
        if not isinstance(cast("dict[str, object]", source.value)[BLOCK], dict):
            raise ConfigError([f"{place}: {BLOCK}: should be a mapping of settings"])
        self.document = Document({}, {(): place}, [*source.problems])
        self.assumed: list[ConfigProblem] = []
        self.reasons: dict[KeyPath, str] = {}
        self._source = source
        self._used: set[KeyPath] = set()
        sections = (*SECTIONS, TARGETS, PROMPTS)
        self._opened = {path[:depth] for path in sections for depth in range(len(path) + 1)}

    def value(self, path: KeyPath) -> object:
        """The value in the legacy file; None if it has none."""
        value = self._source.value
        for key in path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        return value

    def place(self, path: KeyPath) -> str:
        return self._source.places[path]

    def mapping(self, path: KeyPath) -> dict[str, object]:
        """The mapping at `path`, empty if there is none. Records a problem for any other value."""
        value = self.value(path)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.problem(path, "should be a mapping of names to settings", at=path)
        return {}

    def problem(self, new: KeyPath, text: str, at: KeyPath) -> None:
        self.document.problems.append(ConfigProblem(new, self.place(at), text))

    def use(self, path: KeyPath) -> None:
        self._used.add(path)
        self._opened.update(path[:depth] for depth in range(len(path)))

    def look_into(self, path: KeyPath) -> None:
        """Report unused fields below `path` one by one."""
        self._opened.add(path)

    def take(self, new: KeyPath, old: KeyPath, value: object = None) -> None:
        """Put the value of a legacy field, or the converted `value`, at its new path."""
        self.use(old)
        given = self.value(old)
        if value is None:
            value = given
            if isinstance(given, list):
                for index in range(len(given)):
                    self.document.places[*new, index] = self.place((*old, index))
        self.put(new, value, at=old)

    def put(self, new: KeyPath, value: object, at: KeyPath) -> None:
        section = cast("dict[str | int, object]", self.document.value)
        for depth, key in enumerate(new[:-1], start=1):
            self.document.places.setdefault(new[:depth], self.place(at))
            section = cast("dict[str | int, object]", section.setdefault(key, {}))
        self.document.places[new] = self.place(at)
        section[new[-1]] = value

    def assume(self, new: KeyPath, value: object, at: KeyPath, why: str) -> None:
        self.put(new, value, at)
        self.assumed.append(ConfigProblem(new, self.place(at), why))

    def has(self, new: KeyPath) -> bool:
        return new in self.document.places

    def unused(self) -> tuple[ConfigProblem, ...]:
        """Unused fields; a field that recurs in every class is listed once."""
        groups: dict[tuple[KeyPath, str], list[KeyPath]] = {}
        for path in self._unused_below((), self._source.value):
            is_of_class = len(path) > 3 and path[:2] in (TARGETS, PROMPTS)
            pattern = (*path[:2], "*", *path[3:]) if is_of_class else path
            groups.setdefault((pattern, self._reason(path)), []).append(path)
        return tuple(
            ConfigProblem(within_block(pattern if len(paths) > 1 else paths[0]), self.place(paths[0]), reason)
            for (pattern, reason), paths in groups.items()
        )

    def _unused_below(self, path: KeyPath, value: object) -> Iterator[KeyPath]:
        if path in self._used or value is None:
            return
        if path in self._opened and isinstance(value, dict):
            for key, child in value.items():
                yield from self._unused_below((*path, key), child)
        else:
            yield path

    def _reason(self, path: KeyPath) -> str:
        return self.reasons.get(path) or REASONS.get(str(path[-1]), NO_SETTING)


def within_block(path: KeyPath) -> KeyPath:
    return path[1:] if path[0] == BLOCK and len(path) > 1 else path
