"""From requests to images: a diffusers text-to-image pipeline behind one plain class.

Batches always have the same shape: a short one is filled up with its last request and cut afterwards,
so that an image never depends on how many others were asked for. Noise is drawn on the CPU, one
`torch.Generator` per image, so that every device starts from the same latents. (torch seeds
its CPU generator with the low 32 bits of a seed.)
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")  # read once, when diffusers is imported

import diffusers
import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from actors import weights
from actors.device import device_name, pick_device, pick_dtype, use_threads
from balancer.errors import UnavailableError, WeightsError, first_line
from balancer.prompts import Request
from balancer.verdict import ImageFlags

log = logging.getLogger(__name__)


class Generator:
    """A pipeline on one device. `device` is `auto`, `cuda` or `cpu`; `dtype` as in the config."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        variant: str | None,
        width: int,
        height: int,
        steps: int,
        batch_size: int,
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.device = pick_device(device)
        use_threads(self.device, threads)
        self.dtype, self.dtype_reason = pick_dtype(dtype, self.device)
        self.width, self.height, self.steps = width, height, steps
        self.batch_size = batch_size
        self.model = model
        folder = weights.resolve(model, revision, variant, "generator")
        self.revision = weights.identity(model, revision, folder)
        self._pipeline = _load(folder, model, variant, self.dtype, self.device)
        self._known_arguments = frozenset(inspect.signature(self._pipeline.__call__).parameters)

    def generate(self, requests: Sequence[Request], guidance: float) -> tuple[np.ndarray, list[ImageFlags]]:
        """Make one image per request: uint8 (N, height, width, 3), and what is known of each.

        A guidance of 1 or less turns classifier-free guidance off. If CUDA memory runs out, the batch
        shape is halved for good and the work done again with the same seeds.
        """
        while True:
            try:
                parts = [self._generate_batch(part, guidance) for part in _parts(requests, self.batch_size)]
            except torch.cuda.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise self._too_large() from error
            else:
                pixels = np.concatenate([pixels for pixels, _ in parts])
                return pixels, [flags for _, part in parts for flags in part]
            # After the handler, whose traceback keeps the tensors of the failed batch alive.
            self._halve_batch()

    def describe(self) -> dict[str, str]:
        """What made the images, for the manifest: model, revision, device, dtype and its reason, batch."""
        return {
            "model": self.model,
            "revision": self.revision,
            "device": device_name(self.device),
            "dtype": f"{str(self.dtype).removeprefix('torch.')} ({self.dtype_reason})",
            "batch_size": str(self.batch_size),
        }

    def _generate_batch(
        self, requests: Sequence[Request], guidance: float
    ) -> tuple[np.ndarray, list[ImageFlags]]:
        filled = [*requests, *[requests[-1]] * (self.batch_size - len(requests))]
        finite = _FiniteLatents()
        output = self._pipeline(**self._arguments(filled, guidance, finite))
        images = output.images
        decoded = _nonfinite(images)
        flagged = getattr(output, "nsfw_content_detected", None) or [None] * len(filled)
        flags = [
            ImageFlags(pixels + latents, None if flag is None else float(flag), self.batch_size)
            for pixels, latents, flag in zip(decoded, finite.per_image(len(filled)), flagged, strict=True)
        ]
        return _to_pixels(images)[: len(requests)], flags[: len(requests)]

    def _arguments(
        self, requests: Sequence[Request], guidance: float, callback: _FiniteLatents
    ) -> dict[str, Any]:
        arguments = {
            "prompt": [request.prompt for request in requests],
            # Always words, even empty ones: pipelines treat an absent negative prompt differently, and
            # an image must not change with its neighbours.
            "negative_prompt": [request.negative_prompt for request in requests],
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "guidance_scale": guidance,
            "num_inference_steps": self.steps,
            "width": self.width,
            "height": self.height,
            "output_type": "pt",
            "callback_on_step_end": callback,
        }
        return {name: value for name, value in arguments.items() if name in self._known_arguments}

    def _halve_batch(self) -> None:
        torch.cuda.empty_cache()
        self.batch_size //= 2
        log.warning("out of CUDA memory: batches of %d from here on", self.batch_size)

    def _too_large(self) -> UnavailableError:
        return UnavailableError(
            f"one image of {self.width} x {self.height} does not fit into the memory of"
            f" {device_name(self.device)}",
            hint="lower generation.width and generation.height, or leave the GPU to the generator alone",
        )


class _FiniteLatents:
    """A step callback that keeps the last latents: decoding can hide an infinity behind a clamp."""

    def __init__(self) -> None:
        self._latents: torch.Tensor | None = None

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._latents = tensors.get("latents")
        return {}

    def per_image(self, count: int) -> list[int]:
        if self._latents is None or len(self._latents) != count:
            return [0] * count
        return _nonfinite(self._latents)


def _nonfinite(values: torch.Tensor) -> list[int]:
    """How many values of each image are not a number or infinite."""
    counts: list[int] = values.isfinite().logical_not().flatten(1).sum(1).tolist()
    return counts


def _load(folder: Path, model: str, variant: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it remarks on every autoencoder but the usual one
    try:
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            variant=variant,
            **_without_watermark(folder),
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise WeightsError(
            f"{model}: the pipeline in {folder} does not load: {first_line(error)}",
            hint="generation.model must name a text-to-image pipeline in diffusers layout",
        ) from error
    diffusers.utils.logging.set_verbosity_warning()  # such as of prompts that are too long
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if getattr(pipeline, "unet", None) is not None:  # convolutions; transformers have none to speed up
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def _without_watermark(folder: Path) -> dict[str, bool]:
    # SDXL would stamp an invisible watermark on the CPU if a package for it happens to be installed;
    # provenance is written into the file instead. Other pipelines do not know the argument.
    is_sdxl = weights.pipeline_class(folder).startswith("StableDiffusionXL")
    return {"add_watermarker": False} if is_sdxl else {}


def _parts(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def _to_pixels(images: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) in 0..1 to uint8 (N, H, W, 3); converted on the device, a quarter of the bytes to move."""
    scaled = images.float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels: np.ndarray = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
