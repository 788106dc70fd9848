"""How many images a generator makes at once: as many as fit into the memory of its GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.models.memory.limits import is_out_of_memory
from actors.models.offload import largest_batch

WarmUp = Callable[[int], None]
"""Makes throw-away batches of a size."""


def fit_batch(warm_up: WarmUp, device: torch.device, reserved_share: float) -> int:
    """The largest batch, estimated from the memory of batches of one and two, minus the share of the GPU that
    is reserved for other processes. 1 if two images do not fit."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    one = _measure(warm_up, 1, device)
    two = None if one is None else _measure(warm_up, 2, device)
    torch.cuda.empty_cache()
    if one is None or two is None:
        return 1
    return largest_batch(one, two, free_bytes - int(reserved_share * total_bytes))


def _measure(warm_up: WarmUp, size: int, device: torch.device) -> int | None:
    """None if a batch does not fit."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        warm_up(size)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    return torch.cuda.max_memory_allocated(device) - before


def halve_until_it_fits(warm_up: WarmUp, size: int) -> int:
    """The size, halved as often as memory runs out. The error of a single image is passed on."""
    while True:
        try:
            warm_up(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:
            return size
        # Outside the handler: its traceback keeps the tensors of the failed batch alive.
        torch.cuda.empty_cache()
        size //= 2
