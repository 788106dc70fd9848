"""The rules under which verdicts were taken, as far as they differ from run.json.

A plan revision replaces the config, the plan, the counts and the targets of the run; `balancer rejudge`
overrides single settings of the config since.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from balancer.config.dotted import join_keys
from balancer.manifest.log.fragment import Stamp

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.manifest.runfile import RunInfo

ANY = "*"

JUDGEABLE: tuple[tuple[str, ...], ...] = (
    ("verification", "threshold"),
    ("verification", "brightness"),
    ("verification", "copies", ANY),
    ("verification", "parent", ANY),
    ("verification", "unjudged"),
    ("verification", "safety", "max_unsafe"),
    ("attempts", "fallback", "threshold"),
    ("attempts", "rungs", ANY, "threshold"),
    ("facets", ANY, "values", ANY, "brightness"),
)
"""The settings whose verdicts follow from what rows keep."""


def config_under(info: RunInfo, overrides: Mapping[str, Any]) -> Config:
    """The config of a run as `balancer rejudge` may have changed it since; ManifestError if this version does
    not understand it."""
    from balancer.config.schema import Config

    return dataclasses.replace(info, config=merged(info.config, overrides)).config_as(Config)


def is_judgeable(path: Sequence[str | int]) -> bool:
    """Whether `balancer rejudge` can apply another value of a setting."""
    return any(matches(path, allowed) for allowed in JUDGEABLE)


def matches(path: Sequence[str | int], pattern: Sequence[str]) -> bool:
    return len(path) == len(pattern) and all(
        wanted in (ANY, part) for part, wanted in zip(path, pattern, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Revision:
    """A plan revision as the log names it: its number, the sha256 of its file, and what it changed, in words.
    What run.json says is revision 1."""

    number: int
    sha256: str
    changes: tuple[str, ...] = ()

    def as_detail(self) -> dict[str, Any]:
        return {"number": self.number, "sha256": self.sha256, "changes": list(self.changes)}

    @classmethod
    def from_detail(cls, detail: Mapping[str, Any]) -> Revision:
        return cls(detail["number"], detail["sha256"], tuple(detail["changes"]))


@dataclass(frozen=True, slots=True)
class Rules:
    """The plan `revision` of a run, None for that of run.json, and what `balancer rejudge` changed of its
    config since: `overrides` is nested as the config is, and holds changed settings only. `complete` is False
    if whoever changed the rules was stopped before all verdicts followed."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True
    revision: Revision | None = None

    def as_detail(self) -> dict[str, Any]:
        """What a fragment of verdicts says of them."""
        named = {"revision": self.revision.as_detail()} if self.revision else {}
        return {"overrides": self.overrides, "complete": self.complete, **named}


def collect_rules(stamps: Iterable[Stamp], since: Revision | None = None) -> Rules:
    """Of every change of the rules; verdicts that change for another reason tell of none. `since` is the
    revision before the first of the stamps."""
    rules = Rules(revision=since)
    for stamp in stamps:
        if stamp.event == "verdicts" and stamp.detail and "overrides" in stamp.detail:
            rules = _followed(rules, stamp.detail)
    return rules


def _followed(rules: Rules, detail: Mapping[str, Any]) -> Rules:
    revision = rules.revision
    if named := detail.get("revision"):
        revision = Revision.from_detail(named)
    before = rules.overrides if revision == rules.revision else {}
    overrides = merged(before, detail["overrides"])
    return Rules(overrides, bool(detail.get("complete", True)), revision)


def list_revisions(stamps: Iterable[Stamp]) -> list[tuple[Revision, Stamp]]:
    """Every plan revision but the first, with the fragment that committed it."""
    revisions: dict[Revision, Stamp] = {}
    for stamp in stamps:
        if stamp.event == "verdicts" and (named := (stamp.detail or {}).get("revision")):
            revisions.setdefault(Revision.from_detail(named), stamp)
    return [*revisions.items()]


def as_settings(overrides: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Overrides as `--set` takes them: `verification.threshold=0.7`."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from as_settings(value, (*path, name))
        else:
            yield f"{join_keys((*path, name))}={json.dumps(value, ensure_ascii=False)}"


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them overridden."""
    together = dict(settings)
    for name, value in overrides.items():
        inner = together.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            together[name] = merged(inner, value)
        else:
            together[name] = value
    return together
