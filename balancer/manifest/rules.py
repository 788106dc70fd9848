"""The rules under which verdicts were taken, as far as they differ from the config in run.json."""

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
    return any(
        len(path) == len(allowed)
        and all(wanted in (ANY, part) for part, wanted in zip(path, allowed, strict=True))
        for allowed in JUDGEABLE
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """What `balancer rejudge` changed of the config in run.json: `overrides` is nested as the config is, and
    holds changed settings only. `complete` is False if it was stopped before all verdicts followed."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    def as_detail(self) -> dict[str, Any]:
        """What a fragment of verdicts says of them."""
        return {"overrides": self.overrides, "complete": self.complete}


def collect_rules(stamps: Iterable[Stamp]) -> Rules:
    """Of every change of the rules; verdicts that change for another reason tell of none."""
    rules = Rules()
    for stamp in stamps:
        if stamp.event == "verdicts" and stamp.detail and "overrides" in stamp.detail:
            overrides = merged(rules.overrides, stamp.detail["overrides"])
            rules = Rules(overrides, complete=bool(stamp.detail.get("complete", True)))
    return rules


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
