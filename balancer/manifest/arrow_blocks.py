"""Where the parts of an Arrow file stand, looked at before Arrow takes any of it into memory.

Our fragments are never compressed, so that a fragment takes no more memory than its file has bytes. One that
others made could be, or could name the same rows many times.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import pyarrow as pa

_FOOTER_TAIL = 10
"""The length of the footer, and `ARROW1`."""

_DICTIONARY, _RECORDS = 2, 3
"""Kinds of messages."""


def check_blocks(data: bytes) -> None:
    """ValueError unless the file's batches are uncompressed and stand apart."""
    try:
        _check_blocks(data)
    except struct.error as error:
        raise ValueError(f"its footer makes no sense: {error}") from error


def _check_blocks(data: bytes) -> None:
    end = len(data) - _FOOTER_TAIL
    footer = _Table.root(data, end - struct.unpack_from("<i", data, end)[0])
    total = 0
    for kind in (2, 3):
        for place in footer.structs(kind, 24):
            start, head, body = struct.unpack_from("<qi4xq", data, place)
            if not (0 <= start < len(data) and head >= 0 and body >= 0):
                raise ValueError("a batch stands outside of the file")
            total += head + body
            marked = struct.unpack_from("<I", data, start)[0] == 0xFFFFFFFF
            _check_message(_Table.root(data, start + (8 if marked else 4)))
    if total > len(data):
        raise ValueError("its batches have more bytes than the file")


def is_compressed(stream: bytes) -> bool:
    """Whether a stream has a compressed batch, as far as it can be read."""
    with contextlib.suppress(pa.ArrowException, OSError):
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(stream)):
            try:
                _check_message(_Table.root(message.metadata.to_pybytes(), 0))
            except (ValueError, struct.error):
                return True
    return False


def _check_message(message: _Table) -> None:
    kind, header = message.byte(1), message.child(2)
    if kind == _DICTIONARY and header is not None:
        header = header.child(1)
    elif kind != _RECORDS:
        header = None
    if header is not None and header.field(3):
        raise ValueError("it is compressed, which no fragment is")


class _Table:
    """A table of a flatbuffer, as https://flatbuffers.dev/internals describes it."""

    def __init__(self, data: bytes, place: int) -> None:
        if not 0 <= place < len(data):
            raise ValueError("its footer leads out of the file")
        self._data, self._place = data, place
        self._fields = place - self._number("<i", place)
        self._size = self._number("<H", self._fields)

    @classmethod
    def root(cls, data: bytes, start: int) -> _Table:
        if not 0 <= start < len(data):
            raise ValueError("its footer leads out of the file")
        return cls(data, start + struct.unpack_from("<I", data, start)[0])

    def _number(self, form: str, place: int) -> int:
        if not 0 <= place < len(self._data):
            raise ValueError("its footer leads out of the file")
        return int(struct.unpack_from(form, self._data, place)[0])

    def field(self, index: int) -> int:
        """Where a field stands; 0 if it is not there."""
        offset = 4 + 2 * index
        found = self._number("<H", self._fields + offset) if offset < self._size else 0
        return self._place + found if found else 0

    def byte(self, index: int) -> int:
        place = self.field(index)
        return self._number("<B", place) if place else 0

    def child(self, index: int) -> _Table | None:
        place = self.field(index)
        return _Table(self._data, place + self._number("<I", place)) if place else None

    def structs(self, index: int, size: int) -> Iterator[int]:
        """Where the elements of a vector stand."""
        if not (place := self.field(index)):
            return
        place += self._number("<I", place)
        count = self._number("<I", place)
        if place + 4 + count * size > len(self._data):
            raise ValueError("its footer leads out of the file")
        yield from range(place + 4, place + 4 + count * size, size)
