"""The audit's facts about one image file, as JSON from an untrusted process.

An image may have taken over the process that decoded it, so every field of the answer is checked.
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
from balancer.text.json_reading import read_json

_HEX = {"sha256": 64, "pixel_sha256": 64, "phash": 16}
MAX_INT64 = 2**63 - 1
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """The most bytes of a file and pixels of an image."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    width: int
    height: int
    num_bytes: int
    sha256: str
    phash: str
    pixel_sha256: str
    marked_synthetic: bool


def read_image_info(path: str | os.PathLike[str], limits: DecodeLimits) -> ImageInfo:
    """Read and decode one image file; raises UnreadableImage."""
    data = read_bytes(path, max_bytes=limits.max_bytes)
    pixels = decode_image(data, max_pixels=limits.max_pixels)
    return ImageInfo(
        width=pixels.shape[1],
        height=pixels.shape[0],
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(pixels),
        pixel_sha256=pixel_sha256(pixels),
        marked_synthetic=is_marked_synthetic(data),
    )


def answer(path: str | os.PathLike[str], limits: DecodeLimits) -> str:
    """One line about an image file: its info, or the reason why it is not used."""
    try:
        return json.dumps(asdict(read_image_info(path, limits)))
    except UnreadableImage as error:
        return json.dumps({"reason": error.reason[:MAX_REASON_CHARS]})


def parse_answer(line: bytes) -> ImageInfo | str:
    """The image info, or the reason why there is none. Raises ValueError for anything else."""
    fields = read_json(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    if fields.keys() == {"reason"} and isinstance(fields["reason"], str):
        return fields["reason"][:MAX_REASON_CHARS]
    sizes = [fields.get(name) for name in ("width", "height", "num_bytes")]
    if not all(type(size) is int and 0 < size <= MAX_INT64 for size in sizes):
        raise ValueError("a size is missing")
    for name, digits in _HEX.items():
        if not isinstance(fields.get(name), str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", fields[name]):
            raise ValueError(f"{name} is not {digits} hex digits")
    if not isinstance(fields.get("marked_synthetic"), bool):
        raise ValueError("marked_synthetic is missing")
    return ImageInfo(**{name: fields[name] for name in ImageInfo.__slots__})
