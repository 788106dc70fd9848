"""`fiftyone`: FiftyOne's own format on disk, read by

    fiftyone.Dataset.from_dir(DEST, dataset_type=fiftyone.types.FiftyOneDataset)

The class is in the field `ground_truth`, each facet in a field of its name, split and source are tags.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, Row, iterate_rows
from balancer.export.metadata import facet_columns, hash_rows, judged_score, metadata_columns, metadata_table
from balancer.storage import slug

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS: frozenset[str] = frozenset()

VERSION = "1.0.0"
"""FiftyOne's version; newer ones migrate older data."""

GROUND_TRUTH = "ground_truth"

_TAKEN = frozenset(
    "id filepath tags metadata media_type created_at last_modified_at ground_truth dataset_id rand "
    "pk objects meta dataset dataset_name filename frames frame_number sample_id in_dataset in_db "
    "field_names get_field set_field clear_field has_field iter_fields save reload delete update modify "
    "clean copy merge validate to_dict from_dict to_json from_json to_mongo to_mongo_dict to_dbref "
    "add_labels compute_metadata select_related cascade_save register_delete_rule STRICT "
    "update_field from_doc from_frame compare_indexes create_index list_indexes ensure_index ensure_indexes "
    "drop_collection switch_collection switch_db my_metaclass fancy_getattr".split()
)
"""Fields and attributes that FiftyOne's samples or this export already have."""

_OWN_PREFIXES = ("balancer_", "field_")
"""A facet with such a prefix gets another one, or it could clash with a renamed facet."""

_PLAIN_TYPES = {
    pa.string(): "StringField",
    pa.bool_(): "BooleanField",
    pa.float64(): "FloatField",
    pa.int32(): "IntField",
}


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    names = job.names_by_class("data")
    table = metadata_table(job.rows, job.manifest.run, names).drop_columns(["generated_at"])
    facets = facet_columns(job.manifest.run)
    plain = [name for name in table.column_names if name not in {"file_name", "label", *facets.values()}]
    with claimed(job.destination) as folder:
        job.copy_images(folder, names)
        make = functools.partial(_samples, table, plain, facets)
        folder.put_generated("samples.json", hash_rows(table), make)
        folder.put("metadata.json", json.dumps(_metadata(job, table, plain, facets), indent=2).encode())


def _samples(table: pa.Table, plain: list[str], facets: Mapping[str, str]) -> Iterator[bytes]:
    yield b'{"samples": ['
    for number, row in enumerate(iterate_rows(table)):
        yield (b",\n" if number else b"\n") + json.dumps(
            _sample(row, plain, facets), allow_nan=False
        ).encode()
    yield b"\n]}\n"


def _sample(row: Row, plain: list[str], facets: Mapping[str, str]) -> dict[str, Any]:
    values = {field_name(name): row[name] for name in plain}
    labels = {GROUND_TRUTH: (row["label"], judged_score(row, CLASS_PROPERTY))}
    labels |= {
        field_name(column): (row[column], judged_score(row, facet)) for facet, column in facets.items()
    }
    return {
        "_id": {"$oid": _object_id(row["id"])},
        "filepath": row["file_name"],
        "tags": [row["split"], row["source"]],
        "_media_type": "image",
        "_rand": int(_object_id(row["id"])[:8], 16) / 2**32,
        **{field: _classification(row["id"], field, *label) for field, label in labels.items()},
        **values,
    }


def _classification(row_id: str, field: str, label: str | None, score: float | None) -> dict[str, Any] | None:
    if label is None:
        return None
    classification: dict[str, Any] = {
        "_id": {"$oid": _object_id(f"{row_id}\n{field}")},
        "_cls": "Classification",
        "tags": [],
        "label": label,
    }
    return classification if score is None else classification | {"confidence": score}


def _metadata(job: Job, table: pa.Table, plain: list[str], facets: Mapping[str, str]) -> dict[str, Any]:
    run = job.manifest.run
    name = run.name or f"balancer {run.run_id}"
    fields = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield="fiftyone.core.fields.StringField"),
        _field("metadata", "EmbeddedDocumentField", document="fiftyone.core.metadata.ImageMetadata"),
        *(_label_field(field) for field in (GROUND_TRUTH, *map(field_name, facets.values()))),
        *(_plain_field(field_name(name), table.schema.field(name).type) for name in plain),
    ]
    classes = {field_name(column): list(job.labels.facets[name]) for name, column in facets.items()}
    return {
        "_id": {"$oid": _object_id(run.run_id)},
        "name": name,
        "version": VERSION,
        "media_type": "image",
        "persistent": False,
        "tags": [],
        "info": {"balancer_run_id": run.run_id, "balancer_versions": dict(run.versions)},
        "app_config": {},
        "classes": {GROUND_TRUTH: list(job.labels.classes), **classes},
        "default_classes": list(job.labels.classes),
        "mask_targets": {},
        "default_mask_targets": {},
        "skeletons": {},
        "sample_fields": fields,
        "frame_fields": [],
        "saved_views": [],
        "annotation_runs": {},
        "brain_methods": {},
        "evaluations": {},
        "runs": {},
    }


def _plain_field(name: str, kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return _field(name, "ListField", subfield=f"fiftyone.core.fields.{_PLAIN_TYPES[kind.value_type]}")
    return _field(name, _PLAIN_TYPES[kind])


def _label_field(name: str) -> dict[str, Any]:
    inner = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("tags", "ListField", subfield="fiftyone.core.fields.StringField"),
        _field("label", "StringField"),
        _field("confidence", "FloatField"),
        _field("logits", "VectorField"),
    ]
    document = "fiftyone.core.labels.Classification"
    return _field(name, "EmbeddedDocumentField", document=document, fields=inner)


def _field(
    name: str,
    kind: str,
    *,
    subfield: str | None = None,
    document: str | None = None,
    db_field: str | None = None,
    fields: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "subfield": subfield,
        "embedded_doc_type": document,
        "db_field": db_field or name,
        "fields": fields or [],
        "description": None,
        "info": None,
    }


def field_name(column: str) -> str:
    """The field of a column: a valid Python identifier, because fields are also attributes of samples."""
    if not column.isidentifier() or column.startswith("_"):
        column = f"field_{slug(column).replace('-', '_')}"
    elif column in _TAKEN or column.startswith(_OWN_PREFIXES):
        column = f"balancer_{column}"
    return column


def _object_id(text: str) -> str:
    """24 hex digits, a hash of the text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
