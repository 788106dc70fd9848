"""What all trainings of an evaluation share. Plain values: they go to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from balancer.config.evaluation import EvaluationConfig

Looked: TypeAlias = "NDArray[np.uint8] | NDArray[np.float32]"
"""Pixels (images, 3, size, size), or embeddings (images, changes + 1, dim)."""

SMALL_SIZE, USUAL_SIZE = 32, 224

RATES = {"network": (0.003, 0.01, 0.03), "head": (0.001, 0.01, 0.1), "full": (0.0003, 0.001, 0.003)}
"""Learning rates of which the validation images choose one, with real images alone."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`architecture` is None for the small network and for a linear head."""

    kind: str
    classes: tuple[str, ...]
    steps: int
    batch_size: int
    image_size: int
    num_cpus: float
    num_gpus: float
    architecture: str | None = None
    weights: str | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        return RATES[self.kind]


def recipe_of(settings: EvaluationConfig, classes: tuple[str, ...], weights: str | None) -> Recipe:
    quick = "network" if settings.encoder is None else "head"
    kind = "full" if settings.depth == "full" else quick
    return Recipe(
        kind=kind,
        classes=classes,
        steps=settings.steps,
        batch_size=settings.batch_size,
        image_size=settings.image_size or (SMALL_SIZE if kind == "network" else USUAL_SIZE),
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        architecture=settings.architecture if kind == "full" else None,
        weights=weights if kind == "full" else None,
    )
