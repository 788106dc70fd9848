"""The columns of the manifest, and rows as Arrow tables.

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

SCHEMA_VERSION = 2
VERSION_KEY = b"balancer.schema_version"
EMBEDDING = "embedding"

Row = Mapping[str, Any]

MEANINGS = {
    "id": "Its name in the run: `SLOT-ATTEMPT` of a candidate, `real/FILE` of a real image.",
    "file_name": "Its file, relative to the run folder; of a real image under `output.real_images: reference`"
    " the absolute path. Null for a candidate that was never accepted.",
    "class": "The class; of a candidate, the one it was asked to show.",
    "FACET": "A column for each facet of the config. Null where it does not apply, or is not known of a real "
    "image.",
    "cell": "The class and its facet values, joined by `/`.",
    "slot": "The cell and the number of the image wanted in it. A slot has at most one accepted image.",
    "attempt": "The number of this attempt at the slot, from 1.",
    "source": "`synthetic` or `real`.",
    "status": "`accepted`, `rejected` or `void`. A void candidate passes by now, but its image was not kept: "
    "it is made again.",
    "reason": "Why it was rejected: a flaw (`not_finite`, `flagged`, `blank`, `underexposed`, `overexposed`, "
    "`duplicate`, `near_copy`), or the property with the lowest score. Null if accepted.",
    "review": "Marked for a person to look at (`review.fraction`).",
    "score": "The lowest score of the properties that were judged. Null if none was.",
    "scores": "For each property, how likely the image shows what was asked: the verifier's probability, or "
    "the second judge's if that is lower.",
    "probabilities": "For each property, the verifier's probability of every value, in the config's order.",
    "second_scores": "For each property, the second judge's probability. Null without one.",
    "unjudged": "The entries of `verification.unjudged` that concern its cell.",
    "threshold": "The score it had to reach.",
    "fallback": "Whether a rung or `attempts.fallback` lowered its threshold.",
    "prompt": "What the generator was asked for.",
    "negative_prompt": "What the generator was asked to avoid.",
    "wording": "Which of the class's wordings was used, from 0: `prompts` first, then `fallback_prompts`.",
    "changes": "What this attempt changed against a plain one, in words.",
    "seed": "The seed of its noise: 64 bits, unsigned.",
    "model": "The generator: a hub name, a folder, `embedded` or `simulated`.",
    "model_revision": "The commit of the generator on the hub.",
    "verifier": "The verifier, named likewise.",
    "verifier_revision": "The commit of the verifier on the hub.",
    "steps": "Denoising steps.",
    "guidance": "Guidance scale.",
    "width": "Width in pixels.",
    "height": "Height in pixels.",
    "sha256": "Hash of the file.",
    "num_bytes": "Size of the file.",
    "brightness": "Mean luminance, 0 to 1.",
    "deviation": "Standard deviation of luminance; close to 0 in a blank image.",
    "nonfinite": "How many values of its latents or pixels were NaN or infinite.",
    "unsafe": "How sure the safety checker objects, 0 to 1. Null without one.",
    "pixel_sha256": "Hash of the decoded pixels; two files of one picture share it.",
    "phash": "Perceptual hash.",
    "nearest_id": "The known image most like it. Null if it was not compared.",
    "nearest_distance": "Bits in which the two perceptual hashes differ, 0 to 64.",
    "nearest_similarity": "Cosine of the two embeddings.",
    "embedding": "The verifier's embedding of the image.",
    "parent_id": "The image it was generated from, if there is one.",
    "split": "`train`, `validation` or `test`. Generated images are `train`.",
    "device": "The device it was generated on.",
    "batch_size": "How many images went through the generator together.",
    "generated_at": "When its row was made.",
    "run_id": "The run.",
}
"""What each column says; `FACET` stands for those of the facets."""


def manifest_schema(properties: Mapping[str, int], embedding_dim: int) -> pa.Schema:
    """`properties` are what candidates are scored on: `class` and the facets, in the config's order, each
    with the number of its values. `probabilities` has one for every value, in that order too.

    The numbers a verdict follows from are kept as they were judged, in 64 bits: judging a row again
    under the same rules gives the same verdict.
    """
    text = pa.string()
    name = pa.dictionary(pa.int32(), text)
    scores = pa.struct([(property_, pa.float64()) for property_ in properties])
    probabilities = pa.struct(
        [(property_, pa.list_(pa.float32(), values)) for property_, values in properties.items()]
    )
    facets = [property_ for property_ in properties if property_ != CLASS_PROPERTY]
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
        ("probabilities", probabilities),
        ("second_scores", scores),
        ("unjudged", pa.list_(text)),
        ("threshold", pa.float64()),
        ("fallback", pa.bool_()),
        ("prompt", text),
        ("negative_prompt", text),
        ("wording", pa.int32()),
        ("changes", pa.list_(text)),
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
        ("brightness", pa.float64()),
        ("deviation", pa.float64()),
        ("nonfinite", pa.int32()),
        ("unsafe", pa.float64()),
        ("pixel_sha256", text),
        ("phash", text),
        ("nearest_id", text),
        ("nearest_distance", pa.int32()),
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
    """Raise ManifestError if `path` was written under another schema, or under none."""
    found = (schema.metadata or {}).get(VERSION_KEY, b"").decode("ascii", "replace")
    if not found.isdigit():
        raise ManifestError(f"{path}: it has no schema version, so it is no part of a manifest")
    if int(found) > SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: manifest schema {found} is newer than {SCHEMA_VERSION}, the newest this version reads",
            hint="upgrade balancer",
        )
    if int(found) < SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: manifest schema {found} is older than {SCHEMA_VERSION}, which this version reads",
            hint="begin the run anew in another folder",
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
