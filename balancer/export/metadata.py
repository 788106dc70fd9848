"""The metadata of each image in an export, under self-explanatory names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.columns import exported_names
from balancer.manifest.formats import arrow_bytes, exact
from balancer.text.names import free_names
from balancer.training.labels import plain

if TYPE_CHECKING:
    from balancer.manifest.runfile import RunInfo

LAYOUT = 2
"""Version of the files that exports write. An export of another version is a different export."""

SINGLE = exported_names()
NEEDED = ("id", "file_name", "class", "source", "split", "sha256", "scores", "unjudged")
"""Columns of the manifest that every export needs."""


def metadata_columns(run_schema: pa.Schema) -> list[str]:
    """The columns of the manifest behind `metadata_table`."""
    facets = [field.name for field in run_schema if pa.types.is_dictionary(field.type)]
    single = [name for name in SINGLE if name in run_schema.names]  # earlier versions had fewer
    return list(dict.fromkeys([*NEEDED, *facets, *single]))


def facet_columns(run: RunInfo) -> dict[str, str]:
    """The column of each facet: its name, unless that name is taken."""
    scores = [f"score_{name}" for name in run.properties]
    return free_names(run.facets, ("image", "file_name", "id", "label", "unjudged", *SINGLE, *scores))


def metadata_table(rows: pa.Table, run: RunInfo, file_names: Iterable[str]) -> pa.Table:
    """`file_name` as in the export, id, `label`, facets, single values, `unjudged`, and a `score_<property>`
    for each property.

    Seeds are text, and a score that is no number is null: JSON has neither.
    """
    columns: dict[str, Any] = {
        "file_name": pa.array(file_names, pa.string()),
        "id": plain(rows["id"]),
        "label": plain(rows[CLASS_PROPERTY]),
    }
    columns |= {column: plain(rows[facet]) for facet, column in facet_columns(run).items()}
    columns |= {name: plain(rows[name]) for name in SINGLE if name in rows.column_names}
    columns["unjudged"] = rows["unjudged"]
    scores = rows["scores"].combine_chunks()
    # By index, because Arrow reads a name that begins with a dot as a path.
    indices = {name: scores.type.get_field_index(name) for name in run.properties}
    columns |= {f"score_{name}": pc.struct_field(scores, [index]) for name, index in indices.items()}
    return exact(pa.table({name: _numbers_only(column) for name, column in columns.items()}))


def _numbers_only(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def judged_score(row: dict[str, Any], property_: str) -> float | None:
    """The verifier's confidence in a label; None if the property was not judged."""
    if property_ in (row["unjudged"] or ()):
        return None
    score: float | None = row[f"score_{property_}"]
    return score


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a metadata table as JSON values without nulls."""
    values = {name: value for name, value in row.items() if value is not None}
    if "generated_at" in values:
        values["generated_at"] = values["generated_at"].isoformat()
    return values


def class_label(names: Sequence[str]) -> dict[str, Any]:
    """The type of a column of label numbers, as Hugging Face's `datasets` writes it."""
    return {"_type": "ClassLabel", "names": list(names)}


def hugging_face_types(features: dict[str, Any]) -> dict[bytes, bytes]:
    """Metadata of an Arrow schema that gives `datasets` the types of these columns."""
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def hash_rows(table: pa.Table) -> str:
    """Identifies a file by the rows it is made from."""
    return hashlib.sha256(arrow_bytes(table.combine_chunks())).hexdigest()
