"""A document of ours as it grows out of one in the earlier layout, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from balancer.config.legacy.fields import BLOCK, NO_SETTING, PROMPTS, REASONS, SECTIONS, TARGETS
from balancer.config.yaml_reading import Document, Path, Problem
from balancer.errors import ConfigError


class Conversion:
    """Our document as it grows, and which fields of the other one went into it."""

    def __init__(self, source: Document) -> None:
        place = source.places[BLOCK,]
        if not isinstance(cast("dict[str, object]", source.value)[BLOCK], dict):
            raise ConfigError([f"{place}: {BLOCK}: should be a mapping of settings"])
        self.document = Document({}, {(): place}, [*source.problems])
        self.assumed: list[Problem] = []
        self.reasons: dict[Path, str] = {}
        self._source = source
        self._used: set[Path] = set()
        sections = (*SECTIONS, TARGETS, PROMPTS)
        self._opened = {path[:depth] for path in sections for depth in range(len(path) + 1)}

    def value(self, path: Path) -> object:
        """What the earlier file has there; None if nothing."""
        value = self._source.value
        for key in path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        return value

    def place(self, path: Path) -> str:
        return self._source.places[path]

    def mapping(self, path: Path) -> dict[str, object]:
        """The mapping there, or an empty one; anything else is a problem."""
        value = self.value(path)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.problem(path, "should be a mapping of names to settings", at=path)
        return {}

    def problem(self, ours: Path, text: str, at: Path) -> None:
        self.document.problems.append(Problem(ours, self.place(at), text))

    def use(self, path: Path) -> None:
        self._used.add(path)
        self._opened.update(path[:depth] for depth in range(len(path)))

    def look_into(self, path: Path) -> None:
        """Its fields are reported one by one, if they have no use."""
        self._opened.add(path)

    def take(self, ours: Path, theirs: Path, value: object = None) -> None:
        """Put the value of a field, or what it amounts to, under our name."""
        self.use(theirs)
        given = self.value(theirs)
        if value is None:
            value = given
            if isinstance(given, list):
                for index in range(len(given)):
                    self.document.places[*ours, index] = self.place((*theirs, index))
        self.put(ours, value, at=theirs)

    def put(self, ours: Path, value: object, at: Path) -> None:
        section = cast("dict[str | int, object]", self.document.value)
        for depth, key in enumerate(ours[:-1], start=1):
            self.document.places.setdefault(ours[:depth], self.place(at))
            section = cast("dict[str | int, object]", section.setdefault(key, {}))
        self.document.places[ours] = self.place(at)
        section[ours[-1]] = value

    def assume(self, ours: Path, value: object, at: Path, why: str) -> None:
        self.put(ours, value, at)
        self.assumed.append(Problem(ours, self.place(at), why))

    def has(self, ours: Path) -> bool:
        return ours in self.document.places

    def unused(self) -> tuple[Problem, ...]:
        """Fields without a use, those that recur in every class as one."""
        groups: dict[tuple[Path, str], list[Path]] = {}
        for path in self._unused_below((), self._source.value):
            is_of_class = len(path) > 3 and path[:2] in (TARGETS, PROMPTS)
            pattern = (*path[:2], "*", *path[3:]) if is_of_class else path
            groups.setdefault((pattern, self._reason(path)), []).append(path)
        return tuple(
            Problem(within_block(pattern if len(paths) > 1 else paths[0]), self.place(paths[0]), reason)
            for (pattern, reason), paths in groups.items()
        )

    def _unused_below(self, path: Path, value: object) -> Iterator[Path]:
        if path in self._used or value is None:
            return
        if path in self._opened and isinstance(value, dict):
            for key, child in value.items():
                yield from self._unused_below((*path, key), child)
        else:
            yield path

    def _reason(self, path: Path) -> str:
        return self.reasons.get(path) or REASONS.get(str(path[-1]), NO_SETTING)


def within_block(path: Path) -> Path:
    return path[1:] if path[0] == BLOCK and len(path) > 1 else path
