"""Refuse settings of a config that cannot act on its generator's family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.models.families.quantization import refuse_missing_package
from actors.models.families.table import (
    LOADED_BY_NAME,
    REFUSED,
    Family,
    recognise,
    size_multiple,
    sizes_that_work,
)
from actors.weights import resolve as weights
from actors.weights.file_rules import MARKER
from actors.weights.view import read_checked_config, read_config
from balancer.config.schema import Config
from balancer.errors import ConfigError, WeightsError

_NO_NEGATIVE = "set generation.negative_prompt to null, which leaves all negative prompts out"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a config asks of the generator by name: defaults are not asked for, so they may have no effect.

    `guidance` has a scale and its setting for each; `every_guidance` the scales of all attempts, defaults
    included. `negatives` are the settings with a negative prompt.
    """

    guidance: tuple[tuple[str, float], ...]
    every_guidance: tuple[float, ...]
    negatives: tuple[str, ...]
    width: int
    height: int
    offload: str
    compiled: bool = False


def asked(config: Config) -> Asked:
    generation = config.generation
    rungs = {
        f"attempts.rungs[{number}].guidance": rung.guidance
        for number, rung in enumerate(config.attempts.rungs)
        if rung.guidance is not None
    }
    usual = {"generation.guidance": generation.guidance}
    chosen = usual if "guidance" in generation.model_fields_set else {}
    is_usual = config.attempts.fallback is not None or any(
        rung.guidance is None for rung in config.attempts.rung_per_attempt()
    )
    return Asked(
        guidance=tuple((chosen | rungs).items()),
        every_guidance=(*(usual.values() if is_usual else ()), *rungs.values()),
        negatives=tuple(_negatives(config)),
        width=generation.width,
        height=generation.height,
        offload=generation.offload,
        compiled=generation.compile,
    )


def _negatives(config: Config) -> Iterator[str]:
    if config.generation.negative_prompt is None:
        return
    if config.generation.negative_prompt:
        yield "generation.negative_prompt"
    for name, wanted in config.classes.items():
        if wanted.negative_prompt:
            yield f"classes.{name}.negative_prompt"
    for facet, values in config.facets.items():
        for value, described in values.values.items():
            if described.negative_prompt:
                yield f"facets.{facet}.values.{value}.negative_prompt"


def find_problems(family: Family, multiple: int, asked: Asked) -> list[str]:
    """Each setting that has no effect, with its value and what to change."""
    return [
        *_idle_guidance(family, asked),
        *_idle_negatives(family, asked),
        *_wrong_size(family, multiple, asked),
        *_idle_offload(family, asked),
        *_no_compile(family, asked),
    ]


def _idle_guidance(family: Family, asked: Asked) -> Iterator[str]:
    for knob, scale in asked.guidance:
        if family.guidance is None and scale > 1:
            yield f"{knob}: {scale:g} has no effect, because {family.name} takes no guidance; remove it"


def _idle_negatives(family: Family, asked: Asked) -> Iterator[str]:
    if not asked.negatives or any(map(family.uses_negative, asked.every_guidance)):
        return
    first, more = asked.negatives[0], len(asked.negatives) - 1
    which = f"{first}{f' and {more} more' if more else ''}"
    if not family.takes_negative:
        yield f"{which}: no effect, because {family.name} takes no negative prompt; {_NO_NEGATIVE}"
    else:
        scales = ", ".join(f"{scale:g}" for scale in sorted(set(asked.every_guidance)))
        yield (
            f"{which}: no effect, because negative prompts act through guidance, which is off in every"
            f" attempt ({scales}); set generation.guidance above {family.off_at:g}, or {_NO_NEGATIVE}"
        )


def _wrong_size(family: Family, multiple: int, asked: Asked) -> Iterator[str]:
    sizes = sizes_that_work(family, multiple, asked.width, asked.height)
    if (asked.width, asked.height) not in sizes:
        works = " and ".join(f"{width} x {height}" for width, height in sizes)
        yield (
            f"generation.width, generation.height: {family.name} makes no image of {asked.width} x"
            f" {asked.height}; {works} {'works' if len(sizes) == 1 else 'work'}"
        )


def _idle_offload(family: Family, asked: Asked) -> Iterator[str]:
    if asked.offload == "text_encoders" and not family.keeps_embeddings:
        yield (
            f"generation.offload: text_encoders would have {family.name} encode every prompt again on the"
            " CPU; set it to auto or model"
        )


def _no_compile(family: Family, asked: Asked) -> Iterator[str]:
    if asked.compiled and family.compile_fault:
        yield (
            f"generation.compile: true does not work with {family.name}: {family.compile_fault};"
            " set it to false"
        )


def refuse(family: Family, multiple: int, asked: Asked) -> None:
    """ConfigError if a setting has no effect on the family."""
    if problems := find_problems(family, multiple, asked):
        raise ConfigError(problems)


# ---- from the files of a model -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recognised:
    """`family` is None for a class that is not in the table; then `multiple` is 1."""

    class_name: str
    family: Family | None
    multiple: int = 1

    def __str__(self) -> str:
        if self.family is None:
            return f"{self.class_name} is not known: what it takes is tried out when it has loaded"
        alone = f"; one image at a time, because {self.family.alone}" if self.family.alone else ""
        return f"{self.family.name}{alone}"


def recognise_folder(folder: Path, model: str) -> Recognised:
    """The family of a pipeline by its configs; weights need not be there. WeightsError if it cannot work."""
    index = read_config(folder, MARKER["generator"], model)
    class_name = str(index.get("_class_name"))
    if reason := REFUSED.get(class_name):
        raise WeightsError(
            f"{model}: {class_name} is not supported: {reason}",
            hint="generation.model must name another text-to-image pipeline",
        )

    def config_of(component: str) -> Mapping[str, Any]:
        name = f"{component}/config.json"
        return read_checked_config(folder, name, model) if (folder / name).is_file() else {}

    family = recognise(index, config_of)
    multiple = 1 if family is None else size_multiple(family, config_of)
    return Recognised(class_name, family, multiple)


def is_loaded_by_name(class_name: str) -> bool:
    return class_name in LOADED_BY_NAME


def check_generator(config: Config, *, ask_hub: bool) -> Recognised | None:
    """The family of a config's generator, whose settings all have an effect; None if it is not on this
    machine and the hub is not asked. ConfigError, and what `weights.check` raises."""
    wanted = config.generation
    refuse_missing_package(wanted.quantization)
    folder = weights.configs_folder(wanted.model, wanted.revision, wanted.variant, ask_hub=ask_hub)
    if folder is None:
        return None
    recognised = recognise_folder(folder, wanted.model)
    if recognised.family is not None:
        refuse(recognised.family, recognised.multiple, asked(config))
    return recognised
