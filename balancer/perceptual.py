"""The perceptual hash of `imagehash.phash`, bit by bit, in a fraction of its time.

Pillow shrinks a picture with one multiplication after the other, which takes longer than decoding a JPEG.
Matrix products of the same integers are as exact in float64, and several times as fast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
KEPT = 8
"""The lowest frequencies, in each direction, whose signs against their median are the hash."""

LOBES = 3
"""Of the Lanczos filter."""

ONE = 1 << 22
"""Pillow's fixed point for filters of 8-bit pictures."""

SMALL_PIXELS = 10_000
"""Below it, Pillow is as fast."""

OUTPUTS_AT_ONCE = 8
PIXELS_AT_ONCE = 1 << 17
"""Rows that are converted to float64 at once, in pixels: they fit into a cache."""

Floats = NDArray[np.float64]


def hash_picture(image: Image.Image) -> str:
    """64 bits as 16 hex digits."""
    from scipy.fftpack import dct

    rows = dct(_shrink(image.convert("L")), axis=0)[:KEPT]
    frequencies: Floats = dct(rows, axis=1)[:, :KEPT].ravel()
    middle = KEPT * KEPT // 2
    halves = np.partition(frequencies, (middle - 1, middle))
    median = (halves[middle - 1] + halves[middle]) / 2
    return np.packbits(frequencies > median).tobytes().hex()


def _shrink(grey: Image.Image) -> NDArray[Any]:
    """What `grey.resize((SIDE, SIDE), LANCZOS)` gives."""
    if grey.width * grey.height < SMALL_PIXELS:
        return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    pixels = np.asarray(grey)
    if grey.height - SIDE > 2 * (grey.width - SIDE):  # there, Pillow shrinks the height first
        return _in_two_steps(pixels.T).T
    return _in_two_steps(pixels)


def _in_two_steps(pixels: NDArray[np.uint8]) -> Floats:
    """Shrink the rows, then the columns."""
    height, width = pixels.shape
    narrow = np.empty((height, SIDE))
    rows = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        part = pixels[top : top + rows].astype(np.float64)
        for outputs, inputs, weights in _filters(width):
            narrow[top : top + rows, outputs] = part[:, inputs] @ weights
    _to_bytes(narrow)
    small = np.empty((SIDE, SIDE))
    for outputs, inputs, weights in _filters(height):
        small[outputs] = weights.T @ narrow[inputs]
    _to_bytes(small)
    return small


def _to_bytes(sums: Floats) -> None:
    """Round as Pillow does, in place."""
    sums += ONE // 2
    sums /= ONE
    np.floor(sums, out=sums)
    np.clip(sums, 0, 255, out=sums)


@lru_cache(maxsize=64)
def _filters(size: int) -> tuple[tuple[slice, slice, Floats], ...]:
    """Filters that shrink `size` pixels to SIDE: outputs, the inputs they see, and the weights."""
    scale = size / SIDE
    stretch = max(scale, 1.0)
    centres = (np.arange(SIDE) + 0.5) * scale
    first = np.maximum((centres - LOBES * stretch + 0.5).astype(int), 0)
    end = np.minimum((centres + LOBES * stretch + 0.5).astype(int), size)
    filters = []
    for start in range(0, SIDE, OUTPUTS_AT_ONCE):
        outputs = slice(start, start + OUTPUTS_AT_ONCE)
        inputs = slice(int(first[outputs].min()), int(end[outputs].max()))
        places = np.arange(inputs.start, inputs.stop)[:, None]
        weights = _lanczos((places - centres[outputs] + 0.5) / stretch)
        weights[(places < first[outputs]) | (places >= end[outputs])] = 0
        weights /= np.cumsum(weights, axis=0)[-1]
        filters.append((outputs, inputs, np.trunc(weights * ONE + np.copysign(0.5, weights))))
    return tuple(filters)


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -LOBES) & (x < LOBES), np.sinc(x) * np.sinc(x / LOBES), 0.0)
