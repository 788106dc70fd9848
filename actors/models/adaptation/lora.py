"""LoRA matrices in the parts of a pipeline: added, initialised, and named as diffusers' files name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save

ADAPTER = "default"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LENGTH_BYTES = 8
"""Of a header; it is padded to a multiple."""

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraParts:
    """The parts of a pipeline with LoRA matrices, `parts` by name. Their weights are in float32."""

    def __init__(self, denoiser: Mapping[str, Any], texts: Mapping[str, Any], rank: int, layers: str) -> None:
        self._rank = rank
        self._parts = {**denoiser, **texts}
        for name, part in denoiser.items():
            self._add(name, list(ATTENTION) if layers == "attention" else _every_layer(part))
        for name in texts:
            self._add(name, list(TEXT_ATTENTION))
        self.parameters = self._named()

    def _add(self, name: str, targets: list[str]) -> None:
        part = self._parts[name]
        part.requires_grad_(False)
        config = LoraConfig(r=self._rank, lora_alpha=self._rank, target_modules=targets)
        part.add_adapter(config, adapter_name=ADAPTER)
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """By name, in an order that does not depend on how they were added."""
        found = {
            f"{part}.{name.replace(f'.{ADAPTER}', '')}": parameter
            for part, module in self._parts.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        return dict(sorted(found.items()))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """A from a normal distribution, B zero, so that nothing is changed yet."""
        for name, parameter in self.parameters.items():
            if ".lora_A." in name:
                drawn = torch.randn(parameter.shape, generator=generator) / self._rank
                parameter.copy_(drawn.to(parameter.device))
            else:
                parameter.zero_()

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name].to(parameter.device))

    def export(self) -> dict[str, torch.Tensor]:
        """As `load_lora_weights` of the pipeline reads them. The scale is 1: alpha is the rank."""
        return {
            f"{part}.{name}": value.detach().cpu().contiguous()
            for part, module in self._parts.items()
            for name, value in get_peft_model_state_dict(
                module, adapter_name=ADAPTER, save_embedding_layers=False
            ).items()
        }


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; the same bytes for the same content, which safetensors' own order of metadata does
    not give."""
    data: bytes = save(dict(tensors))
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data[LENGTH_BYTES + length :]


def _every_layer(part: Any) -> list[str]:
    return [
        name
        for name, layer in part.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and name
    ]
