"""What is left of a damaged fragment: all of it, if the damage is in a part that follows from the rest.

The same stamp and rows give the same bytes. So if a fragment can be read from its beginning, as a stream,
what was written after that can be made again: the index at its end, and any padding. That it is the same
fragment, to the last byte, its hash proves; rows that nothing proves are never taken for those committed.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

import pyarrow as pa

from balancer.manifest.layout import fragment_path
from balancer.manifest.log.arrow_blocks import is_compressed
from balancer.manifest.log.fragment import CHECKSUM_KEY, BrokenFragmentError, encode, parse_stamp

STREAM_START = 8
"""An Arrow file is a stream after so many bytes, and an index after that."""


@dataclass(frozen=True, slots=True)
class Remains:
    """`whole` are the bytes that were written, None if they cannot be made again. `event` and `rows` are what
    the damaged file says of itself, which may be wrong; None where it says nothing."""

    whole: bytes | None = None
    event: str | None = None
    rows: int | None = None


def find_remains(data: bytes, seq: int, schema: pa.Schema, sha256: str | None) -> Remains:
    """`sha256` is the hash that the next fragment was written with; None if there is none."""
    # An extension type may run code when Arrow meets it, and no manifest has any.
    stream = data[STREAM_START:]
    found, batches = (None, []) if b"ARROW:extension" in data or is_compressed(stream) else _read_stream(data)
    if found is None:
        return Remains()
    try:
        stamp = parse_stamp(found.metadata or {}, fragment_path(seq))
    except BrokenFragmentError:
        return Remains()
    remains = Remains(None, stamp.event, sum(batch.num_rows for batch in batches))
    try:
        table = pa.Table.from_batches(batches, found).replace_schema_metadata(schema.metadata)
        table.validate(full=True)
        if not table.schema.equals(schema):
            return remains
        made = encode(table, stamp)
    except (pa.ArrowException, ValueError, TypeError):
        return remains
    if sha256 is None:
        again, _ = _read_stream(made)
        same = again is not None and again.metadata[CHECKSUM_KEY] == (found.metadata or {}).get(CHECKSUM_KEY)
    else:
        same = hashlib.sha256(made).hexdigest() == sha256
    return Remains(made if same else None, remains.event, remains.rows)


def _read_stream(data: bytes) -> tuple[pa.Schema | None, list[pa.RecordBatch]]:
    """The schema and what batches there are, up to where it cannot be read any further."""
    schema, batches = None, []
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        reader = pa.ipc.open_stream(pa.py_buffer(data[STREAM_START:]))
        schema = reader.schema
        for batch in reader:
            batches.append(batch)
    return schema, batches
