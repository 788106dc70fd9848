"""How far a training is, as the bytes of a safetensors file: the next step follows from it, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

MOMENTS = ("exp_avg", "exp_avg_sq")
LOSSES = "losses"
_SQUARES = "exp_avg_sq/"

_NUMBER_BYTES, _LOSS_BYTES = 4, 8
_ENTRY_BYTES = 300
"""Of a tensor in the header, besides its name, at most."""


def most_bytes(parameters: Mapping[str, torch.nn.Parameter], steps: int) -> int:
    """Size of an encoded state of these parameters, at most."""
    of_one = sum(
        _NUMBER_BYTES * parameter.numel() + len(name) + _ENTRY_BYTES for name, parameter in parameters.items()
    )
    return (1 + len(MOMENTS)) * of_one + _LOSS_BYTES * steps + _ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class State:
    """After `step` steps. `moments` are those of AdamW, by kind and parameter; `losses` one per step."""

    step: int
    parameters: Mapping[str, torch.Tensor]
    moments: Mapping[str, Mapping[str, torch.Tensor]]
    losses: torch.Tensor

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        losses: list[float],
    ) -> State:
        moments = {  # of layers that have no part in the result, zero
            kind: {
                name: optimizer.state[parameter].get(kind, torch.zeros_like(parameter)).detach().cpu()
                for name, parameter in parameters.items()
            }
            for kind in MOMENTS
        }
        values = {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
        return cls(len(losses), values, moments, torch.tensor(losses, dtype=torch.float64))

    def encode(self) -> bytes:
        tensors = {f"parameter/{name}": value for name, value in self.parameters.items()}
        for kind, values in self.moments.items():
            tensors |= {f"{kind}/{name}": value.contiguous() for name, value in values.items()}
        data: bytes = save({**tensors, LOSSES: self.losses})
        return data

    @classmethod
    def decode(
        cls, data: bytes, parameters: Mapping[str, torch.nn.Parameter], steps: int | None = None
    ) -> State:
        """ValueError unless it is one of a training of these parameters, of `steps` at most."""
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise ValueError(f"it is no safetensors file: {error}") from error
        wanted = {
            f"{kind}/{name}": parameter.shape
            for kind in ("parameter", *MOMENTS)
            for name, parameter in parameters.items()
        }
        losses = tensors.pop(LOSSES, None)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if losses is None or losses.ndim != 1 or shapes != wanted:
            raise ValueError("its tensors are not those of this training")
        if not all(
            tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()
        ):
            raise ValueError("its numbers are not finite, or not in float32")
        if steps is not None and len(losses) > steps:
            raise ValueError(f"it is of {len(losses):,} steps, and there are {steps:,}")
        if losses.dtype != torch.float64 or not bool(losses.isfinite().all()):
            raise ValueError("its losses are no finite numbers")
        if any(bool((tensor < 0).any()) for name, tensor in tensors.items() if name.startswith(_SQUARES)):
            raise ValueError("its squares are negative")
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, parameter_name = name.partition("/")
            parts.setdefault(kind, {})[parameter_name] = tensor
        return cls(len(losses), parts["parameter"], {kind: parts[kind] for kind in MOMENTS}, losses)

    def restore(self, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Into an optimizer that has made no step."""
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                **{kind: self.moments[kind][name].to(parameter.device) for kind in MOMENTS},
            }
