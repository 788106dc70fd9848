"""What goes into the call of a pipeline, and what its errors mean."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.models.families.table import ALWAYS, Family
from balancer.errors import WeightsError, first_line
from balancer.scheduling.prompts import Request
from balancer.verification.verdict import Used

OFF = 0.0

_DETERMINISTIC = (AttributeError, ImportError, NotImplementedError, TypeError, ValueError)
"""A pipeline raises these for its arguments or its packages: the same call fails again."""


def known_arguments(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """What the call of a pipeline takes, by name."""
    return inspect.signature(pipeline.__call__).parameters


def taken(arguments: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Those of the arguments that a pipeline takes: no family takes all."""
    return {name: value for name, value in arguments.items() if name in known}


def used(family: Family, guidance: float | None) -> Used:
    """What of a request acts, for its row."""
    scale = None if family.guidance is None else OFF if guidance is None else guidance
    return Used(scale, family.uses_negative(scale))


def settings(family: Family, guidance: float | None) -> dict[str, Any]:
    """The arguments besides words, size and seeds."""
    scale = {} if family.guidance is None else {family.guidance: used(family, guidance).guidance}
    return {**ALWAYS, **scale}


def words(family: Family, requests: Sequence[Request]) -> dict[str, list[str]]:
    """Negative prompts are always text, even if empty: pipelines treat an absent one differently, and an
    image must not change with its neighbours."""
    prompts = {"prompt": [request.prompt for request in requests]}
    if not family.takes_negative:
        return prompts
    return prompts | {"negative_prompt": [request.negative_prompt for request in requests]}


@contextlib.contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn errors that would occur again into a WeightsError, which ends a run at once."""
    try:
        yield
    except _DETERMINISTIC as error:
        raise WeightsError(
            f"{model}: the pipeline refuses the call: {type(error).__name__}: {first_line(error)}",
            hint="check the settings of generation against the model's documentation",
        ) from error


def refuse_other_size(model: str, made: tuple[int, int], asked: tuple[int, int]) -> None:
    """Sizes are (height, width). WeightsError if a pipeline made another than was asked."""
    if made != asked:
        raise WeightsError(
            f"{model}: asked for {asked[1]} x {asked[0]} pixels, the pipeline made {made[1]} x {made[0]}",
            hint=f"set generation.width to {made[1]} and generation.height to {made[0]}",
        )
