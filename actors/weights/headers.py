"""Read the size of weights from the header of a safetensors file, without loading them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.errors import first_line
from balancer.storage.regular_files import open_regular
from balancer.text.json_reading import read_json

MAX_HEADER_BYTES = 20_000_000
"""Published shards with thousands of tensors have headers of 1 MB."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64,
    "I64": 64, "U64": 64, "C64": 64, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
_PACKED_BITS = 4
"""Least bits of a weight that is packed into integers, in quantised models."""


class HeaderError(ValueError):
    """An invalid header, or one that does not fit the file."""


@dataclass(frozen=True, slots=True)
class WeightsSize:
    """Number of tensors, and of elements in all of them."""

    tensors: int
    elements: int


def sum_sizes(files: Sequence[WeightsSize]) -> WeightsSize:
    return WeightsSize(sum(one.tensors for one in files), sum(one.elements for one in files))


def read_header(path: Path) -> WeightsSize:
    """Read the header. Raises HeaderError unless the tensors fill the file, OSError if it is unreadable."""
    entries, data_bytes = _read_entries(path)
    entries.pop(_METADATA, None)
    sizes = [_size(name, entry) for name, entry in entries.items()]
    if (claimed := sum(num_bytes for num_bytes, _ in sizes)) != data_bytes:
        raise HeaderError(f"its header declares {claimed:,} bytes of tensors, the file has {data_bytes:,}")
    return WeightsSize(len(sizes), sum(elements for _, elements in sizes))


def read_metadata(path: Path) -> tuple[dict[str, str], list[str]]:
    """What the header says besides its tensors, and their names. Raises what `read_header` raises."""
    entries, _ = _read_entries(path)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its metadata are not texts")
    return metadata, [*entries]


def _read_entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes after it."""
    with open_regular(path, follow_links=True) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(f"its header has {length:,} bytes, over the limit of {MAX_HEADER_BYTES:,}")
        data_bytes = size - _LENGTH_BYTES - length
        if data_bytes < 0:
            raise HeaderError(f"its header has {length:,} bytes, the file {size:,}")
        header = file.read(length)
    try:
        entries = read_json(header)
    except ValueError as error:
        raise HeaderError(f"its header is not JSON: {first_line(error)}") from error
    if not isinstance(entries, dict):
        raise HeaderError("its header is not a JSON object")
    return entries, data_bytes


def _size(name: str, entry: Any) -> tuple[int, int]:
    """Bytes and elements of one tensor. safetensors itself checks its place in the file."""
    match entry:
        case {"dtype": str(dtype), "data_offsets": [int(begin), int(end)]} if dtype in _BITS:
            if 0 <= begin <= end:
                bits = _BITS[dtype] if "F" in dtype or dtype == "C64" else _PACKED_BITS
                return end - begin, (end - begin) * 8 // bits
    raise HeaderError(f"its header is invalid at {name[:80]!r}")
