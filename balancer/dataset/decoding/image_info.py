"""The audit's facts about one image file, as JSON from an untrusted process.

An image may have taken over the process that decoded it, so every field of the answer is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass

from balancer.images import (
    UnreadableImage,
    decode_picture,
    hash_picture,
    is_marked_synthetic,
    picture_sha256,
    read_bytes,
)
from balancer.text.json_reading import read_json

MAX_REASON_CHARS = 500

_SIZE = rb"([1-9][0-9]{0,17})"
_INFO = re.compile(
    rb'\{"width": %s, "height": %s, "num_bytes": %s, "sha256": "([0-9a-f]{64})", "phash": "([0-9a-f]{16})",'
    rb' "pixel_sha256": "([0-9a-f]{64})", "marked_synthetic": (true|false)\}\n?' % (_SIZE, _SIZE, _SIZE)
)
"""One expression is several times as fast as reading JSON and testing each field."""


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
    picture = decode_picture(data, max_pixels=limits.max_pixels)
    return ImageInfo(
        width=picture.width,
        height=picture.height,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        phash=hash_picture(picture),
        pixel_sha256=picture_sha256(picture),
        marked_synthetic=is_marked_synthetic(data),
    )


def answer(path: str | os.PathLike[str], limits: DecodeLimits) -> str:
    """One line about an image file: its info, or the reason why it is not used."""
    try:
        return info_line(read_image_info(path, limits))
    except UnreadableImage as error:
        return json.dumps({"reason": error.reason[:MAX_REASON_CHARS]})


def info_line(info: ImageInfo) -> str:
    """As JSON, always in the same form."""
    return (
        f'{{"width": {info.width}, "height": {info.height}, "num_bytes": {info.num_bytes},'
        f' "sha256": "{info.sha256}", "phash": "{info.phash}", "pixel_sha256": "{info.pixel_sha256}",'
        f' "marked_synthetic": {"true" if info.marked_synthetic else "false"}}}'
    )


def parse_answer(line: bytes) -> ImageInfo | str:
    """The image info, or the reason why there is none. Raises ValueError for anything else."""
    if facts := _INFO.fullmatch(line):
        width, height, num_bytes, sha256, phash, pixels, marked = facts.groups()
        hashes = (sha256.decode(), phash.decode(), pixels.decode())
        return ImageInfo(int(width), int(height), int(num_bytes), *hashes, marked == b"true")
    fields = read_json(line)
    if isinstance(fields, dict) and fields.keys() == {"reason"} and isinstance(fields["reason"], str):
        return fields["reason"][:MAX_REASON_CHARS]
    raise ValueError("neither the info of an image nor a reason")
