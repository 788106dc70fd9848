"""What the audit tells of one image file, as text that can pass between processes without trust.

The process that decoded it may have been taken over by what it decoded: so its answer is read field by field.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass

from balancer.images import (
    UnreadableImage,
    decode_image,
    is_marked_synthetic,
    perceptual_hash,
    pixel_sha256,
    read_bytes,
)

_HEX = {"sha256": 64, "pixel_sha256": 64, "phash": 16}
MOST = 2**63 - 1
LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a file's bytes and an image's pixels."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Picture:
    width: int
    height: int
    num_bytes: int
    sha256: str
    phash: str
    pixel_sha256: str
    marked_synthetic: bool


def look_at(path: str | os.PathLike[str], limits: Limits) -> Picture:
    """Read and decode one image file; raises UnreadableImage."""
    data = read_bytes(path, max_bytes=limits.max_bytes)
    pixels = decode_image(data, max_pixels=limits.max_pixels)
    return Picture(
        width=pixels.shape[1],
        height=pixels.shape[0],
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(pixels),
        pixel_sha256=pixel_sha256(pixels),
        marked_synthetic=is_marked_synthetic(data),
    )


def answer(path: str | os.PathLike[str], limits: Limits) -> str:
    """One line about an image file: the picture, or why it is not used."""
    try:
        return json.dumps(asdict(look_at(path, limits)))
    except UnreadableImage as error:
        return json.dumps({"reason": error.reason[:LONGEST_REASON]})


def parse_answer(line: bytes) -> Picture | str:
    """The picture, or the reason why there is none. ValueError for anything else."""
    told = json.loads(line)
    if not isinstance(told, dict):
        raise ValueError("not an object")
    if told.keys() == {"reason"} and isinstance(told["reason"], str):
        return told["reason"][:LONGEST_REASON]
    sizes = [told.get(name) for name in ("width", "height", "num_bytes")]
    if not all(type(size) is int and 0 < size <= MOST for size in sizes):
        raise ValueError("a size is missing")
    for name, digits in _HEX.items():
        if not isinstance(told.get(name), str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", told[name]):
            raise ValueError(f"{name} is not {digits} hex digits")
    if not isinstance(told.get("marked_synthetic"), bool):
        raise ValueError("marked_synthetic is missing")
    return Picture(**{name: told[name] for name in Picture.__slots__})
