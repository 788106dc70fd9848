"""`arrow`: one Arrow IPC (Feather) file; with `embed` it contains the images."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa

from balancer.export.job import Job
from balancer.export.tables import OPTIONS, batches, columns, exported_schema, is_own

__all__ = ["OPTIONS", "columns", "write"]


def write(job: Job) -> None:
    schema = exported_schema(job)
    with (
        job.destination.single_file(lambda path: is_own(path, job, _read_schema)) as temporary,
        pa.ipc.new_file(temporary, schema) as writer,
    ):
        for table in batches(job, schema):
            writer.write_table(table)


def _read_schema(file: BinaryIO) -> pa.Schema:
    return pa.ipc.open_file(file).schema
