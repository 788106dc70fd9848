"""Offloading: which parts of a pipeline stay on a GPU, given its free memory. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["none", "text_encoders", "model", "sequential"]

HEADROOM = 1.1
"""Fragmentation keeps memory from being filled completely."""

ACTIVATIONS_PER_PIXEL = 2_500
"""Bytes beside the weights for each pixel of an image. The published peak of SDXL is 9.0 GB for one image of
1024 x 1024 in bfloat16 (github.com/huggingface/diffusion-fast), 2.1 GB above its weights; rounded up."""

LARGEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class Offloading:
    mode: Mode
    reason: str


def choose_offloading(
    component_bytes: Mapping[str, int],
    pixels: int,
    free_bytes: int,
    wanted: str,
    *,
    keeps_embeddings: bool,
) -> Offloading:
    """The fastest mode that fits, unless the config asks for another. `component_bytes` are the sizes of the
    loaded weights of each part, `pixels` those of one image.

    Offloading the text encoders costs almost nothing if a generator `keeps_embeddings`, because prompts are
    encoded once; otherwise every batch would wait for a CPU. Whole parts cost about 40 %; layer by layer
    takes about five times as long.
    """
    weights = sum(component_bytes.values())
    encoders = sum(size for name, size in component_bytes.items() if name.startswith("text_encoder"))
    largest = max(component_bytes.values(), default=0)
    need = pixels * ACTIVATIONS_PER_PIXEL
    figures = f"{weights / 1e9:.1f} GB of weights, {free_bytes / 1e9:.1f} GB free"
    if wanted != "auto":
        return Offloading(_mode(wanted), f"{figures}; generation.offload: {wanted}")
    modes: list[tuple[Mode, int, str]] = [
        ("none", weights, "everything on the GPU"),
        ("text_encoders", weights - encoders, "text encoders on the CPU"),
        ("model", largest, "each part on the GPU only while it works"),
    ]
    if not keeps_embeddings:
        del modes[1]
    for mode, on_gpu, description in modes:
        if (on_gpu + need) * HEADROOM <= free_bytes:
            return Offloading(mode, f"{description}: {figures}")
    return Offloading("sequential", f"layer by layer through the GPU, which is slow: {figures}")


def _mode(wanted: str) -> Mode:
    modes: dict[str, Mode] = {mode: mode for mode in ("none", "text_encoders", "model", "sequential")}
    return modes[wanted]


def largest_batch(one_bytes: int, two_bytes: int, free_bytes: int) -> int:
    """The largest power of two of images that fit, up to 32. `one_bytes` and `two_bytes` are the measured
    memory of batches of one and two, beside the weights."""
    each = max(1, two_bytes - one_bytes)
    fixed = max(0, one_bytes - each)
    batch = 1
    while batch < LARGEST_BATCH and (fixed + 2 * batch * each) * HEADROOM <= free_bytes:
        batch *= 2
    return batch
