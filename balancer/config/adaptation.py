"""The section `adaptation`: how adapters are trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from balancer.config.section import Section


class AdaptationConfig(Section):
    """How `balancer adapt` trains LoRA adapters on the training images (see [adaptation](adaptation.md)). A
    run does not read it: its adapters are in `generation.loras`. Defaults are those of DataDream (Kim et al.
    2024), which then generates with `generation.guidance: 2.0`."""

    scope: Literal["dataset", "class", "both"] = "dataset"
    """`dataset` trains one adapter on the training images of all classes, `class` one on those of each class,
    `both` all of these."""

    contexts: bool = True
    """Whether captions state the facet values that the metadata give. An adapter then learns the facets apart
    from the class, and a class can be asked for in those that only images of other classes show (BOB, 2025).
    Otherwise captions name the class alone."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the LoRA matrices."""

    layers: Literal["attention", "all"] = "attention"
    """Layers that get LoRA matrices: the projections of every attention, or every linear layer and
    convolution. `all` learns more from the same images, and takes more memory."""

    text_encoders: bool | None = None
    """Whether the attention of the text encoders gets LoRA matrices, too. By default it does for Stable
    Diffusion 1, 2 and XL. Other families cannot."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Of AdamW at the first step; it falls to 0 along half a cosine."""

    epochs: int = Field(default=200, ge=1, le=100_000)
    """How often each adapter is shown each of its images."""

    steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimiser steps of each adapter, in the place of `epochs`."""

    batch_size: int = Field(default=8, ge=1, le=1024)
    """Images of one step. If GPU memory runs out, they are computed in smaller parts, with the same
    result."""

    prior_weight: float = Field(default=0.0, ge=0, le=100)
    """Weight of the loss on images that the model made before it was adapted (prior preservation,
    DreamBooth). 0 goes without."""

    prior_images: int | None = Field(default=None, ge=1, le=100_000)
    """Images that the model makes for `prior_weight`, for each adapter. By default 100."""

    min_images: int = Field(default=4, ge=1, le=1_000_000)
    """Training images, of different pictures, that an adapter needs. A class with fewer gets none of its
    own."""

    checkpoint_every: int = Field(default=100, ge=1, le=1_000_000)
    """Steps between two checkpoints. `actors.call_timeout_s` is the longest that so many may take."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third slower, with a fraction
    of the memory."""

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Initial weights, order of images and noise follow from this number."""

    @model_validator(mode="after")
    def _prior_acts(self) -> Self:
        if not self.prior_weight and self.prior_images is not None:
            raise ValueError("prior_images has no effect without prior_weight")
        return self
