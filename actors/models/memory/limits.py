"""What a process may take of a GPU's memory, and how it is noticed that there is none left."""

from __future__ import annotations

import torch

_EXHAUSTED = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)
"""What CUDA's libraries say when they get no memory for themselves, beside torch's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might work."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _EXHAUSTED)


def limit_memory(device: torch.device, share: float) -> None:
    """Keep this process to a share of its GPU's memory: what is over it is torch's out-of-memory error here,
    and not that of the process beside it."""
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def free_memory(device: torch.device) -> int:
    """The bytes of a GPU that this process may still take."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return min(free_bytes, int(torch.cuda.get_per_process_memory_fraction(device) * total_bytes))
