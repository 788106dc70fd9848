"""Names and values in tables, in one form."""

from __future__ import annotations

import math
import posixpath
import re
import struct
from typing import TYPE_CHECKING

from balancer.text.names import composed

if TYPE_CHECKING:
    import pyarrow as pa


def table_key(file_name: str) -> str:
    """The normal form of a file name. Some systems store accented names decomposed."""
    return composed(posixpath.normpath(file_name))


def is_plain(column_type: pa.DataType) -> bool:
    """Whether values are text, numbers, dates or times: images inside the table are not read."""
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_decimal,
        types.is_date,
        types.is_timestamp,
        types.is_time,
    )
    return any(test(column_type) for test in tests)


def plain_values(column: pa.Array) -> list[object]:
    """The values; 32-bit floats as they were written: 0.1, not 0.10000000149011612. Dates and times are
    text, as short as it can be: `2024-01-02`, `2024-01-02 03:04:05`."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_temporal(column.type):
        return [None if text is None else _short_time(text) for text in column.cast(pa.string()).to_pylist()]
    values: list[object] = column.to_pylist()
    if types.is_float32(column.type):
        return [None if value is None else _shortest_float32(value) for value in values]
    return values


def _short_time(text: str) -> str:
    """Without zeros at the end of a fraction, and without a time at midnight: many tables keep dates so."""
    text = re.sub(r"\.(\d*?)0+(?=Z?$)", lambda found: f".{found[1]}" if found[1] else "", text)
    return re.sub(r" 00:00:00Z?$", "", text)


def _shortest_float32(value: object) -> float:
    exact = float(value)  # type: ignore[arg-type]  # a float, or None
    if not math.isfinite(exact):
        return exact
    digits = (float(f"{exact:.{count}g}") for count in range(6, 10))
    return next((short for short in digits if struct.pack("f", short) == struct.pack("f", exact)), exact)
