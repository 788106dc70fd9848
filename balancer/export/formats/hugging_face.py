"""`hf`: an imagefolder for Hugging Face's `datasets` with a dataset card, ready to upload.

README.md
train/metadata.parquet
train/<class>/...            and the same for validation and test, where there are any
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY
from balancer.export.card import card_text
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, iterate_rows
from balancer.export.metadata import class_label, hugging_face_types, metadata_columns, metadata_table
from balancer.export.names import folder_names, image_name
from balancer.manifest.formats import parquet_bytes

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = frozenset({"licence"})

METADATA = "metadata.parquet"
LABEL = "label"


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    folders = folder_names(job.labels.classes, taken=[METADATA])
    done = itertools.count(1)
    with claimed(job.destination) as folder:
        folder.put("README.md", card_text(job).encode())
        for split in job.splits:
            rows, names = job.rows_in_split(split), []
            for row in iterate_rows(rows):
                name = f"{folders[row[CLASS_PROPERTY]]}/{image_name(row['id'], row['file_name'])}"
                folder.put_image(f"{split}/{name}", row["sha256"], functools.partial(job.image, row))
                names.append(name)
                job.progress(next(done))
            folder.put(f"{split}/{METADATA}", parquet_bytes(_metadata(rows, names, job)))


def _metadata(rows: pa.Table, names: Sequence[str], job: Job) -> pa.Table:
    """With the label as a number, whose names `datasets` reads, and the class as text for other readers."""
    table = metadata_table(rows, job.manifest.run, names)
    place = table.column_names.index(LABEL)
    classes = table[LABEL]
    table = table.set_column(place, LABEL, [job.labels.numbers(rows, CLASS_PROPERTY)])
    table = table.add_column(place + 1, CLASS_PROPERTY, classes)
    return table.replace_schema_metadata(hugging_face_types({LABEL: class_label(job.labels.classes)}))
