"""`parquet`: one Parquet file; with `embed` it contains the images, as `datasets` expects them."""

from __future__ import annotations

from balancer.export.job import Job
from balancer.export.tables import OPTIONS, batches, columns, exported_schema, is_own

__all__ = ["OPTIONS", "columns", "write"]


def write(job: Job) -> None:
    import pyarrow.parquet as pq

    schema = exported_schema(job)
    with (
        job.destination.single_file(lambda path: is_own(path, job, pq.read_schema)) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for table in batches(job, schema):
            writer.write_table(table)
