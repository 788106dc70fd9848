"""`hf`: an imagefolder for Hugging Face's `datasets` with a dataset card, to be uploaded as it is.

README.md
train/metadata.parquet
train/<class>/...            and the same for validation and test, where there are any
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY
from balancer.export.card import card_text
from balancer.export.folder import claimed
from balancer.export.job import Job, Options, rows_of
from balancer.export.metadata import metadata_columns, metadata_table
from balancer.export.names import folder_names, image_name
from balancer.manifest.formats import parquet_bytes

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = frozenset({"licence"})

METADATA = "metadata.parquet"


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    folders = folder_names(job.labels.classes, taken=[METADATA])
    done = itertools.count(1)
    with claimed(job.destination) as folder:
        folder.put("README.md", card_text(job).encode())
        for split in job.splits:
            rows, names = job.of_split(split), []
            for row in rows_of(rows):
                name = f"{folders[row[CLASS_PROPERTY]]}/{image_name(row['id'], row['file_name'])}"
                folder.put_image(f"{split}/{name}", row["sha256"], functools.partial(job.image, row))
                names.append(name)
                job.progress(next(done))
            table = metadata_table(rows, job.manifest.run, names)
            folder.put(f"{split}/{METADATA}", parquet_bytes(table))
