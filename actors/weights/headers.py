"""What the header of a safetensors file says: how many numbers the weights are. Nothing is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.errors import first_line
from balancer.storage.regular_files import open_regular

MAX_HEADER_BYTES = 20_000_000
"""Published shards of thousands of tensors have 1 MB."""

_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64,
    "I64": 64, "U64": 64, "C64": 64, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
_PACKED_BITS = 4
"""Of one weight in the integers of a quantised model, at least."""


class HeaderError(ValueError):
    """No header of safetensors, or one of another file; the message says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How many tensors there are, and how many numbers in all of them."""

    tensors: int
    numbers: int


def together(files: Sequence[Weights]) -> Weights:
    return Weights(sum(one.tensors for one in files), sum(one.numbers for one in files))


def read_header(path: Path) -> Weights:
    """HeaderError unless the tensors are as long as the file, OSError if it cannot be read."""
    with open_regular(path, follow_links=True) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(f"its header has {length:,} bytes, over the limit of {MAX_HEADER_BYTES:,}")
        data_bytes = size - _LENGTH_BYTES - length
        if data_bytes < 0:
            raise HeaderError(f"its header has {length:,} bytes, the file {size:,}")
        return _parse(file.read(length), data_bytes)


def _parse(header: bytes, data_bytes: int) -> Weights:
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is no JSON: {first_line(error)}") from error
    if not isinstance(entries, dict):
        raise HeaderError("its header is no JSON object")
    entries.pop("__metadata__", None)
    sizes = [_size(name, entry) for name, entry in entries.items()]
    if (claimed := sum(num_bytes for num_bytes, _ in sizes)) != data_bytes:
        raise HeaderError(
            f"its header tells of {claimed:,} bytes of tensors, and the file has {data_bytes:,}"
        )
    return Weights(len(sizes), sum(numbers for _, numbers in sizes))


def _size(name: str, entry: Any) -> tuple[int, int]:
    """Bytes and numbers of one tensor. Where in the file it is, safetensors itself checks."""
    match entry:
        case {"dtype": str(dtype), "data_offsets": [int(begin), int(end)]} if dtype in _BITS:
            if 0 <= begin <= end:
                bits = _BITS[dtype] if "F" in dtype or dtype == "C64" else _PACKED_BITS
                return end - begin, (end - begin) * 8 // bits
    raise HeaderError(f"its header makes no sense at {name[:80]!r}")
