"""Images as latents, encoded once for all steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from balancer.images import UnreadableImage, decode_image

Moments = NDArray[np.float32]
"""Mean and spread of the latents of one image: (2, channels, height, width)."""


def encode_image(vae: Any, file: bytes, size: tuple[int, int], max_pixels: int) -> Moments | str:
    """The latents of a file, scaled to (width, height) as a parent is, or the reason why it is no image."""
    try:
        pixels = decode_image(file, max_pixels=max_pixels)
    except UnreadableImage as error:
        return error.reason
    fitted = np.asarray(ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS))
    values = torch.from_numpy(fitted.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    encoded = vae.encode(values.to(vae.device))
    if hasattr(encoded, "latent_dist"):
        mean, spread = encoded.latent_dist.mean, encoded.latent_dist.std
    else:  # a tiny autoencoder
        mean, spread = encoded.latents, torch.zeros_like(encoded.latents)
    moments: Moments = torch.cat([mean, spread]).float().cpu().numpy()
    return moments


def scale(moments: Sequence[Moments], config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread as the denoiser sees them, by the config of the autoencoder."""
    both = torch.from_numpy(np.stack(moments))
    shift, factor = config.get("shift_factor") or 0.0, config.scaling_factor
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        channels = (1, -1, 1, 1)
        shift = torch.tensor(config.latents_mean).view(channels)
        factor = factor / torch.tensor(config.latents_std).view(channels)
    return (both[:, 0] - shift) * factor, both[:, 1] * factor
