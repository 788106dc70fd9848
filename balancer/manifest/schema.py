"""The Arrow schema of the manifest, and rows as Arrow tables.

A row is a dict keyed by column; columns it lacks are null. `id`, `slot` and `cell` hold the keys of
`balancer.cells`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.errors import ManifestError
from balancer.manifest.columns import COLUMNS, EMBEDDING, FACET, REVIEWED, Type

SCHEMA_VERSION = 2

GROWING = 3
"""The first format of run.json whose runs may get and lose classes and facet values: rows have as many
probabilities as the config had values by then."""

VERSION_KEY = b"balancer.schema_version"

Row = Mapping[str, Any]


def manifest_schema(
    properties: Mapping[str, int], embedding_dim: int, run_format: int = REVIEWED
) -> pa.Schema:
    """`properties` are what candidates are scored on: `class` and the facets, in the config's order, each
    with the number of its values. `probabilities` has one for every value, in that order too; values may come
    and go, from format GROWING on. `run_format` is that of run.json.

    The numbers a verdict follows from are kept as they were judged, in 64 bits: judging a row again
    under the same rules gives the same verdict.
    """
    varying = dict.fromkeys(properties, -1) if run_format >= GROWING else properties
    types = _arrow_types(varying, embedding_dim)
    facets = [property_ for property_ in properties if property_ != CLASS_PROPERTY]
    fields = [
        (name, types[column.type])
        for column in COLUMNS
        if column.since <= run_format
        for name in (facets if column.name == FACET else [column.name])
    ]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


def _arrow_types(properties: Mapping[str, int], embedding_dim: int) -> dict[Type, pa.DataType]:
    probabilities = [(property_, pa.list_(pa.float32(), values)) for property_, values in properties.items()]
    return {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "name": pa.dictionary(pa.int32(), pa.string()),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "uint64": pa.uint64(),
        "double": pa.float64(),
        "time": pa.timestamp("us", tz="UTC"),
        "scores": pa.struct([(property_, pa.float64()) for property_ in properties]),
        "probabilities": pa.struct(probabilities),
        "embedding": pa.list_(pa.float16(), embedding_dim),
    }


def check_version(schema: pa.Schema, path: str) -> None:
    """Raise ManifestError if `path` was written under another schema, or under none."""
    version = (schema.metadata or {}).get(VERSION_KEY, b"").decode("ascii", "replace")
    if not version.isdigit():
        raise ManifestError(f"{path}: it has no schema version, so it is no part of a manifest")
    if int(version) > SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: manifest schema {version} is newer than {SCHEMA_VERSION}, "
            "the newest this version reads",
            hint="upgrade balancer",
        )
    if int(version) < SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: manifest schema {version} is older than {SCHEMA_VERSION}, which this version reads",
            hint="begin the run anew in another folder",
        )


def difference(actual: pa.Schema, expected: pa.Schema) -> str:
    """What is wrong with the columns of `actual`, in words; "" if nothing is. Metadata is not compared."""
    if actual.equals(expected):
        return ""
    for field in actual:
        if _is_extension(field):
            return f"column {field.name!r} has an extension type, which a manifest never has"
    if missing := [name for name in expected.names if name not in actual.names]:
        return f"no column {', '.join(map(repr, missing))}"
    if unknown := [name for name in actual.names if name not in expected.names]:
        return f"unknown column {', '.join(map(repr, unknown))}"
    if actual.names != expected.names:
        return "the columns stand in another order"
    for name in expected.names:
        if actual.field(name).type != expected.field(name).type:
            return f"column {name!r} is {actual.field(name).type}, not {expected.field(name).type}"
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


def rows_with_ids(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    """The rows of a table with these ids, in this order; each must be there."""
    return table.take(pc.index_in(pa.array(ids, pa.string()), value_set=table["id"].combine_chunks()))


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
