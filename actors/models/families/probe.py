"""Find out what a pipeline takes whose class is not in the table: make small batches and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from actors.models.families.calls import known_arguments, taken
from actors.models.families.table import ALWAYS, Family

STEPS = 2
PROMPTS = ("a red circle", "a blue square on a table beside a window")
NEGATIVE = "a green triangle"
LOW, HIGH = 3.0, 6.0
LEAST_LEVELS = 2
"""Of 255. Less can be rounding."""

_SCALES = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
_LEAST_DEFAULT = 1.0
"""A pipeline whose default is off was trained without: FLUX.1 has `true_cfg_scale: 1.0`."""


class Probe:
    """Batches of a loaded pipeline, of two images with two steps."""

    def __init__(self, pipeline: Any, width: int, height: int) -> None:
        self._pipeline = pipeline
        self._known = known_arguments(pipeline)
        self._size = {"width": width, "height": height}

    def family(self, name: str) -> Family:
        """What was found, with a note that says so."""
        guidance = self._guidance()
        off_at, negative = None, False
        if guidance is not None:
            negative = self._differ(self._make({guidance: HIGH}), self._make({guidance: HIGH}, NEGATIVE))
            off_at = self._off_at(guidance, negative)
        neighbours = self._depends_on_neighbours({guidance: HIGH} if guidance else {})
        acts = f"{guidance} acts" if guidance else "guidance has no effect"
        prompts = "negative prompts act" if negative else "negative prompts have no effect"
        return Family(
            name,
            guidance=guidance,
            off_at=off_at,
            takes_negative=negative,
            patch=1,
            alone="images depend on their neighbours" if neighbours else "",
            texts=(),
            note=f"{name} is not known; tried out: {acts}, {prompts}",
        )

    def _guidance(self) -> str | None:
        for name in filter(self._is_on, _SCALES):
            if self._differ(self._make({name: LOW}), self._make({name: HIGH})):
                return name
        return None

    def _is_on(self, name: str) -> bool:
        default = self._known[name].default if name in self._known else None
        return isinstance(default, int | float) and default > _LEAST_DEFAULT

    def _off_at(self, guidance: str, negative: bool) -> float | None:
        if not self._differ(self._make({guidance: 0.0}), self._make({guidance: 1.0})):
            return 1.0
        return 0.0 if negative else None

    def _depends_on_neighbours(self, arguments: Mapping[str, float]) -> bool:
        """Exactly: the same image with another neighbour."""
        one, other = self._make(arguments), self._make(arguments, prompts=(PROMPTS[0], NEGATIVE))
        return not np.array_equal(one[0], other[0])

    @staticmethod
    def _differ(one: np.ndarray, other: np.ndarray) -> bool:
        return bool(np.abs(one.astype(int) - other).max() >= LEAST_LEVELS)

    def _make(
        self, scales: Mapping[str, float], negative: str = "", prompts: Sequence[str] = PROMPTS
    ) -> np.ndarray:
        arguments = {
            "prompt": list(prompts),
            "negative_prompt": [negative] * len(prompts),
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in range(len(prompts))],
            "num_inference_steps": STEPS,
            "output_type": "pt",
            **self._size,
            **ALWAYS,
            **scales,
        }
        images = self._pipeline(**taken(arguments, self._known)).images
        pixels: np.ndarray = images.float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
        return pixels
