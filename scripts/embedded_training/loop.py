"""The step loop of the three training stages, with its learning rate and randomness."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from balancer.dataset.sample import Picture

WARM_UP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Loop:
    steps: int
    device: torch.device
    save_every: int = 250
    log_every: int = 50

    def run(
        self,
        name: str,
        done: int,
        optimizer: torch.optim.Optimizer,
        learning_rate: float,
        loss_at: Callable[[int], torch.Tensor],
        save: Callable[[int], None],
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Steps `done` to `self.steps`. A step's randomness depends on its number alone, so a
        resumed training is the same as one that was never stopped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        started, recent = time.monotonic(), 0.0
        for step in range(done, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * self._share_of_learning_rate(step)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_at(step)
            loss.backward()
            if dist.is_initialized():
                _average_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            after_step(step + 1)
            if worker() != 0:
                continue
            recent = loss.item() if step == done else 0.98 * recent + 0.02 * loss.item()
            if (step + 1) % self.log_every == 0:
                seconds = time.monotonic() - started
                print(f"{name} step {step + 1} loss {recent:.4f} after {seconds:.0f} s", flush=True)
            if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                save(step + 1)

    def _share_of_learning_rate(self, step: int) -> float:
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        return warm_up * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * step / self.steps)))


def worker() -> int:
    """The number of this process among those that train one model together."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _average_gradients(parameters: list[torch.Tensor]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def step_generator(name: str, step: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{name}/{step}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def pixels(pictures: Picture, device: torch.device) -> torch.Tensor:
    """From uint8 (N, H, W, 3) to -1 .. 1 (N, 3, H, W), kept channels last: faster to convolve."""
    tensor = torch.as_tensor(pictures.copy()).to(device).permute(0, 3, 1, 2)
    return tensor.float() / 127.5 - 1.0
