"""Objects as images: each is cut out of its photograph along its box.

A crop is named as if the photograph were a folder: `images/7.jpg/40,12,200,180.png` has its left and top
edge, its width and its height in pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_CROP = re.compile(r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})(?:-\d+)?\.png")

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


def parse_crop(member: str) -> Box | None:
    """The box in the name of a crop inside its photograph; None if it is not the name of one."""
    named = _CROP.fullmatch(member)
    return None if named is None else (int(named[1]), int(named[2]), int(named[3]), int(named[4]))
