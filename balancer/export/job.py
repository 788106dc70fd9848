"""One export in progress: its rows, images, options and destination."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.dataset.splits import SPLITS
from balancer.errors import ManifestError
from balancer.export.destination import Destination
from balancer.export.names import folder_names, image_name
from balancer.manifest.image_files import ImageFiles
from balancer.text.commands import suggested
from balancer.training.labels import Labels
from balancer.training.selection import Selection

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.export.folder import Folder
    from balancer.run_manifest import Manifest

AT_ONCE = 256
"""Rows as Python objects at one time."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of formats. `copy` copies images instead of linking them; `embed` puts the image files into the
    table; `shard_megabytes` caps a tar file; `licence` is an identifier of the Hugging Face hub.
    `recommended` leaves out the generated images that the run's evaluation advises against,
    `quarantined` lets cells in that people found too many errors in (`review.max_error`)."""

    copy: bool = False
    embed: bool = False
    shard_megabytes: float = 500.0
    licence: str = "unknown"
    allow_synthetic_eval: bool = False
    recommended: bool = False
    quarantined: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def given(self) -> dict[str, Any]:
        """Options that differ from their default."""
        defaults = Options().as_dict()
        return {name: value for name, value in self.as_dict().items() if value != defaults[name]}


def option_name(name: str) -> str:
    """The option's name in Python and on the command line."""
    return f"option {name} (--{name.replace('_', '-')})"


@dataclass(frozen=True, slots=True)
class Job:
    """`rows` are in the order of the manifest, `left_out` counts the images left out by the rules of splits,
    and `progress` is called with the number of images done."""

    manifest: Manifest
    rows: pa.Table
    left_out: int
    files: ImageFiles
    labels: Labels
    destination: Destination
    options: Options
    progress: Callable[[int], None]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        selection: Selection,
        path: str,
        identity: Mapping[str, Any],
        options: Options,
        progress: Callable[[int], None],
    ) -> Job:
        return cls(
            manifest=manifest,
            rows=selection.rows,
            left_out=len(selection.left_out),
            files=ImageFiles.of(manifest.uri, manifest.run),
            labels=Labels.of(manifest.run),
            destination=Destination(path, identity, manifest.uri),
            options=options,
            progress=progress,
        )

    @property
    def splits(self) -> list[str]:
        """The splits that have rows."""
        present = set(pc.unique(self.rows["split"]).to_pylist())
        return [split for split in SPLITS if split in present]

    def rows_in_split(self, split: str) -> pa.Table:
        return self.rows.filter(pc.field("split") == split)

    def image(self, row: Row) -> bytes:
        """The image file as it was committed; ManifestError if it has changed."""
        data = self.files.read(row["file_name"], row["source"])
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise ManifestError(
                f"{row['file_name']} is not the image that row {row['id']!r} was written for",
                hint=f"{suggested('fsck', self.manifest.uri)} lists every damaged image",
            )
        return data

    def names_by_class(self, top: str) -> list[str]:
        """A path for the image of each row: `top`/class/name."""
        folders = folder_names(self.labels.classes)
        return [
            f"{top}/{folders[row[CLASS_PROPERTY]]}/{image_name(row['id'], row['file_name'])}"
            for row in iterate_rows(self.rows.select(["id", "file_name", CLASS_PROPERTY]))
        ]

    def copy_images(self, folder: Folder, names: Sequence[str]) -> None:
        """Write the image of each row under its name."""
        for done, (name, row) in enumerate(zip(names, iterate_rows(self.rows), strict=True), start=1):
            folder.put_image(name, row["sha256"], functools.partial(self.image, row))
            self.progress(done)


def iterate_rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=AT_ONCE):
        yield from batch.to_pylist()
