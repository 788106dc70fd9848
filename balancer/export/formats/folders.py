"""`folders`: class folders for people, and for readers such as torchvision's `ImageFolder(DEST/train)`.

    train/basic/...                        one folder a class, and nothing else
    facets/train/lighting/dim_ambient/...  the same images by the values of each facet
    facets/train/burn_levels/severely_burnt/...
    metadata/train.parquet, metadata/train.csv

All are links to the images in the run folder, or copies. Validation and test have the same folders, if they
have images. Each split has a folder for every class of the export, so labels are the same numbers in all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError
from balancer.export.folder import Folder, claimed
from balancer.export.job import Job, Options, Row, iterate_rows
from balancer.export.metadata import metadata_columns, metadata_table
from balancer.export.names import folder_names, image_name
from balancer.manifest.formats import csv_text, parquet_bytes

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = frozenset({"copy"})

METADATA = "metadata"
BY_FACET = "facets"


def columns(options: Options, schema: pa.Schema) -> list[str]:
    return metadata_columns(schema)


def write(job: Job) -> None:
    places = _Places(job)
    done = itertools.count(1)
    with claimed(job.destination) as folder:
        for split in job.splits:
            for class_folder in places.class_folders:
                folder.make_folder(f"{split}/{class_folder}")
            rows, names = job.rows_in_split(split), []
            for row in iterate_rows(rows):
                paths = places.paths(row, split)
                names.append(paths[0])
                _place(folder, paths, row, job)
                job.progress(next(done))
            table = metadata_table(rows, job.manifest.run, names)
            folder.put(f"{METADATA}/{split}.parquet", parquet_bytes(table))
            folder.put(f"{METADATA}/{split}.csv", csv_text(table).encode())


class _Places:
    """The paths of an image: in its class folder first, then in a folder for each facet that has a value."""

    def __init__(self, job: Job) -> None:
        run = job.manifest.run
        folders = [facet_folder(name) for name in run.facets]
        facets = {
            name: folder if folders.count(folder) == 1 else name
            for name, folder in zip(run.facets, folders, strict=True)
        }
        names = folder_names(facets.values())
        self._facets = {name: names[folder] for name, folder in facets.items()}
        self._classes = folder_names(job.labels.classes)
        self.class_folders = [self._classes[name] for name in _values(job.rows, CLASS_PROPERTY)]
        self._values = {name: folder_names(_values(job.rows, name)) for name in run.facets}

    def paths(self, row: Row, split: str) -> list[str]:
        name = image_name(row["id"], row["file_name"])
        paths = [f"{split}/{self._classes[row[CLASS_PROPERTY]]}/{name}"]
        for facet, folder in self._facets.items():
            if (value := row[facet]) is not None:
                paths.append(f"{BY_FACET}/{split}/{folder}/{self._values[facet][value]}/{name}")
        return paths


def facet_folder(name: str) -> str:
    """`burn_levels` for `burn_level`, as the earlier tool has it. Names in -ing or -s, and names of several
    words, stay as they are."""
    return name if " " in name or name.endswith(("ing", "s")) else f"{name}s"


def _values(rows: pa.Table, column: str) -> Sequence[str]:
    """The values that occur. A dataset may have more values of a facet than the config."""
    import pyarrow.compute as pc

    return sorted(value for value in pc.unique(rows[column]).to_pylist() if value is not None)


def _place(folder: Folder, paths: Sequence[str], row: Row, job: Job) -> None:
    if job.options.copy:
        for path in paths:
            folder.put_image(path, row["sha256"], lambda: job.image(row))
        return
    targets = job.files.local_paths([(row["file_name"], row["source"])])
    if targets is None:
        raise UsageError(
            f"{job.manifest.uri} is not a local folder, so links are impossible", hint="add --copy"
        )
    job.image(row)  # link only to the image that was committed
    for path in paths:
        folder.link(path, Path(targets[0]))
