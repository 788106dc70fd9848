"""A safety checker: an image classifier chosen in the config, some of whose labels mean unsafe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from PIL import Image

from actors.models.device import pick_device, use_full_float32
from actors.models.pretrained import load_pretrained
from actors.weights.view import wrap_model_errors
from balancer.errors import WeightsError

INTERNAL_BATCH = {"cpu": 4, "cuda": 16}
"""Images per batch; always the same, so a probability does not depend on the number of images."""

_HINT = "verification.safety.model must name an image classifier that transformers has built in"


class SafetyChecker:
    """A classifier on one device, in float32; `labels` are those of its labels that mean unsafe."""

    def __init__(self, model: str, revision: str | None, labels: Sequence[str], device: str = "auto") -> None:
        self.device = pick_device(device)
        use_full_float32(self.device)
        self.model = model
        self._model, self._processor, folder, self.revision = load_pretrained(
            transformers.AutoModelForImageClassification,
            transformers.AutoImageProcessor,
            model,
            revision,
            "safety checker",
            _HINT,
            self.device,
            torch.float32,
        )
        with wrap_model_errors(folder, model, _HINT):
            known = {str(label): int(index) for index, label in self._model.config.id2label.items()}
            kind = self._model.config.problem_type
        if unknown := [label for label in labels if label not in known]:
            raise WeightsError(
                f"{model}: no label {', '.join(map(repr, unknown))}; its labels are {', '.join(known)}",
                hint="correct verification.safety.labels",
            )
        self._unsafe = sorted({known[label] for label in labels})
        self._several = kind == "multi_label_classification"
        with wrap_model_errors(folder, model, _HINT, problem="cannot be used"):
            self._refuse_unusable()

    def _refuse_unusable(self) -> None:
        """Look once: what fails now would fail for every image, and be tried again each time."""
        [likely] = self.probabilities(np.full((1, 64, 64, 3), 90, np.uint8))
        if not 0.0 <= likely <= 1.0:
            raise WeightsError(f"{self.model}: gives no numbers for a grey image", hint=_HINT)

    def probabilities(self, pixels: np.ndarray) -> list[float]:
        """How likely each image of uint8 (N, height, width, 3) is unsafe: the sum over the unsafe labels."""
        size = INTERNAL_BATCH[self.device.type]
        parts = [self._see(pixels[start : start + size], size) for start in range(0, len(pixels), size)]
        return [one for part in parts for one in part]

    @torch.inference_mode()
    def _see(self, pixels: np.ndarray, size: int) -> list[float]:
        filled = [Image.fromarray(image) for image in [*pixels, *[pixels[-1]] * (size - len(pixels))]]
        inputs = self._processor(filled, return_tensors="pt").to(self.device)
        logits = self._model(**inputs).logits[: len(pixels)]
        # If labels do not exclude each other, the sum is an upper bound.
        each = logits.sigmoid() if self._several else logits.softmax(dim=1)
        unsafe: list[float] = each[:, self._unsafe].sum(dim=1).clamp(max=1.0).tolist()
        return unsafe
