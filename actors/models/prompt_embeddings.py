"""Prompt embeddings, cached by text.

A run uses the same few hundred wordings again and again. Each text is encoded on its own, so its embedding
does not depend on its neighbours in a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

MAX_BYTES = 256_000_000
"""About 800 texts of SDXL in half precision. Kept in host memory; moving them to a GPU is fast."""

_Embedded = tuple[torch.Tensor, ...]
"""Hidden states (1, tokens, width) and, for SDXL, the pooled embedding (1, width)."""

_PIPELINES = (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline)


class PromptEmbeddings:
    """The embeddings of a pipeline's texts. `device` is where its text encoders compute, `dtype` what the
    pipeline computes with; None if that is the encoders' own."""

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        max_bytes: int = MAX_BYTES,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._pipeline, self._device, self._max_bytes = pipeline, device, max_bytes
        self._dtype = dtype
        self._known: OrderedDict[str, _Embedded] = OrderedDict()
        self._bytes = 0

    @classmethod
    def supports(cls, pipeline: Any) -> bool:
        """Other pipelines get their prompts as text."""
        return type(pipeline) in _PIPELINES

    def arguments(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], guided: bool, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Arguments of the pipeline's call that replace its prompts, on `device`."""
        names = ("prompt_embeds", "pooled_prompt_embeds")
        arguments = self._named(names, prompts, device)
        if guided:
            arguments |= self._named([f"negative_{name}" for name in names], negative_prompts, device)
        return arguments

    def _named(
        self, names: Sequence[str], texts: Sequence[str], device: torch.device
    ) -> dict[str, torch.Tensor]:
        parts = zip(*map(self._embedded, texts), strict=True)
        return {name: torch.cat(part).to(device) for name, part in zip(names, parts, strict=False)}

    def _embedded(self, text: str) -> _Embedded:
        if text in self._known:
            self._known.move_to_end(text)
            return self._known[text]
        embedded = self._encode(text)
        self._known[text] = embedded
        self._bytes += _size(embedded)
        while self._bytes > self._max_bytes and len(self._known) > 1:
            self._bytes -= _size(self._known.popitem(last=False)[1])
        return embedded

    @torch.no_grad()
    def _encode(self, text: str) -> _Embedded:
        encoded = self._pipeline.encode_prompt(
            text, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return tuple(
            part.to("cpu", self._dtype) for part in encoded[::2]
        )  # without the negative ones, which are None


def _size(embedded: _Embedded) -> int:
    return sum(part.numel() * part.element_size() for part in embedded)
