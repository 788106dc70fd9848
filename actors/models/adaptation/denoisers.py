"""How each family of pipelines embeds captions and calls its denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Embedded = tuple[torch.Tensor, ...]
"""Hidden states (images, tokens, width), and pooled embeddings (images, width) if the family has any."""


class Denoiser:
    """Stable Diffusion 1 and 2: a UNet that sees hidden states of one text encoder."""

    part = "unet"

    def __init__(self, pipeline: Any, width: int, height: int, device: torch.device) -> None:
        self.pipeline, self.device = pipeline, device
        self.size = (height, width)

    @property
    def module(self) -> Any:
        return getattr(self.pipeline, self.part)

    def text_encoders(self) -> dict[str, Any]:
        """Those that are there, by the name of the part."""
        names = [name for name in self.pipeline.components if name.startswith("text_encoder")]
        return {name: part for name in names if (part := getattr(self.pipeline, name)) is not None}

    def embed(self, captions: Sequence[str]) -> Embedded:
        """With gradients, where they are enabled."""
        encoded = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return tuple(encoded[::2])  # without the negative ones, which are None

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, embedded: Embedded) -> torch.Tensor:
        predicted: torch.Tensor = self.module(latents, timesteps, embedded[0]).sample
        return predicted


class XLDenoiser(Denoiser):
    """Stable Diffusion XL: two text encoders, and the size of the picture."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, embedded: Embedded) -> torch.Tensor:
        words, pooled = embedded
        time_ids = self.pipeline._get_add_time_ids(
            self.size, (0, 0), self.size, pooled.dtype, text_encoder_projection_dim=pooled.shape[-1]
        )
        added = {"text_embeds": pooled, "time_ids": time_ids.to(self.device).expand(len(latents), -1)}
        predicted: torch.Tensor = self.module(latents, timesteps, words, added_cond_kwargs=added).sample
        return predicted


class SD3Denoiser(Denoiser):
    """Stable Diffusion 3: a transformer, three text encoders."""

    part = "transformer"

    def embed(self, captions: Sequence[str]) -> Embedded:
        encoded = self.pipeline.encode_prompt(
            list(captions), None, None, device=self.device, do_classifier_free_guidance=False
        )
        return tuple(encoded[::2])

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, embedded: Embedded) -> torch.Tensor:
        words, pooled = embedded
        predicted: torch.Tensor = self.module(
            hidden_states=latents, timestep=timesteps, encoder_hidden_states=words, pooled_projections=pooled
        ).sample
        return predicted


DENOISERS: dict[str, type[Denoiser]] = {
    "StableDiffusionPipeline": Denoiser,
    "StableDiffusionXLPipeline": XLDenoiser,
    "StableDiffusion3Pipeline": SD3Denoiser,
}
