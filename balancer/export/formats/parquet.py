"""`parquet`: one Parquet file; with `embed` it contains the images, as `datasets` expects them."""

from __future__ import annotations

import os

import pyarrow as pa

from balancer.export.job import Job
from balancer.export.tables import OPTIONS, batches, columns, exported_schema, is_own

__all__ = ["OPTIONS", "columns", "write"]


def write(job: Job) -> None:
    import pyarrow.parquet as pq

    schema = exported_schema(job)
    with (
        job.destination.single_file(lambda path: is_own(path, job, pq.read_schema)) as temporary,
        pa.OSFile(os.fsencode(temporary), "wb") as sink,  # a str must be UTF-8
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        for table in batches(job, schema):
            writer.write_table(table)
