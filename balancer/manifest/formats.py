"""Rows of a manifest as JSON, CSV, Parquet or Arrow.

Whatever leaves goes through `exact`. Seeds have 64 bits without a sign; JavaScript, jq, and pandas where a
column has nulls, read numbers as floats, which hold 53.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from balancer.text.formulas import as_text
from balancer.text.names import free_names
from balancer.text.safetext import printable

_KEPT = re.compile(r"[^\n\t]+")


def exact(table: pa.Table) -> pa.Table:
    """The table with numbers that a float cannot hold, unsigned 64-bit ones, as text."""
    for place, field in enumerate(table.schema):
        if field.type == pa.uint64():
            table = table.set_column(place, field.name, table[place].cast(pa.string()))
    return table


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON values: times in ISO form, and null for NaN, which JSON lacks."""
    return [json_value(row) for row in exact(table).to_pylist()]


def csv_text(table: pa.Table) -> str:
    """A header and one line a row; a struct is one column for each of its fields, `scores.class`.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. Characters that steer a
    terminal are escaped, also in a file or a pipe, which end up on one; line ends and tabs stay.
    """
    flat = table.flatten()
    lines = [_csv_line(_free_headers(flat.column_names)), *map(_csv_line, _rows(flat))]
    return "".join(f"{line}\n" for line in lines)


def _free_headers(names: Sequence[str]) -> list[str]:
    """A column called `scores.class` and the field of that struct need two headers."""
    found: list[str] = []
    for name in names:
        found.append(free_names([name], found)[name])
    return found


def parquet_bytes(table: pa.Table) -> bytes:
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(exact(table), sink, compression="zstd")
    return bytes(sink.getvalue())


def arrow_bytes(table: pa.Table) -> bytes:
    """An Arrow IPC file, which is a Feather file as well."""
    table, sink = exact(table), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def json_value(value: Any) -> Any:
    """A value as JSON has it: a time as text, NaN and infinity as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: json_value(inner) for name, inner in value.items()}
    return [json_value(inner) for inner in value] if isinstance(value, list) else value


def _csv_line(values: Iterable[Any]) -> str:
    # Not by the csv module: with lines that end in a plain newline it leaves a carriage return unquoted.
    return ",".join(map(_csv_field, values)) or '""'


def _csv_field(value: Any) -> str:
    text = "" if value is None else as_text(value) if isinstance(value, str) else _csv_plain(value)
    if not text.isprintable():
        text = _KEPT.sub(lambda found: printable(found[0]), text)
    if any(character in text for character in ',"\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text


def _csv_plain(value: Any) -> str:
    plain = json_value(value)
    return "" if plain is None else plain if isinstance(plain, str) else json.dumps(plain)
