"""What a config starts from where its author has not chosen: models that suit photographs, plain wordings."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub, pinned to a commit."""

    model: str
    revision: str
    variant: str | None = None


GENERATOR = HubModel(
    "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", variant="fp16"
)
VERIFIER = HubModel(
    "hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "1627032197142fbe2a7cfec626f4ced3ae60d07a"
)


def in_words(name: str) -> str:
    """`severely_burnt` as it would be said; a name without any letter or digit stays as it is."""
    words = re.sub(r"[\W_]+", " ", name).strip()
    return words or name


def class_wording(class_name: str) -> str:
    return f"a photo of a {in_words(class_name)}"
