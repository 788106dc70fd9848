"""Features of a model's earlier layers, which still know what a final embedding has lost."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F

from balancer.verification.heads import LAYERS

LAGS = (1, 2, 4)
GRID = 4
"""What is looked at in a layer: distances between positions, parts of an image per side."""


def layer_features(layers: Sequence[torch.Tensor], kinds: Collection[str]) -> dict[str, torch.Tensor]:
    """Features of the maps (N, channels, height, width) of up to four of a model's layers, evenly spaced in
    depth, of those `kinds` that they have.

    `block1.moments` are mean and spread of each channel, `variogram` how much it differs over 1, 2 and 4
    positions, relative to its spread, and `grid` its means in 4 x 4 parts of the image.
    """
    features = {}
    for number in range(1, min(LAYERS, len(layers)) + 1):
        asked = {kind for kind in kinds if kind.startswith(f"block{number}.")}
        if not asked:
            continue
        layer = layers[math.ceil(number * len(layers) / min(LAYERS, len(layers))) - 1].float()
        spread = layer.std((2, 3), unbiased=False)
        if (name := f"block{number}.moments") in asked:
            features[name] = torch.cat([layer.mean((2, 3)), spread], dim=1)
        lags = [lag for lag in LAGS if lag < min(layer.shape[2:])]
        if (name := f"block{number}.variogram") in asked and lags:
            features[name] = torch.cat([_step(layer, lag) / (spread + 1e-4) for lag in lags], dim=1)
        if (name := f"block{number}.grid") in asked:
            features[name] = F.adaptive_avg_pool2d(layer, GRID).flatten(1)
    return features


def _step(layer: torch.Tensor, lag: int) -> torch.Tensor:
    across = (layer[:, :, :, lag:] - layer[:, :, :, :-lag]).square().mean((2, 3))
    down = (layer[:, :, lag:] - layer[:, :, :-lag]).square().mean((2, 3))
    return ((across + down) / 2 + 1e-6).sqrt()
