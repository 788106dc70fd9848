"""Embeddings of images by an encoder that did not select them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from actors.evaluation.training import load_weights, rand_augment
from actors.models.device import pick_device
from actors.models.vision.backbone import Backbone
from actors.models.vision.encoder import Encoder
from balancer.config.evaluation import EncoderConfig
from balancer.errors import UsageError
from balancer.verification.typicality import FINAL

AT_ONCE = 16

SEED = 0

Embed = Callable[[NDArray[np.uint8]], torch.Tensor]
"""From (images, size, size, 3) to (images, dim)."""


def embed_all(
    settings: EncoderConfig, weights: str | None, pixels: NDArray[np.uint8], copies: int, on_gpu: bool
) -> NDArray[np.float32]:
    """(images, copies + 1, dim) of pixels (images, 3, size, size), each of length 1: of the image itself
    and of so many copies that RandAugment has changed."""
    embed = _load(settings, weights, "cuda" if on_gpu else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return np.stack([_embedded(embed, _copy(pixels, changed)) for changed in range(copies + 1)], axis=1)


def _copy(pixels: NDArray[np.uint8], changed: int) -> NDArray[np.uint8]:
    images = torch.from_numpy(pixels.copy())
    if changed:
        images = torch.stack([rand_augment()(image) for image in images])
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _embedded(embed: Embed, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    parts = [embed(pixels[start : start + AT_ONCE]) for start in range(0, len(pixels), AT_ONCE)]
    return F.normalize(torch.cat(parts).float(), dim=1).cpu().numpy()


def _load(settings: EncoderConfig, weights: str | None, device: str) -> Embed:
    if settings.model.startswith("timm:"):
        return _timm(settings.model.removeprefix("timm:"), Path(weights or ""), device)
    if settings.model.startswith("hf-hub:") or (Path(settings.model) / "open_clip_config.json").exists():
        encoder = Encoder(settings.model, settings.revision, device, None)
        return lambda pixels: encoder.look(encoder.prepare_all(pixels), ())[0]
    backbone = Backbone(settings.model, settings.revision, device)
    return lambda pixels: backbone.look_at_batch(backbone.prepare(pixels), (FINAL,))[FINAL]


def _timm(name: str, weights: Path, device: str) -> Embed:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name):
        raise UsageError(f"evaluation.encoder.model: timm has no {name!r}")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    load_weights(model, weights)
    model = model.eval().to(pick_device(device))
    shown: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    place = next(model.parameters()).device
    mean, deviation = (torch.tensor(shown[key], device=place)[:, None, None] for key in ("mean", "std"))

    @torch.inference_mode()
    def embed(pixels: NDArray[np.uint8]) -> torch.Tensor:
        images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float().div(255).to(place)
        size = shown["input_size"][1:]
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
        embedded: torch.Tensor = model((images - mean) / deviation)
        return embedded

    return embed
