"""From a candidate to what the generator is asked for: the ladder of rungs, and the words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY, Candidate, Cell

if TYPE_CHECKING:
    from balancer.config.schema import Config


@dataclass(frozen=True, slots=True)
class Rung:
    """Settings of one attempt.

    `turn` is how many wordings it is on from the slot's first attempt; `strengthen` says the property that
    was weakest in the attempt before first, and in two wordings. `strength` is how far a candidate moves away
    from its parent, None without conditioning. Rows of a `fallback` are marked so. `guidance` is None once it
    turned out that the generator takes none.
    """

    threshold: float
    guidance: float | None
    turn: int = 0
    strengthen: bool = False
    fallback_prompts: bool = False
    fallback: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class ParentImage:
    """A real image of the run to make a candidate from: its row's id, file and hash of the pixels."""

    id: str
    file_name: str
    pixel_sha256: str


@dataclass(frozen=True, slots=True)
class Request:
    """One image asked of a generator; `seed` is unsigned 64-bit.

    `wording` is the number of the class's wording that was used, from 0 on: `prompts` first, then
    `fallback_prompts`. `changes` says in words what the rung changed against a plain attempt. `strength` is
    there with a `parent`, and only then.
    """

    prompt: str
    negative_prompt: str
    seed: int
    wording: int = 0
    changes: tuple[str, ...] = ()
    parent: ParentImage | None = None
    strength: float | None = None


def ladder(config: Config) -> tuple[Rung, ...]:
    """The rungs in the order a slot climbs them; attempt k uses rung k-1."""
    usual, guidance = config.verification.threshold, config.generation.guidance
    rungs: list[Rung] = []
    strengths = _strengths(config)
    turn = 0
    for wanted in config.attempts.rung_per_attempt():
        turn += wanted.next_wording and bool(rungs)
        threshold = usual if wanted.threshold is None else wanted.threshold
        rungs.append(
            Rung(
                threshold=threshold,
                guidance=guidance if wanted.guidance is None else wanted.guidance,
                strength=strengths[len(rungs)],
                turn=turn,
                strengthen=wanted.strengthen,
                fallback_prompts=wanted.fallback_prompts,
                fallback=threshold < usual,
            )
        )
    if (last := config.attempts.fallback) is not None:
        at_last = Rung(last.threshold, guidance, turn + 1, fallback_prompts=True, fallback=True)
        rungs.append(replace(at_last, strength=strengths[-1]))
    return tuple(rungs)


def _strengths(config: Config) -> list[float | None]:
    """Of each attempt, and of one after the last."""
    if config.generation.conditioning == "text":
        return [None] * (config.attempts.max + 1)
    usual = config.generation.strength_ladder
    own = [rung.strength for rung in config.attempts.rung_per_attempt()] + [None]
    return [usual[min(at, len(usual) - 1)] if one is None else one for at, one in enumerate(own)]


def allowed_wordings(cell: Cell, rung: Rung, config: Config) -> range:
    """The numbers of the class wordings that a rung may use."""
    wanted = config.classes[cell.class_name]
    usual = len(wanted.prompts)
    if rung.fallback_prompts and wanted.fallback_prompts:
        return range(usual, usual + len(wanted.fallback_prompts))
    return range(usual)


def request_for(
    candidate: Candidate,
    rung: Rung,
    config: Config,
    *,
    weakest: str | None = None,
    wording: int | None = None,
    parent: ParentImage | None = None,
) -> Request:
    """The words and the seed of a candidate: each slot, and each rung that says so, takes the next wording.

    `weakest` is the reason for which the attempt before was rejected, which may be no property; `wording` is
    one of `allowed_wordings`, instead of the one whose turn it is.
    """
    cell = candidate.slot.cell
    turn = candidate.slot.index + rung.turn
    allowed = allowed_wordings(cell, rung, config)
    in_turn = allowed[turn % len(allowed)]
    number = in_turn if wording is None else wording
    phrases = _phrases(cell, turn, number, allowed, config)
    strengthened = weakest if rung.strengthen and _can_be_strengthened(phrases, weakest) else None
    return Request(
        prompt=", ".join([*_in_order(phrases, strengthened), *_variation(cell, turn, allowed, config)]),
        negative_prompt=_negative_prompt(cell, config),
        seed=candidate.seed(config.seed),
        wording=number,
        changes=(
            *_changes(rung, number, number != in_turn, strengthened, allowed, config),
            *(_other_strength(rung, config) if parent is not None else ()),
        ),
        parent=parent,
        strength=None if parent is None else rung.strength,
    )


Phrases = dict[str, tuple[str, str]]
"""Of each property of a cell, the class first: its phrase, and the next wording, which may be the same."""


def _phrases(cell: Cell, turn: int, number: int, allowed: range, config: Config) -> Phrases:
    wanted = config.classes[cell.class_name]
    wordings = (*wanted.prompts, *wanted.fallback_prompts)
    following = allowed[(number - allowed.start + 1) % len(allowed)]
    phrases = {CLASS_PROPERTY: (wordings[number], wordings[following])}
    for facet, value in cell.facets:
        known = config.facets[facet].values[value].prompts
        # Shifted whenever the pairs begin to repeat: each wording meets each phrase.
        place = turn + turn // math.lcm(len(allowed), len(known))
        phrases[facet] = (known[place % len(known)], known[(place + 1) % len(known)])
    return phrases


def _can_be_strengthened(phrases: Phrases, weakest: str | None) -> bool:
    """Not a class of one wording: it is said first, and once, anyway."""
    return weakest in phrases and _in_order(phrases, weakest) != _in_order(phrases, None)


def _in_order(phrases: Phrases, strengthened: str | None) -> list[str]:
    first = [] if strengthened is None else dict.fromkeys(phrases[strengthened])
    return [*first, *(phrase for name, (phrase, _) in phrases.items() if name != strengthened)]


def _variation(cell: Cell, turn: int, allowed: range, config: Config) -> list[str]:
    variations = config.classes[cell.class_name].variations
    return [variations[turn // len(allowed) % len(variations)]] if variations else []


def _changes(
    rung: Rung, number: int, chosen: bool, strengthened: str | None, allowed: range, config: Config
) -> tuple[str, ...]:
    changes = {
        f"wording {number}": rung.turn > 0 or chosen,
        f"strengthen {strengthened}": strengthened is not None,
        f"guidance {rung.guidance:g}": rung.guidance != config.generation.guidance,
        "fallback prompts": allowed.start > 0,
        f"threshold {rung.threshold:g}": rung.threshold != config.verification.threshold,
    }
    return tuple(change for change, made in changes.items() if made)


def _other_strength(rung: Rung, config: Config) -> tuple[str, ...]:
    first = config.generation.strength_ladder[0]
    return () if rung.strength == first else (f"strength {rung.strength:g}",)


def _negative_prompt(cell: Cell, config: Config) -> str:
    if config.generation.negative_prompt is None:
        return ""
    parts = [config.generation.negative_prompt, config.classes[cell.class_name].negative_prompt]
    parts += [config.facets[facet].values[value].negative_prompt for facet, value in cell.facets]
    return ", ".join(part for part in parts if part)
