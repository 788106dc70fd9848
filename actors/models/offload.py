"""Which parts of a pipeline stay on a GPU, by how much memory it has free; pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["none", "text_encoders", "model", "sequential"]

ROOM = 1.1
"""Memory is cut into pieces and never quite filled."""

ACTIVATIONS_PER_PIXEL = 2_500
"""Bytes beside the weights for each pixel of an image. SDXL was published to peak at 9.0 GB for one image of
1024 x 1024 in bfloat16 (github.com/huggingface/diffusion-fast), 2.1 GB above its weights; rounded up."""

LARGEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class Placement:
    mode: Mode
    reason: str


def place(component_bytes: Mapping[str, int], pixels: int, free_bytes: int, wanted: str) -> Placement:
    """The fastest way that fits, unless the config wants another. `component_bytes` are the weights of each
    part as they are loaded, `pixels` those of one image.

    Offloading costs: text encoders next to nothing, as prompts are encoded once; whole parts about 40 %;
    layer by layer about five times the time.
    """
    weights = sum(component_bytes.values())
    encoders = sum(size for name, size in component_bytes.items() if name.startswith("text_encoder"))
    largest = max(component_bytes.values(), default=0)
    need = pixels * ACTIVATIONS_PER_PIXEL
    told = f"{weights / 1e9:.1f} GB of weights, {free_bytes / 1e9:.1f} GB free"
    if wanted != "auto":
        return Placement(_mode(wanted), f"{told}; generation.offload: {wanted}")
    ways: list[tuple[Mode, int, str]] = [
        ("none", weights, "everything on the GPU"),
        ("text_encoders", weights - encoders, "text encoders on the CPU"),
        ("model", largest, "each part on the GPU only while it works"),
    ]
    for mode, held, what in ways:
        if (held + need) * ROOM <= free_bytes:
            return Placement(mode, f"{what}: {told}")
    return Placement("sequential", f"layer by layer through the GPU, which is slow: {told}")


def _mode(wanted: str) -> Mode:
    modes: dict[str, Mode] = {mode: mode for mode in ("none", "text_encoders", "model", "sequential")}
    return modes[wanted]


def largest_batch(one_bytes: int, two_bytes: int, free_bytes: int) -> int:
    """The largest power of two of images that fit, up to 32. `one_bytes` and `two_bytes` are what batches of
    one and of two were seen to take beside the weights."""
    each = max(1, two_bytes - one_bytes)
    fixed = max(0, one_bytes - each)
    batch = 1
    while batch < LARGEST_BATCH and (fixed + 2 * batch * each) * ROOM <= free_bytes:
        batch *= 2
    return batch
