"""Which pipelines adapters can be trained for. Needs no model library: it is asked before anything loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.weights import resolve as weights
from balancer.config.schema import SIMULATED
from balancer.errors import ConfigError

if TYPE_CHECKING:
    from balancer.config.schema import Config

WITH_TEXT_ENCODERS = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
"""Pipelines whose text encoders can be trained, too."""

TRAINABLE = WITH_TEXT_ENCODERS | {"StableDiffusion3Pipeline"}


def refuse_untrainable(config: Config) -> bool:
    """Whether text encoders are trained. ConfigError if no adapter can be trained for the generator, or not
    as the config asks. Of a model on the hub it reads the small files alone."""
    if config.actors.kind == SIMULATED:
        raise ConfigError(["actors.kind: simulated actors have nothing to adapt"])
    made = config.generation
    name = weights.named_pipeline(made.model, made.revision, made.variant)
    if name not in TRAINABLE:
        known = ", ".join(sorted(TRAINABLE))
        raise ConfigError(
            [f"generation.model: no adapter can be trained for {name}; for {known} it can"],
            hint="adapters that something else has trained go into generation.loras",
        )
    asked = config.adaptation.text_encoders
    if asked and name not in WITH_TEXT_ENCODERS:
        raise ConfigError([f"adaptation.text_encoders: those of {name} cannot be trained; remove it"])
    return name in WITH_TEXT_ENCODERS if asked is None else asked
