"""From a candidate to what the generator is asked for: the ladder of rungs, and the words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.cells import Candidate, Cell

if TYPE_CHECKING:
    from balancer.config import Config


@dataclass(frozen=True, slots=True)
class Rung:
    """Settings of one attempt."""

    threshold: float
    guidance: float
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One image asked of a generator; `seed` is unsigned 64-bit."""

    prompt: str
    negative_prompt: str
    seed: int


def ladder(config: Config) -> tuple[Rung, ...]:
    """The rungs in the order a slot climbs them; attempt k uses rung k-1."""
    guidance = config.generation.guidance
    usual = Rung(threshold=config.verification.threshold, guidance=guidance)
    rungs = (usual,) * config.attempts.max
    if config.attempts.fallback is None:
        return rungs
    return (*rungs, Rung(config.attempts.fallback.threshold, guidance, fallback=True))


def request_for(candidate: Candidate, rung: Rung, config: Config) -> Request:
    """The words and the seed of a candidate: each attempt, and each slot, takes the next wording."""
    cell = candidate.slot.cell
    turn = candidate.slot.index + candidate.attempt - 1
    return Request(
        prompt=_prompt(cell, turn, rung, config),
        negative_prompt=_negative_prompt(cell, config),
        seed=candidate.seed(config.seed),
    )


def _prompt(cell: Cell, turn: int, rung: Rung, config: Config) -> str:
    wanted = config.classes[cell.class_name]
    wordings = (rung.fallback and wanted.fallback_prompts) or wanted.prompts
    parts = [wordings[turn % len(wordings)]]
    for facet, value in cell.facets:
        phrases = config.facets[facet].values[value].prompts
        # Shifted whenever the pairs begin to repeat, so that each wording meets each phrase.
        shift = turn // math.lcm(len(wordings), len(phrases))
        parts.append(phrases[(turn + shift) % len(phrases)])
    if wanted.variations:
        parts.append(wanted.variations[turn // len(wordings) % len(wanted.variations)])
    return ", ".join(parts)


def _negative_prompt(cell: Cell, config: Config) -> str:
    parts = [config.generation.negative_prompt, config.classes[cell.class_name].negative_prompt]
    parts += [config.facets[facet].values[value].negative_prompt for facet, value in cell.facets]
    return ", ".join(part for part in parts if part)
