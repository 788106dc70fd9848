"""`labelstudio`: tasks with predictions, the images, and the labelling interface that goes with them.

tasks.json          to import; predictions are the verifier's, or the dataset's labels
label_config.xml    the labelling interface
images/<class>/     served by Label Studio from DEST as LOCAL_FILES_DOCUMENT_ROOT, with the folder
                    DEST/images as a local storage
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from balancer.cells import CLASS_PROPERTY
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, Row, iterate_rows
from balancer.export.metadata import (
    facet_columns,
    hash_rows,
    json_row,
    judged_score,
    metadata_columns,
    metadata_table,
)
from balancer.manifest.rows import REAL
from balancer.storage import slug
from balancer.text.names import free_names

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS: frozenset[str] = frozenset()

IMAGE = "image"
"""The name of the image in the interface."""

DATASET_LABELS = "dataset"
"""Model version of predictions that are the labels of real images."""


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    names = job.names_by_class("images")
    with claimed(job.destination) as folder:
        job.copy_images(folder, names)
        folder.put("label_config.xml", _interface(job).encode())
        table = metadata_table(job.rows, job.manifest.run, names)
        make = functools.partial(_document, table, job)
        folder.put_generated("tasks.json", hash_rows(table), make)


def _document(table: pa.Table, job: Job) -> Iterator[bytes]:
    for number, row in enumerate(iterate_rows(table)):
        yield (b",\n" if number else b"[\n") + json.dumps(
            _task(row, job), ensure_ascii=False, allow_nan=False
        ).encode()
    yield b"\n]\n"


def _task(row: Row, job: Job) -> dict[str, Any]:
    facets = facet_columns(job.manifest.run)
    controls = control_names(job.labels.facets)
    properties = [(CLASS_PROPERTY, row["label"]), *((name, row[column]) for name, column in facets.items())]
    results = [
        _choice(name, controls[name], value, judged_score(row, name), row["id"])
        for name, value in properties
        if value is not None
    ]
    prediction: dict[str, Any] = {"model_version": _judge(row), "result": results}
    if row["score"] is not None:
        prediction["score"] = row["score"]
    image = f"/data/local-files/?d={quote(row['file_name'])}"
    return {"data": {"image": image, **json_row(row)}, "predictions": [prediction]}


def control_names(facets: Iterable[str]) -> dict[str, str]:
    """The name of each property's control; the image has a name as well."""
    slugs = {name: slug(name) for name in (CLASS_PROPERTY, *facets)}
    free = free_names(list(slugs.values()), [IMAGE])
    return {name: free[plain] for name, plain in slugs.items()}


def _choice(name: str, control: str, value: str, score: float | None, row_id: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "id": hashlib.blake2b(f"{row_id}\n{name}".encode(), digest_size=5).hexdigest(),
        "from_name": control,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [value]},
    }
    return choice if score is None else choice | {"score": score}


def _judge(row: Mapping[str, Any]) -> str:
    if row["source"] == REAL:
        return DATASET_LABELS
    revision = row["verifier_revision"]
    return f"{row['verifier']} at {revision}" if revision else str(row["verifier"])


def _interface(job: Job) -> str:
    axes = {CLASS_PROPERTY: job.labels.classes, **job.labels.facets}
    controls = control_names(job.labels.facets)
    lines = ["<View>", f'  <Image name="{IMAGE}" value="$image"/>']
    for name, values in axes.items():
        lines.append(f"  <Header value={quoteattr(name)}/>")
        lines.append(f'  <Choices name={quoteattr(controls[name])} toName="{IMAGE}" choice="single">')
        lines += [f"    <Choice value={quoteattr(value)}/>" for value in values]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])
