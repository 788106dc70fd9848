"""Cut objects out of their photographs, in a process with limits; see `readers.crops`."""

from __future__ import annotations

import functools
import os

from balancer.dataset.readers.crops import parse_crop
from balancer.images import Pixels, decode_image, encode_image, is_marked_synthetic, plain_png
from balancer.storage.regular_files import TooLargeError, read_regular

BEYOND = 1
"""Pixels by which a box may reach out of its photograph, for annotations that were rounded up."""

MAX_SOURCE_BYTES = 500_000_000
MAX_SOURCE_PIXELS = 200_000_000


def read_crop(path: str | os.PathLike[str], member: str, max_bytes: int) -> bytes:
    """A crop as PNG. Raises OSError, ValueError or UnreadableImage."""
    box = parse_crop(member)
    if box is None:
        raise ValueError("no such crop")
    about = os.stat(path, follow_symlinks=False)
    left, top, width, height = box
    photograph, is_marked = _photograph(os.fspath(path), about.st_mtime_ns, about.st_size)
    pixels = photograph[top:, left:][:height, :width]
    if pixels.shape[0] < height - BEYOND or pixels.shape[1] < width - BEYOND:
        size = f"{photograph.shape[1]} x {photograph.shape[0]}"
        raise ValueError(f"the box reaches out of the photograph, which has {size} pixels")
    data = encode_image(pixels, {}) if is_marked else plain_png(pixels)
    if len(data) > max_bytes:
        raise TooLargeError(member, len(data), max_bytes)
    return data


@functools.lru_cache(maxsize=1)  # neighbours are read together
def _photograph(path: str, mtime_ns: int, size: int) -> tuple[Pixels, bool]:
    """The pixels, and whether the file says that a model made them: then a crop says so too."""
    data = read_regular(path, max_bytes=MAX_SOURCE_BYTES, follow_links=False)
    return decode_image(data, max_pixels=MAX_SOURCE_PIXELS), is_marked_synthetic(data)
