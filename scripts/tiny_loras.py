"""Small LoRAs with random weights for a pipeline, saved as diffusers saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

DENOISERS = ("unet", "transformer")
_TARGETS = {part: ["to_q", "to_k", "to_v", "to_out.0"] for part in DENOISERS}
_OF_ENCODERS = ["q_proj", "v_proj"]


def save_lora(pipeline: Any, folder: Path, parts: Sequence[str] = DENOISERS, scale: float = 0.5) -> Path:
    """LoRA weights for these `parts` of the pipeline, which is left with an adapter. Returns the folder."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name in parts:
        if (part := getattr(pipeline, name, None)) is None:
            continue
        targets = _TARGETS.get(name, _OF_ENCODERS)
        part.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets), "made")
        random = torch.Generator().manual_seed(len(layers))
        layers[f"{name}_lora_layers"] = {
            key: torch.randn(tensor.shape, generator=random) * scale
            for key, tensor in get_peft_model_state_dict(part, adapter_name="made").items()
        }
    type(pipeline).save_lora_weights(folder, **layers)
    return folder
