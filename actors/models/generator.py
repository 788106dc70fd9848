"""The generator: a diffusers text-to-image pipeline behind one plain class.

Batches always have the same size: a short one is padded with its last request and cut afterwards, so an image
never depends on the number of others. Images of one call have one strength, or no parent at all. Noise is
drawn on the CPU, with one `torch.Generator` per image, so every device starts from the same latents. (torch
seeds its CPU generator with the low 32 bits of a seed.)
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch

from actors.models.conditioning.image_to_image import ImageToImage
from actors.models.device import (
    device_name,
    pick_device,
    pick_dtype,
    use_full_float32,
    use_threads,
)
from actors.models.families import calls
from actors.models.families.checks import Asked, refuse
from actors.models.families.probe import Probe
from actors.models.families.quantization import NONE
from actors.models.families.table import Family
from actors.models.memory.batch_fit import fit_batch, halve_until_it_fits
from actors.models.memory.limits import is_out_of_memory, limit_memory
from actors.models.node_lock import one_at_a_time
from actors.models.pipeline import Source, load_pipeline
from actors.models.scheduler import SchedulerChoice
from actors.weights import resolve as weights
from balancer.config.loras import LoraConfig
from balancer.errors import UnavailableError
from balancer.scheduling.prompts import Request
from balancer.training.images import Decoder
from balancer.verification.verdict import ImageFlags, Made

AUTO_BATCH_ON_CPU = 8

RESERVED_SHARE = 0.15
"""Share of a GPU's memory that `auto` batches leave to the verifier and other processes."""

WARM_UP_GUIDANCE = 5.0

_PROMPT, _NEGATIVE = attrgetter("prompt"), attrgetter("negative_prompt")

log = logging.getLogger(__name__)


