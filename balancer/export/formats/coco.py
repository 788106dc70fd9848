"""`coco`: COCO annotations whose boxes are whole images.

annotations/instances_train.json    and the same for validation and test, where there are any
images/<class>/                     `file_name` is relative to this folder's parent
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from balancer.export.folder import claimed
from balancer.export.job import Job, Options, Row, iterate_rows
from balancer.export.metadata import hash_rows, json_row, metadata_columns, metadata_table

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS: frozenset[str] = frozenset()

OWN: tuple[str, ...] = ("file_name", "width", "height")

COCO_NAMES = {"validation": "val"}
"""Splits that COCO calls otherwise."""


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    names = job.names_by_class("images")
    with claimed(job.destination) as folder:
        job.copy_images(folder, names)
        table = metadata_table(job.rows, job.manifest.run, names)
        for split in job.splits:
            part = table.filter(pc.field("split") == split)
            path = f"annotations/instances_{COCO_NAMES.get(split, split)}.json"
            folder.put_generated(path, hash_rows(part), functools.partial(_document, part, job))


def _document(table: pa.Table, job: Job) -> Iterator[bytes]:
    """In parts, because a dataset can be larger than memory. Numbers begin at 1: to some readers 0 is the
    background."""
    categories = {name: number for number, name in enumerate(job.labels.classes, start=1)}
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    yield b'{"categories": ' + _json(listed) + b', "images": [\n'
    for number, row in enumerate(iterate_rows(table), start=1):
        yield (b",\n" if number > 1 else b"") + _json(_image(number, row))
    yield b'\n], "annotations": [\n'
    for number, row in enumerate(iterate_rows(table), start=1):
        yield (b",\n" if number > 1 else b"") + _json(_annotation(number, row, categories[row["label"]]))
    yield b"\n]}\n"


def _image(number: int, row: Row) -> dict[str, Any]:
    values = json_row(row)
    own = {name: values.pop(name) for name in OWN if name in values}
    return {"id": number, **own, "metadata": values}


def _annotation(number: int, row: Row, category: int) -> dict[str, Any]:
    labelled = {"id": number, "image_id": number, "category_id": category, "iscrowd": 0}
    width, height = row["width"], row["height"]
    if width is None or height is None:
        return labelled
    outline = [0, 0, width, 0, width, height, 0, height]
    return labelled | {"bbox": [0, 0, width, height], "area": width * height, "segmentation": [outline]}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
