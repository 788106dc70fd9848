"""`arrow`: one Arrow IPC (Feather) file; with `embed` it contains the images."""

from __future__ import annotations

import os
from typing import BinaryIO

import pyarrow as pa

from balancer.export.job import Job
from balancer.export.tables import OPTIONS, batches, columns, exported_schema, is_own

__all__ = ["OPTIONS", "columns", "write"]


def write(job: Job) -> None:
    schema = exported_schema(job)
    with (
        job.destination.single_file(lambda path: is_own(path, job, _read_schema)) as temporary,
        pa.OSFile(os.fsencode(temporary), "wb") as sink,  # a str must be UTF-8
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for table in batches(job, schema):
            writer.write_table(table)


def _read_schema(file: BinaryIO) -> pa.Schema:
    return pa.ipc.open_file(file).schema
