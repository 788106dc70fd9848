"""What a denoiser learns to predict: the noise, the velocity or the flow, as its scheduler says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

from balancer.errors import WeightsError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents to denoise, the timesteps that the denoiser is told, and what it should predict."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


class Diffusion:
    """Noise added along a schedule of betas (Ho et al. 2020; velocity: Salimans and Ho 2022)."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        self._scheduler = scheduler

    def noised(self, clean: torch.Tensor, generator: torch.Generator) -> Noised:
        noise = torch.randn(clean.shape, generator=generator)
        count = self._scheduler.config.num_train_timesteps
        timesteps = torch.randint(count, (len(clean),), generator=generator)
        return Noised(
            self._scheduler.add_noise(clean, noise, timesteps),
            timesteps,
            self._target(clean, noise, timesteps),
        )

    def _target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        match self._scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                velocity: torch.Tensor = self._scheduler.get_velocity(clean, noise, timesteps)
                return velocity
            case _:
                return clean


class FlowMatching:
    """Straight paths from image to noise; timesteps are logit-normal (Esser et al. 2024), and shifted as the
    scheduler shifts them."""

    def __init__(self, timesteps: int, shift: float) -> None:
        self._timesteps, self._shift = timesteps, shift

    def noised(self, clean: torch.Tensor, generator: torch.Generator) -> Noised:
        noise = torch.randn(clean.shape, generator=generator)
        share = torch.randn(len(clean), generator=generator).sigmoid()
        sigma = self._shift * share / (1 + (self._shift - 1) * share)
        part = sigma.view(-1, *[1] * (clean.ndim - 1))
        return Noised((1 - part) * clean + part * noise, sigma * self._timesteps, noise - clean)


def objective_of(scheduler: Any, model: str) -> Diffusion | FlowMatching:
    """WeightsError for a scheduler with another kind of noise."""
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        return FlowMatching(config.num_train_timesteps, float(config.get("shift", 1.0)))
    if "beta_schedule" in config and config.get("prediction_type", "epsilon") in PREDICTIONS:
        return Diffusion(DDPMScheduler.from_config(config))
    raise WeightsError(
        f"{model}: no adapter can be trained with the noise of {type(scheduler).__name__}",
        hint="`generation.model` must name a model with a usual noise schedule, or with flow matching",
    )
