"""Images that a pipeline makes while an adapter is trained: samples to show, and those of the prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from actors.models.families import calls
from actors.models.families.table import Family
from balancer.adaptation.plan import Sample, Task
from balancer.images import Pixels

AT_ONCE = 4


class Sampler:
    """`model` is the name of the pipeline in the config."""

    def __init__(self, pipeline: Any, family: Family | None, model: str) -> None:
        self._pipeline, self._family, self._model = pipeline, family, model
        self._known = calls.known_arguments(pipeline)

    @torch.no_grad()
    def pixels(self, samples: Sequence[Sample], task: Task) -> Pixels:
        """uint8 (N, height, width, 3)."""
        made = np.concatenate([np.asarray(part) for part in self._make(samples, task, "np")])
        pixels: Pixels = (np.clip(np.nan_to_num(made), 0, 1) * 255).round().astype(np.uint8)
        return pixels

    @torch.no_grad()
    def latents(self, samples: Sequence[Sample], task: Task) -> torch.Tensor:
        """As the denoiser sees them, in float32 on the CPU."""
        return torch.cat(self._make(samples, task, "latent")).float().cpu()

    def _make(self, samples: Sequence[Sample], task: Task, output_type: str) -> list[Any]:
        parts = (samples[start : start + AT_ONCE] for start in range(0, len(samples), AT_ONCE))
        with calls.explained(self._model):
            return [self._call(part, task, output_type) for part in parts]

    def _call(self, samples: Sequence[Sample], task: Task, output_type: str) -> Any:
        scale = {} if self._family is None else calls.settings(self._family, task.guidance)
        arguments = {
            **scale,
            "prompt": [one.prompt for one in samples],
            "generator": [torch.Generator("cpu").manual_seed(one.seed) for one in samples],
            "num_inference_steps": task.inference_steps,
            "width": task.width,
            "height": task.height,
            "output_type": output_type,
        }
        return self._pipeline(**calls.taken(arguments, self._known)).images
