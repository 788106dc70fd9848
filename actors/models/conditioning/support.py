"""Which pipelines can start from an image. Needs no model library: it is asked before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.config.schema import SIMULATED
from balancer.errors import ConfigError

if TYPE_CHECKING:
    from balancer.config.schema import Config

IMAGE_TO_IMAGE = frozenset(
    {
        "FluxPipeline",
        "QwenImagePipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPipeline",
        "ZImagePipeline",
    }
)
"""Text-to-image pipelines whose image-to-image pipeline in diffusers has the same parts and a strength."""


def refuse_without_image_to_image(config: Config) -> None:
    """ConfigError if the generator cannot start from an image. Of a model on the hub it reads the small files
    alone."""
    made = config.generation
    if made.conditioning == "text" or config.actors.kind == SIMULATED:
        return
    from actors.weights.resolve import named_pipeline

    name = named_pipeline(made.model, made.revision, made.variant)
    if name not in IMAGE_TO_IMAGE:
        raise ConfigError(
            [f"generation.conditioning: diffusers has no image-to-image pipeline with a strength for {name}"],
            hint="set generation.conditioning: text, or choose another generation.model",
        )
