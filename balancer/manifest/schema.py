"""The columns of the manifest, and rows as Arrow tables.

A row is a dict keyed by column; columns it lacks are null. `id`, `slot` and `cell` hold the keys of
`balancer.cells`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from balancer.errors import ManifestError

SCHEMA_VERSION = 1
VERSION_KEY = b"balancer.schema_version"
EMBEDDING = "embedding"

Row = Mapping[str, Any]


def manifest_schema(facets: Sequence[str], properties: Sequence[str], embedding_dim: int) -> pa.Schema:
    """`properties` are what candidates are scored on: `class` and the facets, in the config's order."""
    text = pa.string()
    name = pa.dictionary(pa.int32(), text)
    scores = pa.struct([(name_, pa.float32()) for name_ in properties])
    columns = [
        ("id", text),
        ("file_name", text),
        ("class", name),
        *((facet, name) for facet in facets),
        ("cell", text),
        ("slot", text),
        ("attempt", pa.int32()),
        ("source", text),
        ("status", text),
        ("reason", text),
        ("review", pa.bool_()),
        ("score", pa.float64()),
        ("scores", scores),
        ("threshold", pa.float64()),
        ("fallback", pa.bool_()),
        ("prompt", text),
        ("negative_prompt", text),
        ("seed", pa.uint64()),
        ("model", text),
        ("model_revision", text),
        ("verifier", text),
        ("verifier_revision", text),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", text),
        ("num_bytes", pa.int64()),
        ("phash", text),
        ("nearest_id", text),
        ("nearest_similarity", pa.float64()),
        (EMBEDDING, pa.list_(pa.float16(), embedding_dim)),
        ("parent_id", text),
        ("split", text),
        ("device", text),
        ("batch_size", pa.int32()),
        ("generated_at", pa.timestamp("us", tz="UTC")),
        ("run_id", text),
    ]
    return pa.schema(columns, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


def check_version(schema: pa.Schema, path: str) -> None:
    """Raise ManifestError if `path` was written under a newer schema, or under none."""
    found = (schema.metadata or {}).get(VERSION_KEY, b"").decode("ascii", "replace")
    if not found.isdigit():
        raise ManifestError(f"{path}: it has no schema version, so it is no part of a manifest")
    if int(found) > SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: manifest schema {found} is newer than {SCHEMA_VERSION}, the newest this version reads",
            hint="upgrade balancer",
        )


def difference(found: pa.Schema, expected: pa.Schema) -> str:
    """What is wrong with the columns of `found`, in words; "" if nothing is. Metadata is not compared."""
    if found.equals(expected):
        return ""
    for field in found:
        if _is_extension(field):
            return f"column {field.name!r} has an extension type, which a manifest never has"
    if missing := [name for name in expected.names if name not in found.names]:
        return f"no column {', '.join(map(repr, missing))}"
    if unknown := [name for name in found.names if name not in expected.names]:
        return f"unknown column {', '.join(map(repr, unknown))}"
    if found.names != expected.names:
        return "the columns stand in another order"
    for name in expected.names:
        if found.field(name).type != expected.field(name).type:
            return f"column {name!r} is {found.field(name).type}, not {expected.field(name).type}"
    return ""


def rows_to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly `schema`.

    An embedding may be an array, a sequence of numbers, or little-endian float16 bytes.
    Raises ManifestError naming the column and a row that does not fit it.
    """
    known = set(schema.names)
    for row in rows:
        if unknown := row.keys() - known:
            names = ", ".join(sorted(unknown))
            raise ManifestError(f"row {row.get('id')!r} has no place for {names} in the manifest")
    columns = [_column([row.get(field.name) for row in rows], field, rows) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], field: pa.Field, rows: Sequence[Row]) -> pa.Array:
    try:
        if field.name == EMBEDDING:
            return _embeddings(values, field.type)
        return pa.array(values, type=field.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        first = rows[0].get("id") if rows else None
        raise ManifestError(
            f"column {field.name!r} of the {len(rows)} rows from {first!r} on is not {field.type}: {error}"
        ) from error


def _embeddings(values: list[Any], list_type: pa.DataType) -> pa.Array:
    matrix = np.zeros((len(values), list_type.list_size), dtype="<f2")
    for index, value in enumerate(values):
        if value is not None:
            matrix[index] = _vector(value, list_type.list_size)
    missing = pa.array([value is None for value in values], type=pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=list_type, mask=missing)


def _vector(value: Any, size: int) -> np.ndarray[Any, Any]:
    vector = np.frombuffer(value, dtype="<f2") if isinstance(value, bytes) else np.asarray(value)
    if vector.shape != (size,):
        raise ValueError(f"an embedding of shape {vector.shape}, not ({size},)")
    return vector


def _is_extension(field: pa.Field) -> bool:
    children = (field.type.field(i) for i in range(field.type.num_fields))
    return isinstance(field.type, pa.BaseExtensionType) or any(_is_extension(child) for child in children)
