"""Targets that an evaluation recommends (`target.rule: recommended`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from balancer.errors import ConfigError
from balancer.evaluation.files import read_outcome
from balancer.evaluation.sentence import LISTED
from balancer.evaluation.staleness import staleness
from balancer.manifest.query.rows import open_rows
from balancer.storage import MissingFolderError, open_storage
from balancer.text.commands import suggested
from balancer.text.quantities import listed

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.config.schema import Config
    from balancer.storage import Storage

RECOMMENDED = "recommended"

EVALUATION = "target.evaluation"

NO_RUN_HINT = f"{EVALUATION} is the folder or bucket of a run that `balancer evaluate` has evaluated"

log = logging.getLogger(__name__)


def with_recommended_targets(config: Config, note: Callable[[str], object] = log.debug) -> Config:
    """A config whose every class has a target of its own, if its rule is `recommended`; `note` takes a line
    that says what was recommended. Other configs as they are.

    A class keeps its target of the evaluated run, or its real images where the outcome leaves out those that
    were generated. ConfigError without such an outcome, or for a class that the run did not have. Logs a
    warning if the run has changed since.
    """
    target = config.target
    open_classes = [name for name in config.classes if name not in target.classes]
    if target.rule != RECOMMENDED or not open_classes:
        return config
    assert target.evaluation is not None
    storage = _open_run(config, target.evaluation)
    rows, outcome = open_rows(storage), read_outcome(storage)
    if outcome is None:
        raise _problem(
            f"{target.evaluation} has not been evaluated", f"{suggested('evaluate', storage.uri)} finds out"
        )
    if unknown := [name for name in open_classes if name not in rows.run.targets]:
        raise _problem(
            f"{target.evaluation} has no class {unknown[0]!r}",
            "give it a target of its own in target.classes",
        )
    if stale := staleness(outcome, rows):
        log.warning("%s: %s", EVALUATION, stale)
    left_out = [name for name in open_classes if name in outcome.recommended.classes]
    classes: dict[str, int | Literal["keep"]] = {
        name: "keep" if name in left_out else rows.run.targets[name] or "keep" for name in open_classes
    }
    note(_recommendation(target.evaluation, outcome.decision, left_out))
    changed = {"target": target.model_copy(update={"classes": classes | target.classes})}
    return config.model_copy(update=changed)


def _open_run(config: Config, path: str) -> Storage:
    place = path if "://" in path else config.resolve_path(EVALUATION, path)
    try:
        return open_storage(place, create=False)
    except MissingFolderError as error:
        raise _problem(f"no such run: {path}", NO_RUN_HINT) from error


def _problem(text: str, hint: str) -> ConfigError:
    return ConfigError([f"{EVALUATION}: {text}"], hint=hint)


def _recommendation(path: str, decision: str, left_out: list[str]) -> str:
    said = "cannot tell" if decision == "cannot_tell" else f"says {decision.replace('_', ' ')}"
    without = f"; no generated images for {listed(left_out, LISTED)}" if left_out else ""
    return f"target.rule: {RECOMMENDED}: the evaluation of {path} {said}{without}"
