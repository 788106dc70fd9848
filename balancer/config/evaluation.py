"""The settings of `balancer evaluate`: how the experiment is made, and what counts as a difference."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from balancer.config.section import Section

ARCHITECTURE_PATTERN = r"^(timm:)?[a-z0-9_]+(\.[a-z0-9_]+)?$"

LEAST_SEEDS = 5
"""With fewer, a one-sided sign-flip test cannot reach 5 %: 1 in 2^5 is 3.1 %, 1 in 2^4 is 6.3 %."""


class EncoderConfig(Section):
    """An image encoder whose frozen embeddings the quick evaluation trains a linear head on. It must not be
    the verifier or its backbone: those selected the images."""

    model: str
    """`timm:NAME` for an architecture of timm with its weights in `weights`, `hf-hub:REPOSITORY` or a folder
    in open_clip layout for a model of open_clip, anything else is a hub id or a folder in transformers
    layout."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits."""

    weights: str | None = None
    """For `timm:NAME`: a safetensors file with its weights, relative to the config file or the working
    folder."""

    @model_validator(mode="after")
    def _timm_has_weights(self) -> Self:
        if self.model.startswith("timm:") != (self.weights is not None):
            raise ValueError("weights: a safetensors file, for a model timm:NAME and no other")
        return self


class EvaluationConfig(Section):
    """The experiment of `balancer evaluate`: whether a classifier gets better with the generated images."""

    depth: Literal["quick", "full"] = "quick"
    """`quick` trains a linear head on the embeddings of `encoder`, or without one a small convolutional
    network on pixels. `full` trains all weights of `architecture`."""

    encoder: EncoderConfig | None = None
    architecture: str = Field(default="resnet18", pattern=ARCHITECTURE_PATTERN, max_length=100)
    """For `full`: an architecture of torchvision by its name, or one of timm as `timm:NAME`."""

    weights: str | None = None
    """For `full`: a safetensors file to start `architecture` from, without the last layer if it has other
    classes; by default training starts from random weights."""

    metric: Literal["balanced_accuracy", "accuracy"] = "balanced_accuracy"
    """`balanced_accuracy` is the mean recall over the classes that have enough test images."""

    margin: float = Field(default=0.02, gt=0, lt=1)
    """The smallest difference that matters: 0.02 are two points. A difference that is certainly smaller
    either way counts as none."""

    seeds: int = Field(default=10, ge=LEAST_SEEDS, le=100)
    """How often each arm is trained. More seeds make the interval narrower, as far as chance in training is
    what widens it."""

    real_shares: tuple[float, ...] = (0.3, 0.5, 0.8)
    """The parts of a class's draws that go to its real images, of which the validation images choose one."""

    steps: int = Field(default=300, ge=10, le=10_000_000)
    """Optimiser steps, the same in every arm."""

    batch_size: int = Field(default=32, ge=2, le=65_536)
    """Images a step."""

    image_size: int | None = Field(default=None, ge=16, le=1024)
    """Height and width of the images that are trained on; by default 32 for the small network, and 224 for
    everything else."""

    min_test_images: int = Field(default=10, ge=5, le=1_000_000)
    """A class with fewer test images is left out of the metric, and its verdict is that nobody can tell."""

    num_cpus: float = Field(default=1, ge=0.1, le=1000)
    """CPU cores that training one arm with one seed reserves."""

    num_gpus: float = Field(default=0, ge=0, le=1000)
    """GPUs that training one arm with one seed reserves; above 1 only whole numbers."""

    @field_validator("real_shares")
    @classmethod
    def _shares_are_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not shares or len(shares) > 20 or not all(0 < share < 1 for share in shares):
            raise ValueError("1 to 20 numbers between 0 and 1, such as [0.3, 0.5, 0.8]")
        return tuple(sorted(set(shares)))
