"""Objects as images: each is cut out of its photograph along its box.

A crop is named as if the photograph were a folder: `images/7.jpg/40,12,200,180.png` has its left and top
edge, its width and its height in pixels.
"""

from __future__ import annotations

import functools
import io
import math
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.images import ENCODINGS, decode_image, encode_image, is_marked_synthetic
from balancer.storage.regular_files import TooLargeError, read_regular

if TYPE_CHECKING:
    from balancer.images import Pixels

_CROP = re.compile(r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})(?:-\d+)?\.png")

BEYOND = 1
"""Pixels by which a box may reach out of its photograph, for annotations that were rounded up."""

MAX_SOURCE_BYTES = 500_000_000
MAX_SOURCE_PIXELS = 200_000_000

Box = tuple[int, int, int, int]
"""Left, top, width, height."""


def parse_box(values: object) -> Box | None:
    """A COCO `bbox` in whole pixels that hold all of it; None if it is none."""
    if not isinstance(values, Sequence) or len(values) != 4 or isinstance(values, str):
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    left, top = max(0, math.floor(values[0])), max(0, math.floor(values[1]))
    right, bottom = math.ceil(values[0] + values[2]), math.ceil(values[1] + values[3])
    if values[2] <= 0 or values[3] <= 0 or max(right, bottom) > 999_999 or right <= left or bottom <= top:
        return None
    return left, top, right - left, bottom - top


def crop_name(photograph: str, box: Box, number: int = 1) -> str:
    """Of several objects in one box each has a `number`."""
    return f"{photograph}/{','.join(map(str, box))}{f'-{number}' if number > 1 else ''}.png"


def photograph_of(name: str) -> str:
    """The file that an image is cut out of, or its own name."""
    photograph, _, member = name.rpartition("/")
    return photograph if photograph and _CROP.fullmatch(member) else name


def read_crop(path: str | os.PathLike[str], member: str, max_bytes: int) -> bytes:
    """A crop as PNG. Raises OSError, ValueError or UnreadableImage."""
    named = _CROP.fullmatch(member)
    if named is None:
        raise ValueError("no such crop")
    about = os.stat(path, follow_symlinks=False)
    left, top, width, height = map(int, named.groups())
    photograph, is_marked = _photograph(os.fspath(path), about.st_mtime_ns, about.st_size)
    pixels = photograph[top:, left:][:height, :width]
    if pixels.shape[0] < height - BEYOND or pixels.shape[1] < width - BEYOND:
        size = f"{photograph.shape[1]} x {photograph.shape[0]}"
        raise ValueError(f"the box reaches out of the photograph, which has {size} pixels")
    data = encode_image(pixels, {}) if is_marked else _png(pixels)
    if len(data) > max_bytes:
        raise TooLargeError(member, len(data), max_bytes)
    return data


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", **ENCODINGS["png"])
    return buffer.getvalue()


@functools.lru_cache(maxsize=1)  # neighbours are read together
def _photograph(path: str, mtime_ns: int, size: int) -> tuple[Pixels, bool]:
    """The pixels, and whether the file says that a model made them: then a crop says so too."""
    data = read_regular(path, max_bytes=MAX_SOURCE_BYTES, follow_links=False)
    return decode_image(data, max_pixels=MAX_SOURCE_PIXELS), is_marked_synthetic(data)


def is_photograph(path: Path) -> bool:
    from balancer.dataset.readers.walking import IMAGE_SUFFIXES

    return posixpath.splitext(path.name)[1].lower() in IMAGE_SUFFIXES
