"""Where the parts of an Arrow file stand, looked at before Arrow takes any of it into memory.

Our fragments are never compressed, so that a fragment takes no more memory than its file has bytes. One that
others made could be, or could name the same rows many times.
"""

from __future__ import annotations

import contextlib
import struct

import pyarrow as pa

_FOOTER_TAIL = 10
"""The length of the footer, and `ARROW1`."""

_I32, _U32 = struct.Struct("<i").unpack_from, struct.Struct("<I").unpack_from
_U16, _BLOCK = struct.Struct("<H").unpack_from, struct.Struct("<qi4xq").unpack_from

_DICTIONARY, _RECORDS = 2, 3
"""Kinds of messages."""


def check_blocks(data: bytes) -> None:
    """ValueError unless the file's batches are uncompressed and stand apart."""
    try:
        _check_blocks(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"its footer makes no sense: {error}") from error


def _check_blocks(data: bytes) -> None:
    end = len(data) - _FOOTER_TAIL
    footer = _root(data, end - _I32(data, end)[0])
    total = 0
    for kind in (2, 3):
        for place in _structs(data, footer, kind, 24):
            start, head, body = _BLOCK(data, place)
            if start < 0 or head < 0 or body < 0:
                raise ValueError("a batch stands outside of the file")
            total += head + body
            marked = _U32(data, start)[0] == 0xFFFFFFFF
            _check_message(data, _root(data, start + (8 if marked else 4)))
    if total > len(data):
        raise ValueError("its batches have more bytes than the file")


def is_compressed(stream: bytes) -> bool:
    """Whether a stream has a compressed batch, as far as it can be read."""
    with contextlib.suppress(pa.ArrowException, OSError):
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(stream)):
            try:
                head = message.metadata.to_pybytes()
                _check_message(head, _root(head, 0))
            except (ValueError, struct.error, IndexError):
                return True
    return False


# ---- flatbuffers, as https://flatbuffers.dev/internals describes them ------------------------------


def _check_message(data: bytes, message: int) -> None:
    if not (place := _field(data, message, 1)) or not (header := _field(data, message, 2)):
        return
    kind, batch = data[place], header + _U32(data, header)[0]
    if kind == _DICTIONARY:
        inner = _field(data, batch, 1)
        batch = inner + _U32(data, inner)[0] if inner else 0
    if kind in (_DICTIONARY, _RECORDS) and batch and _field(data, batch, 3):
        raise ValueError("it is compressed, which no fragment is")


def _root(data: bytes, start: int) -> int:
    return start + int(_U32(data, start)[0])


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a table stands; 0 if it is not there."""
    fields, offset = table - _I32(data, table)[0], 4 + 2 * index
    found = _U16(data, fields + offset)[0] if offset < _U16(data, fields)[0] else 0
    return table + found if found else 0


def _structs(data: bytes, table: int, index: int, size: int) -> range:
    """Where the elements of a vector stand."""
    if not (place := _field(data, table, index)):
        return range(0)
    place += _U32(data, place)[0]
    start, count = place + 4, _U32(data, place)[0]
    if start + count * size > len(data):
        raise ValueError("its footer leads out of the file")
    return range(start, start + count * size, size)
