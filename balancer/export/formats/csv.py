"""`csv`: one table of files and labels, which most tools import.

labels.csv          file_name, label, split, facets, and the rest of the metadata
images/<class>/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.export.folder import claimed
from balancer.export.job import Job, Options
from balancer.export.metadata import metadata_columns, metadata_table
from balancer.manifest.formats import csv_text

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS: frozenset[str] = frozenset()


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    names = job.names_by_class("images")
    with claimed(job.destination) as folder:
        job.copy_images(folder, names)
        folder.put("labels.csv", csv_text(metadata_table(job.rows, job.manifest.run, names)).encode())
