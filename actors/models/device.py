"""The device and precision of a model, and the reason for each."""

from __future__ import annotations

import torch

from balancer.errors import UnavailableError


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU assigned to this process, if any, else the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("no CUDA device is visible", hint="set actors.device to auto or cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pick_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision for a `dtype` of the config, and the reason."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen, "as configured"
    if device.type == "cpu":
        return torch.float32, "on a CPU"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "the GPU has it"
    return torch.float16, "the GPU has no bfloat16"


def use_full_float32(device: torch.device) -> None:
    """Keep TensorFloat-32 out of this process: cuDNN's convolutions use it by default, and it keeps 10 bits
    of a number's 23."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def use_threads(device: torch.device, threads: int | None) -> None:
    """Set torch's number of CPU threads if it computes on the CPU; None keeps its default."""
    if device.type == "cpu" and threads is not None:
        torch.set_num_threads(threads)