class Generator:
    """A pipeline on one device. `device` is `auto`, `cuda` or `cpu`; `dtype` and `offload` as in the config.

    `gpu_share` is the share of a GPU's memory that this process may take; the rest is the verifier's.
    A `batch_size` of `auto` is as large as fits beside the weights; on a CPU it is 8. Where images would
    depend on their neighbours, it is 1. ConfigError if a setting that was `asked` for has no effect.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        variant: str | None,
        width: int,
        height: int,
        steps: int,
        batch_size: int | Literal["auto"],
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        offload: str = "auto",
        compiled: bool = False,
        asked: Asked | None = None,
        parents: Decoder | None = None,
        scheduler: SchedulerChoice | None = None,
        loras: tuple[LoraConfig, ...] = (),
        gpu_share: float = 1.0,
        quantization: str = NONE,
    ) -> None:
        self.device = pick_device(device)
        use_threads(self.device, threads)
        limit_memory(self.device, gpu_share)
        self.dtype, self.dtype_reason = pick_dtype(dtype, self.device)
        if self.dtype == torch.float32:
            use_full_float32(self.device)
        self.width, self.height, self.steps = width, height, steps
        self.model, self._quantization = model, quantization
        folder = weights.resolve(model, revision, variant, "generator")
        source = Source(folder, model, variant, scheduler, loras, quantization)
        self.revision = weights.identity(model, revision, source.folder)
        pixels = width * height
        self._loaded = load_pipeline(
            source, self.dtype, self.device, pixels=pixels, offload=offload, compiled=compiled
        )
        self._pipeline = self._loaded.pipeline
        self._vae_dtype = getattr(getattr(self._pipeline, "vae", None), "dtype", self.dtype)
        self._conditioned: ImageToImage | None = None
        if parents is not None:
            self._conditioned = ImageToImage(self._pipeline, parents, width, height, model)
        self._known_arguments = calls.known_arguments(self._pipeline)
        self.family = self._find_family()
        if asked is not None:
            refuse(self.family, self._loaded.recognised.multiple, asked)
        self._warm_up_scales = _warm_up_scales(self.family, asked)
        if self.family.alone:
            batch_size = 1
        self.batch_size = AUTO_BATCH_ON_CPU if batch_size == "auto" else batch_size
        if batch_size == "auto" and self.device.type == "cuda":
            self.batch_size = fit_batch(self._warm_up, self.device, max(RESERVED_SHARE, 1.0 - gpu_share))
        if compiled:
            with one_at_a_time("compile"):  # the first one fills a cache, the others read it
                self.batch_size = halve_until_it_fits(self._warm_up, self.batch_size)

    def _find_family(self) -> Family:
        known = self._loaded.recognised
        if known.family is not None:
            return known.family
        with calls.explained(self.model):
            return Probe(self._pipeline, self.width, self.height).family(known.class_name)

    def generate(
        self, requests: Sequence[Request], guidance: float | None
    ) -> tuple[np.ndarray, list[ImageFlags]]:
        """Generate one image per request: uint8 (N, height, width, 3), with the flags of each.

        `family` says from which `guidance` on there is any. If CUDA memory runs out, the batch size is
        halved for good, and the batch is repeated with the same seeds.
        """
        pixels, made = self.begin(requests, guidance)()
        return pixels, made.flags

    def begin(
        self, requests: Sequence[Request], guidance: float | None
    ) -> Callable[[], tuple[np.ndarray, Made]]:
        """Like `generate`, but returns while the images are still being copied from the device; calling the
        result waits for them."""
        began = time.perf_counter()
        while True:
            try:
                parts = [self._generate_batch(part, guidance) for part in _parts(requests, self.batch_size)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise self._too_large() from error
            else:
                flags = [flags for _, part in parts for flags in part]
                used = calls.used(self.family, guidance)
                made = Made(flags, self.batch_size, time.perf_counter() - began, used)
                return functools.partial(_fetch, [copy for copy, _ in parts], made)
            # Outside the handler: its traceback keeps the tensors of the failed batch alive.
            self._halve_batch()

    def describe(self) -> dict[str, str]:
        """Model, revision, device, dtype, offloading and batch size, for the manifest."""
        return {
            "model": self.model,
            "revision": self.revision,
            "device": device_name(self.device),
            "dtype": f"{str(self.dtype).removeprefix('torch.')} ({self.dtype_reason})",
            "placement": "; ".join(filter(None, self._remarks())),
            "batch_size": str(self.batch_size),
        }

    def _remarks(self) -> Iterator[str]:
        yield self._loaded.offloading.reason
        yield self.family.note
        yield "" if self._quantization == NONE else f"denoiser quantised by {self._quantization}"
        if self.family.alone:
            yield f"one image at a time, because {self.family.alone}"

    def _warm_up(self, size: int) -> None:
        """Generate throw-away batches in two steps, which run every part of the pipeline: one with guidance
        and one without, if a run has both, because their shapes differ."""
        self.batch_size = size
        steps, self.steps = self.steps, 2
        try:
            for scale in self._warm_up_scales:
                self._generate_batch([Request("", "", 0)], scale)
        finally:
            self.steps = steps
            _restore_autoencoder(self._pipeline, self._vae_dtype)

    def _generate_batch(
        self, requests: Sequence[Request], guidance: float | None
    ) -> tuple[_Copy, list[ImageFlags]]:
        filled = [*requests, *[requests[-1]] * (self.batch_size - len(requests))]
        finite = _FiniteLatents()
        with calls.explained(self.model):
            output = self._call(filled, self._arguments(filled, guidance, finite))
        images = output.images
        calls.refuse_other_size(self.model, tuple(images.shape[-2:]), (self.height, self.width))
        decoded = _nonfinite(images)
        flagged = getattr(output, "nsfw_content_detected", None) or [None] * len(filled)
        flags = [
            ImageFlags(
                nonfinite=pixels + latents,
                unsafe=None if flag is None else float(flag),
                steps=None if requests[0].parent is None else finite.steps(self._pipeline.scheduler),
            )
            for pixels, latents, flag in zip(decoded, finite.per_image(len(filled)), flagged, strict=True)
        ]
        return _Copy.begin(_to_pixels(images)[: len(requests)]), flags[: len(requests)]

    def _call(self, requests: Sequence[Request], arguments: dict[str, Any]) -> Any:
        """Made from text alone, or from the parents that all of these have."""
        if requests[0].parent is None:
            return self._pipeline(**calls.taken(arguments, self._known_arguments))
        if self._conditioned is None:
            raise UnavailableError("this generator has no access to real images", hint="restart the run")
        return self._conditioned(requests, arguments)

    def _arguments(
        self, requests: Sequence[Request], guidance: float | None, callback: _FiniteLatents
    ) -> dict[str, Any]:
        words: dict[str, Any] = calls.words(self.family, requests)
        if self._loaded.embeddings is not None:
            prompts, negatives = ([*map(of, requests)] for of in (_PROMPT, _NEGATIVE))
            guided = self.family.uses_negative(guidance)
            words = self._loaded.embeddings.arguments(prompts, negatives, guided, self.device)
        return {
            **words,
            **calls.settings(self.family, guidance),
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "num_inference_steps": self.steps,
            "width": self.width,
            "height": self.height,
            "output_type": "pt",
            "callback_on_step_end": callback,
        }

    def _halve_batch(self) -> None:
        _restore_autoencoder(self._pipeline, self._vae_dtype)
        torch.cuda.empty_cache()
        self.batch_size //= 2
        log.warning("out of CUDA memory: batches of %d from here on", self.batch_size)

    def _too_large(self) -> UnavailableError:
        return UnavailableError(
            f"one image of {self.width} x {self.height} does not fit into the memory of"
            f" {device_name(self.device)}",
            hint="lower generation.width and generation.height, or reserve the GPU for the generator",
        )


def _restore_autoencoder(pipeline: Any, dtype: torch.dtype) -> None:
    """SDXL in float16 decodes in float32, and stays there if memory runs out meanwhile: its next batch would
    mix both."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None and vae.dtype != dtype:
        vae.to(dtype=dtype)


