"""Names and values in tables, in one form."""

from __future__ import annotations

import math
import posixpath
import struct
from typing import TYPE_CHECKING

from balancer.text.names import composed

if TYPE_CHECKING:
    import pyarrow as pa


def table_key(file_name: str) -> str:
    """The normal form of a file name. Some systems store accented names decomposed."""
    return composed(posixpath.normpath(file_name))


def is_plain(column_type: pa.DataType) -> bool:
    """Whether values are text or numbers: images inside the table are not read."""
    from pyarrow import types

    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    tests = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer, types.is_floating)
    return any(test(column_type) for test in tests)


def plain_values(column: pa.Array) -> list[object]:
    """The values; 32-bit floats as they were written: 0.1, not 0.10000000149011612."""
    from pyarrow import types

    values: list[object] = column.to_pylist()
    if types.is_float32(column.type):
        return [None if value is None else _shortest_float32(value) for value in values]
    return values


def _shortest_float32(value: object) -> float:
    exact = float(value)  # type: ignore[arg-type]  # a float, or None
    if not math.isfinite(exact):
        return exact
    digits = (float(f"{exact:.{count}g}") for count in range(6, 10))
    return next((short for short in digits if struct.pack("f", short) == struct.pack("f", exact)), exact)
