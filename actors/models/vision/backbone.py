"""An image encoder of transformers or timm: features of images, for models whose words are elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from actors.models.device import pick_device, use_full_float32
from actors.models.pretrained import load_pretrained
from actors.models.vision.layer_features import layer_features
from actors.weights.view import wrap_model_errors
from balancer.errors import WeightsError
from balancer.verification.typicality import FINAL

HINT = "verification.backbone.model must name an image encoder that transformers or timm has built in"

MOST_OTHER_TOKENS = 16
"""Beside those of the parts of an image: class and register tokens."""


class Backbone:
    """An encoder on one device, in float32."""

    def __init__(self, model: str, revision: str | None, device: str = "auto") -> None:
        self.model = model
        use_full_float32(pick_device(device))
        self._model, self._processor, folder, self.revision = load_pretrained(
            transformers.AutoModel,
            transformers.AutoImageProcessor,
            model,
            revision,
            "backbone",
            HINT,
            pick_device(device),
            torch.float32,
        )
        self._model = getattr(self._model, "vision_model", self._model)  # of a model of images and texts
        with wrap_model_errors(folder, model, HINT):
            square, wide = (self.prepare(np.full((1, 48, width, 3), 90, np.uint8)) for width in (48, 96))
            if square.shape != wide.shape:
                raise WeightsError(f"{model}: its preprocessing does not make images of one size", hint=HINT)
            if not self.look_at_batch(square, (FINAL,))[FINAL].isfinite().all():
                raise WeightsError(f"{model}: gives no numbers for a grey image", hint=HINT)

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Images uint8 (N, height, width, 3) as input of the model."""
        pictures = [Image.fromarray(image) for image in pixels]
        inputs = self._processor(pictures, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(inputs).to(self._model.device)

    @torch.inference_mode()
    def look_at_batch(self, images: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """Features (images, numbers) of inputs, of those `kinds` that this model has, by kind. The last bits
        depend on how many images are looked at together."""
        wants_layers = any(kind.startswith("block") for kind in kinds)
        outputs = self._model(images, output_hidden_states=wants_layers)
        seen: dict[str, torch.Tensor] = {}
        if wants_layers:
            maps = [as_map(layer) for layer in outputs.hidden_states or ()]
            seen = layer_features([layer for layer in maps if layer is not None], kinds)
        if FINAL in kinds:
            seen[FINAL] = F.normalize(_pooled(outputs), dim=1)
        return seen


def as_map(layer: torch.Tensor) -> torch.Tensor | None:
    """Parts of images as (N, channels, height, width), from these or from tokens (N, tokens, channels) of
    which the last are the parts of a square; None for anything else."""
    if layer.dim() == 4:
        return layer
    if layer.dim() != 3:
        return None
    tokens = layer.shape[1]
    side = math.isqrt(tokens)
    if side < 2 or tokens - side * side > MOST_OTHER_TOKENS:
        return None
    parts: torch.Tensor = layer[:, tokens - side * side :].transpose(1, 2)
    return parts.reshape(*parts.shape[:2], side, side)


def _pooled(outputs: object) -> torch.Tensor:
    pooled: torch.Tensor | None = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last: torch.Tensor = outputs.last_hidden_state  # type: ignore[attr-defined]
    return last.mean((2, 3)) if last.dim() == 4 else last.mean(1)