def _warm_up_scales(family: Family, asked: Asked | None) -> list[float]:
    """A guidance scale that acts and one that does not, as far as a run has them."""
    scales = (WARM_UP_GUIDANCE,) if asked is None else asked.every_guidance
    return [*{family.guides(scale): scale for scale in scales}.values()] or [WARM_UP_GUIDANCE]


class _FiniteLatents:
    """A step callback that keeps the last latents, because decoding can clamp an infinity."""

    def __init__(self) -> None:
        self._latents: torch.Tensor | None = None
        self._calls = 0

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._latents = tensors.get("latents")
        self._calls += 1
        return {}

    def steps(self, scheduler: Any) -> int | None:
        """Denoising steps that were run; None if the pipeline does not say. A scheduler of a higher order
        takes several calls for each."""
        return -(-self._calls // getattr(scheduler, "order", 1)) or None

    def per_image(self, count: int) -> list[int]:
        if self._latents is None or len(self._latents) != count:
            return [0] * count
        return _nonfinite(self._latents)


def _nonfinite(values: torch.Tensor) -> list[int]:
    """The number of NaN and infinite values of each image."""
    counts: list[int] = values.isfinite().logical_not().flatten(1).sum(1).tolist()
    return counts


def _parts(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """In order, each of one strength: another one takes another number of steps."""
    for _, alike in itertools.groupby(requests, key=lambda request: request.strength):
        part = list(alike)
        yield from (part[start : start + size] for start in range(0, len(part), size))


def _to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) in 0..1 to uint8 (N, H, W, 3), on the device: a quarter of the bytes to copy."""
    scaled = images.float().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of images from the device to memory in progress; the device continues with other work."""

    pixels: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def begin(cls, pixels: torch.Tensor) -> _Copy:
        if pixels.device.type != "cuda":
            return cls(pixels, None)
        host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        host.copy_(pixels, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(host, arrived)

    def wait(self) -> np.ndarray:
        if self.arrived is not None:
            self.arrived.synchronize()
        pixels: np.ndarray = self.pixels.numpy()
        return pixels


def _fetch(copies: Sequence[_Copy], made: Made) -> tuple[np.ndarray, Made]:
    return np.concatenate([copy.wait() for copy in copies]), made
