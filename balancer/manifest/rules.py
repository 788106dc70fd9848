"""The rules under which verdicts were taken, as far as they differ from the config in run.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from balancer.manifest.fragment import Stamp


@dataclass(frozen=True, slots=True)
class Rules:
    """What `balancer rejudge` changed of the config in run.json: `overrides` is nested as the config is, and
    holds changed settings only. `complete` is False if it was stopped before all verdicts followed."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    def as_detail(self) -> dict[str, Any]:
        """What a fragment of verdicts says of them."""
        return {"overrides": self.overrides, "complete": self.complete}


def rules_of(stamps: Iterable[Stamp]) -> Rules:
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
            yield f"{'.'.join((*path, name))}={json.dumps(value, ensure_ascii=False)}"


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
