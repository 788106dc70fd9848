"""Stand-ins for generator and verifier: the same methods, set speed, set pass rate, faults on demand.

They try a cluster or the driver without models; what they make is noise and never data. Whether an
image passes is drawn from its seed alone, which travels in its first eight bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from balancer.prompts import Request
from balancer.verdict import ImageFlags, Measurement

EMBEDDING_DIM = 16
BLOCK_PIXELS = 8
HANG_S = 1e6

Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong at the `call`-th call (from 1) of a stand-in.

    `die` ends the process at once, `raise` raises SimulatedFault, `hang` does not come back. With `once`, a
    file that is made when the fault strikes, it strikes no second time: not in the actor's next
    life, nor in another actor.
    """

    call: int
    kind: Literal["die", "raise", "hang"]
    once: str | None = None


class SimulatedFault(RuntimeError):
    pass


class SimulatedGenerator:
    """Draws blocks of noise from each request's seed; a batch takes `service_s`, the start `start_s`."""

    def __init__(
        self,
        batch_size: int,
        width: int,
        height: int,
        service_s: float = 0.0,
        start_s: float = 0.0,
        faults: Sequence[Fault] = (),
        sleep: Sleep = time.sleep,
    ) -> None:
        self.batch_size, self.width, self.height = batch_size, width, height
        self._service_s, self._sleep = service_s, sleep
        self._trouble = _Trouble(faults, sleep)
        sleep(start_s)

    def generate(self, requests: Sequence[Request], guidance: float) -> tuple[np.ndarray, list[ImageFlags]]:
        """Noise of shape (N, height, width, 3); a short batch takes as long as a full one."""
        self._trouble.strike()
        self._sleep(self._service_s * -(-len(requests) // self.batch_size))
        pixels = np.stack([_noise(request.seed, self.width, self.height) for request in requests])
        return pixels, [ImageFlags() for _ in requests]

    def describe(self) -> dict[str, str]:
        return {
            "model": "simulated",
            "revision": "",
            "device": "none",
            "dtype": "uint8 (simulated)",
            "batch_size": str(self.batch_size),
        }


class SimulatedVerifier:
    """Passes `pass_rate` of all seeds, whatever was asked for: a passing image has every value of every
    property at 0.9 or more (so they do not sum to 1), a failing one lacks one property."""

    def __init__(
        self,
        properties: Mapping[str, Mapping[str, Sequence[str]]],
        pass_rate: float,
        service_s: float = 0.0,
        start_s: float = 0.0,
        faults: Sequence[Fault] = (),
        sleep: Sleep = time.sleep,
    ) -> None:
        self._values = {name: tuple(values) for name, values in properties.items()}
        self._pass_rate, self._service_s, self._sleep = pass_rate, service_s, sleep
        self._trouble = _Trouble(faults, sleep)
        sleep(start_s)

    def measure(self, pixels: np.ndarray, flags: Sequence[ImageFlags]) -> list[Measurement]:
        """One measurement per image, drawn from the seed it carries."""
        self._trouble.strike()
        self._sleep(self._service_s)
        return [self._measure_one(image, flag) for image, flag in zip(pixels, flags, strict=True)]

    def describe(self) -> dict[str, str]:
        return {"model": "simulated", "revision": "", "device": "none", "embedding_dim": str(EMBEDDING_DIM)}

    def _measure_one(self, image: np.ndarray, flags: ImageFlags) -> Measurement:
        seed = carried_seed(image)
        random = np.random.default_rng([seed, 1])  # apart from the stream that drew the pixels
        passes = random.random() < self._pass_rate
        weakest = random.choice(list(self._values))
        likely, unlikely = random.uniform(0.9, 1.0), random.uniform(0.0, 0.3)
        vector = random.standard_normal(EMBEDDING_DIM)
        luminance = image[::BLOCK_PIXELS, ::BLOCK_PIXELS].mean(axis=2) / 255
        return Measurement(
            probabilities={
                name: dict.fromkeys(values, likely if passes or name != weakest else unlikely)
                for name, values in self._values.items()
            },
            brightness=float(luminance.mean()),
            deviation=float(luminance.std()),
            flags=flags,
            phash=f"{seed:016x}",
            embedding=(vector / np.linalg.norm(vector)).astype("<f2").tobytes(),
        )


def carried_seed(image: np.ndarray) -> int:
    """The seed a simulated image was drawn from."""
    return int.from_bytes(image.reshape(-1)[:8].tobytes(), "little")


def _noise(seed: int, width: int, height: int) -> np.ndarray:
    # Blocks, because single pixels of noise would make the files of a trial larger than real ones.
    rows, columns = -(-height // BLOCK_PIXELS), -(-width // BLOCK_PIXELS)
    blocks = np.random.default_rng([seed, 0]).integers(0, 256, (rows, columns, 3), np.uint8)
    image = blocks.repeat(BLOCK_PIXELS, 0).repeat(BLOCK_PIXELS, 1)[:height, :width].copy()
    image.reshape(-1)[:8] = np.frombuffer(seed.to_bytes(8, "little"), np.uint8)
    return image


class _Trouble:
    def __init__(self, faults: Sequence[Fault], sleep: Sleep) -> None:
        self._faults, self._sleep = tuple(faults), sleep
        self._calls = 0

    def strike(self) -> None:
        self._calls += 1
        for fault in self._faults:
            if fault.call == self._calls and _first_time(fault):
                self._act(fault)

    def _act(self, fault: Fault) -> None:
        if fault.kind == "die":
            os._exit(1)
        if fault.kind == "hang":
            self._sleep(HANG_S)
            return
        raise SimulatedFault(f"simulated fault at call {fault.call}")


def _first_time(fault: Fault) -> bool:
    if fault.once is None:
        return True
    try:
        Path(fault.once).open("x").close()
    except FileExistsError:
        return False
    return True
