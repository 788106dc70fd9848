"""`generation.loras`: adapters that are loaded into the generator."""

from __future__ import annotations

import posixpath
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from balancer.config.section import Section

MAX_LORAS = 16
MAX_WEIGHT = 100

FILE_PATTERN = r"^[^\\\x00-\x1f]{1,200}\.safetensors$"

FileName = Annotated[str, StringConstraints(pattern=FILE_PATTERN)]


class LoraConfig(Section):
    """LoRA weights for the generator, in the layout of diffusers or kohya. Weights that do not fit its
    pipeline are refused."""

    model: str = Field(min_length=1)
    """A hub id, a folder, or a `.safetensors` file."""

    revision: str | None = None
    """Commit of the hub repository, 40 hex digits."""

    file: FileName | None = None
    """The weights in the repository or folder. By default `pytorch_lora_weights.safetensors`; in a folder
    also the only `.safetensors` file."""

    weight: float = Field(default=1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)
    """How strongly it acts. 1 is as it was trained."""

    @field_validator("file")
    @classmethod
    def _is_inside(cls, file: str | None) -> str | None:
        if file is not None and (posixpath.normpath(file) != file or file.startswith(("/", "../"))):
            raise ValueError("must be a file in the repository or folder, such as `weights.safetensors`")
        return file

    @field_validator("weight")
    @classmethod
    def _acts(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("0 has no effect; remove the LoRA from the list")
        return weight
