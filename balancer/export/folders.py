"""`folders`: the layout of the earlier tool, which people and image folders of any library read.

    basic/...                     one folder a class
    lighting/dim_ambient/...      the same images by the values of each facet
    burn_levels/severely_burnt/...
    metadata/images.parquet, metadata/images.csv

All are links to the images in the run folder, or copies. Where a run has images for validation or test, each
split is a folder with these in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError
from balancer.export.folder import Folder, claimed
from balancer.export.job import Job, Options, Row, rows_of
from balancer.export.metadata import metadata_columns, metadata_table
from balancer.export.names import folder_names, image_name
from balancer.manifest.formats import csv_text, parquet_bytes
from balancer.splits import SPLITS, TRAIN

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = frozenset({"copy"})

METADATA = "metadata"


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    places = _Places(job)
    done = itertools.count(1)
    with claimed(job.destination) as folder:
        for split in job.splits:
            top = f"{split}/" if job.splits != [TRAIN] else ""
            rows, names = job.of_split(split), []
            for row in rows_of(rows):
                first, *others = (top + path for path in places.of(row))
                names.append(first.removeprefix(top))
                _place(folder, (first, *others), row, job)
                job.progress(next(done))
            table = metadata_table(rows, job.manifest.run, names)
            folder.put(f"{top}{METADATA}/images.parquet", parquet_bytes(table))
            folder.put(f"{top}{METADATA}/images.csv", csv_text(table).encode())


class _Places:
    """Where an image goes: its class folder first, then one for each facet that has a value."""

    def __init__(self, job: Job) -> None:
        run = job.manifest.run
        folders = [facet_folder(name) for name in run.facets]
        facets = {
            name: folder if folders.count(folder) == 1 else name
            for name, folder in zip(run.facets, folders, strict=True)
        }
        self._facets = folder_names(facets.values(), taken=[METADATA, *SPLITS])
        self._facets = {name: self._facets[folder] for name, folder in facets.items()}
        self._classes = folder_names(job.labels.classes, taken=[METADATA, *SPLITS, *self._facets.values()])
        self._values = {name: folder_names(_values(job.rows, name)) for name in run.facets}

    def of(self, row: Row) -> list[str]:
        name = image_name(row["id"], row["file_name"])
        paths = [f"{self._classes[row[CLASS_PROPERTY]]}/{name}"]
        for facet, folder in self._facets.items():
            if (value := row[facet]) is not None:
                paths.append(f"{folder}/{self._values[facet][value]}/{name}")
        return paths


def facet_folder(name: str) -> str:
    """`burn_levels` for `burn_level`, as the earlier tool has it; `lighting` is not counted and stays."""
    return name if name.endswith(("ing", "s")) else f"{name}s"


def _values(rows: pa.Table, facet: str) -> Sequence[str]:
    """A dataset may know more values than the config."""
    import pyarrow.compute as pc

    return sorted(value for value in pc.unique(rows[facet]).to_pylist() if value is not None)


def _place(folder: Folder, paths: Sequence[str], row: Row, job: Job) -> None:
    if job.options.copy:
        for path in paths:
            folder.put_image(path, row["sha256"], lambda: job.image(row))
        return
    targets = job.files.local_paths([(row["file_name"], row["source"])])
    if targets is None:
        raise UsageError(f"{job.manifest.uri} is no folder that links can lead to", hint="add --copy")
    job.image(row)  # a link is to the image that was committed, and to no other
    for path in paths:
        folder.link(path, Path(targets[0]))
