"""Exchange the scheduler of a pipeline for another one of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from balancer.errors import ConfigError, first_line
from balancer.text.names import near
from balancer.text.safetext import printable

SETTING = "generation.scheduler"

_LONGEST_REASON = 300

OWN_NOISE = frozenset({"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"})
"""They draw noise for a whole batch, without the generators of its images."""


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """The name of a class of diffusers, and arguments that replace those of the model's own scheduler."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def exchange(pipeline: Any, choice: SchedulerChoice) -> None:
    """ConfigError for a class that diffusers lacks or that does not fit the pipeline, and for options that it
    does not take."""
    if choice.name in OWN_NOISE:
        raise ConfigError(
            [f"{SETTING}: {choice.name} draws noise of its own, so no image could be made again"]
        )
    own, wanted = type(pipeline.scheduler), _find(choice.name)
    if not _fits(wanted, own):
        names = ", ".join(name for name, each in _every().items() if _fits(each, own))
        raise ConfigError(
            [f"{SETTING}: {choice.name} does not fit {type(pipeline).__name__}, which has {own.__name__}"],
            hint=f"these fit: {names}",
        )
    taken = _arguments(wanted)
    if unknown := sorted(choice.options.keys() - taken):
        raise ConfigError(
            [f"{SETTING}.options: {choice.name} takes no {', '.join(unknown)}"],
            hint=f"it takes {', '.join(sorted(taken))}",
        )
    try:
        pipeline.scheduler = wanted.from_config(pipeline.scheduler.config, **choice.options)
    except Exception as error:  # torch and the schedulers raise any class
        reason = printable(first_line(error)[:_LONGEST_REASON])
        raise ConfigError([f"{SETTING}.options: {choice.name} refuses them: {reason}"]) from error


def _find(name: str) -> Any:
    known = _every()
    if name in known:
        return known[name]
    meant = near(name, [*known])
    raise ConfigError(
        [f"{SETTING}: diffusers {diffusers.__version__} has no {name}"],
        hint=f"did you mean {meant}?" if meant else "",
    )


def _every() -> dict[str, Any]:
    """Those whose packages are there, by name."""
    named = {name: getattr(diffusers, name) for name in sorted(dir(diffusers)) if name.endswith("Scheduler")}
    return {
        name: each
        for name, each in named.items()
        if isinstance(each, type) and issubclass(each, diffusers.SchedulerMixin) and name not in OWN_NOISE
    }


def _fits(wanted: Any, own: Any) -> bool:
    """As diffusers declares; it leaves out LCM and TCD, which take the same noise schedules all the same."""
    declared = wanted in own._get_compatibles() or own in wanted._get_compatibles()
    same_schedules = {"beta_schedule", "prediction_type"} <= _arguments(wanted) & _arguments(own)
    return wanted is own or declared or same_schedules


def _arguments(scheduler: Any) -> set[str]:
    return inspect.signature(scheduler.__init__).parameters.keys() - {"self"}
