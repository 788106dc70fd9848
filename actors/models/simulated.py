"""Simulated generator and verifier: the same methods, with configured speed, pass rate and faults.

They test a cluster or the driver without models; their images are noise. Whether an image passes is drawn
from its seed, in its first eight bytes, and can depend on its wording, in the next three.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from balancer.cells import Cell
from balancer.images import UnreadableImage, decode_image, pixel_sha256
from balancer.scheduling.prompts import Request
from balancer.verification.verdict import ImageFlags, Made, Measurement

EMBEDDING_DIM = 16
BLOCK_PIXELS = 8
HANG_S = 1e6

Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at the `call`-th call (from 1).

    `die` ends the process at once, `raise` raises SimulatedFault, `hang` never returns. `once` is a file that
    the fault creates, and it does not strike again while that exists: not after a restart of the actor, nor
    in another actor.
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
        self._faults = _Faults(faults, sleep)
        sleep(start_s)

    def generate(self, requests: Sequence[Request], guidance: float) -> tuple[np.ndarray, list[ImageFlags]]:
        """Noise of shape (N, height, width, 3); a short batch takes as long as a full one."""
        pixels, made = self.begin(requests, guidance)
        return pixels, made.flags

    def begin(self, requests: Sequence[Request], guidance: float) -> tuple[np.ndarray, Made]:
        """Like `generate`, with the batch size and the time it took."""
        self._faults.strike()
        seconds = self._service_s * -(-len(requests) // self.batch_size)
        self._sleep(seconds)
        pixels = np.stack([_noise(request, self.width, self.height) for request in requests])
        return pixels, Made([ImageFlags() for _ in requests], self.batch_size, seconds)

    def describe(self) -> dict[str, str]:
        return {
            "model": "simulated",
            "revision": "",
            "device": "none",
            "dtype": "uint8 (simulated)",
            "batch_size": str(self.batch_size),
        }


class SimulatedVerifier:
    """Passes `pass_rate` of all seeds, whatever the request: a passing image has every value of every
    property at 0.9 or more (these do not sum to 1), a failing one lacks one property.

    `pass_rates` override it for single class wordings, by their number; a request that strengthens a property
    raises it by `strengthened_gain`.
    """

    def __init__(
        self,
        properties: Mapping[str, Mapping[str, Sequence[str]]],
        pass_rate: float,
        service_s: float = 0.0,
        start_s: float = 0.0,
        faults: Sequence[Fault] = (),
        sleep: Sleep = time.sleep,
        pass_rates: Mapping[int, float] | None = None,
        strengthened_gain: float = 0.0,
    ) -> None:
        self._pass_rates, self._strengthened_gain = pass_rates or {}, strengthened_gain
        self._values = {name: tuple(values) for name, values in properties.items()}
        self._pass_rate, self._service_s, self._sleep = pass_rate, service_s, sleep
        self._faults = _Faults(faults, sleep)
        sleep(start_s)

    def measure(
        self, pixels: np.ndarray, flags: Sequence[ImageFlags], cells: Sequence[Cell]
    ) -> list[Measurement]:
        """One measurement per image, drawn from the seed in it."""
        self._faults.strike()
        self._sleep(self._service_s)
        return [self._measure_one(image, flag) for image, flag in zip(pixels, flags, strict=True)]

    def measure_files(self, files: Sequence[bytes], max_pixels: int) -> list[Measurement | str]:
        """One measurement per image file, drawn from its first pixels, or why it cannot be read."""
        self._faults.strike()
        self._sleep(self._service_s)
        measured: list[Measurement | str] = []
        for data in files:
            try:
                measured.append(self._measure_one(decode_image(data, max_pixels=max_pixels), ImageFlags()))
            except UnreadableImage as error:
                measured.append(error.reason)
        return measured

    def describe(self) -> dict[str, str]:
        return {"model": "simulated", "revision": "", "device": "none", "embedding_dim": str(EMBEDDING_DIM)}

    def _measure_one(self, image: np.ndarray, flags: ImageFlags) -> Measurement:
        seed = carried_seed(image)
        random = np.random.default_rng([seed, 1])  # not the stream that drew the pixels
        wording, strengthened = carried_request(image)
        pass_rate = self._pass_rates.get(wording, self._pass_rate) + strengthened * self._strengthened_gain
        passes = random.random() < pass_rate
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
            pixel_sha256=pixel_sha256(image),
            unsafe=flags.unsafe,
        )


def carried_seed(image: np.ndarray) -> int:
    """The seed a simulated image was drawn from."""
    return int.from_bytes(image.reshape(-1)[:8].tobytes(), "little")


def carried_request(image: np.ndarray) -> tuple[int, bool]:
    """The wording number of a simulated image's request, and whether it strengthened a property."""
    low, high, strengthened = np.resize(image.reshape(-1)[:11], 11)[
        8:
    ].tolist()  # a real image may be smaller
    return low + 256 * high, strengthened == 1


def _noise(request: Request, width: int, height: int) -> np.ndarray:
    # Blocks, because noise in single pixels would make larger files than real images.
    rows, columns = -(-height // BLOCK_PIXELS), -(-width // BLOCK_PIXELS)
    blocks = np.random.default_rng([request.seed, 0]).integers(0, 256, (rows, columns, 3), np.uint8)
    image = blocks.repeat(BLOCK_PIXELS, 0).repeat(BLOCK_PIXELS, 1)[:height, :width].copy()
    strengthened = any(change.startswith("strengthen ") for change in request.changes)
    carried = (
        request.seed.to_bytes(8, "little") + request.wording.to_bytes(2, "little") + bytes([strengthened])
    )
    image.reshape(-1)[: len(carried)] = np.frombuffer(carried, np.uint8)
    return image


class _Faults:
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
