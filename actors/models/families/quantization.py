"""Quantise the denoiser of a pipeline while it loads, by diffusers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from balancer.errors import UnavailableError, WeightsError

if TYPE_CHECKING:
    import torch

NONE = "none"

_METHODS = {
    "bitsandbytes-8bit": "bitsandbytes",
    "bitsandbytes-4bit": "bitsandbytes",
    "torchao-int8": "torchao",
}
"""As the config of a quantised part names them."""

_DENOISERS = ("transformer", "unet")


def refuse_missing_package(wanted: str) -> None:
    """UnavailableError if the package that quantises is not installed. Needs no model library."""
    package = wanted.partition("-")[0]
    if wanted != NONE and find_spec(package) is None:
        raise UnavailableError(
            f"generation.quantization: {wanted} needs {package}, which is not installed",
            hint=f"pip install 'balancer[{package}]', or set generation.quantization to none",
        )


def quantization_config(wanted: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The argument of `from_pretrained`; None for no quantisation. UnavailableError for a device that it does
    not run on."""
    if wanted == NONE:
        return None
    refuse_missing_package(wanted)
    import diffusers

    if wanted == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config: Any = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    else:
        if device.type != "cuda":
            raise UnavailableError(
                f"generation.quantization: {wanted} needs a GPU, and the generator runs on {device.type}",
                hint="set generation.quantization to torchao-int8 or none",
            )
        config = diffusers.BitsAndBytesConfig(**_bits(wanted, dtype))
    return diffusers.PipelineQuantizationConfig(quant_mapping=dict.fromkeys(_DENOISERS, config))


def refuse_without_effect(pipeline: Any, wanted: str, model: str) -> None:
    """WeightsError if the denoiser was not quantised as asked: weights that are quantised already stay so."""
    if wanted == NONE:
        return
    parts = (getattr(pipeline, name, None) for name in _DENOISERS)
    configs = (getattr(part.config, "quantization_config", None) for part in parts if part is not None)
    given = next(filter(None, configs), None)
    method, bits = getattr(given, "quant_method", None), getattr(given, "load_in_4bit", False)
    if getattr(method, "value", method) != _METHODS[wanted] or bits is not wanted.endswith("4bit"):
        raise WeightsError(
            f"{model}: generation.quantization: {wanted} has no effect on {type(pipeline).__name__}",
            hint="name a model with plain weights and one transformer or UNet, or set"
            " generation.quantization to none",
        )


def _bits(wanted: str, dtype: torch.dtype) -> dict[str, Any]:
    if wanted == "bitsandbytes-8bit":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
