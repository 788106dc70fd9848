"""The manifest of a run for those who use it: rows, lineage, images and datasets to train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from balancer.manifest.query.rows import Filter, ManifestRows, Status, as_list, open_rows
from balancer.manifest.runfile import RunInfo
from balancer.storage import Storage, open_storage
from balancer.training.choice import Choice

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import ray.data
    from numpy.typing import NDArray

    from balancer.runs.lineage import Lineage
    from balancer.training.images import ManifestImages
    from balancer.training.torch_dataset import ImageDataset, ImageSampler, Transform


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """The rows of a run as they were when it was opened; `run` says what the run is.

    A row is read when it is asked for, and of it the columns that are: from the compacted copy, if there is
    one (`balancer compact`), and from what the log has since. Any method raises ManifestError if what it
    reads was damaged, or deleted after the manifest was compacted anew.
    """

    rows: ManifestRows
    """What queries and training read; the methods below are all that most programs need."""

    @property
    def run(self) -> RunInfo:
        return self.rows.run

    @property
    def uri(self) -> str:
        """The run folder."""
        return self.rows.uri

    def __repr__(self) -> str:
        facets = f", facets={self.run.facets!r}" if self.run.facets else ""
        classes = len(self.run.config["classes"])
        return f"Manifest({self.uri!r}, run_id={self.run.run_id!r}, classes={classes}{facets})"

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and a few rows with their images."""
        from balancer.report.notebook import manifest_html

        return manifest_html(self.rows)

    @property
    def schema(self) -> pa.Schema:
        return self.rows.schema

    def dataset(self, columns: Sequence[str] | None = None) -> ds.Dataset:
        """Every row, rejected candidates included, as its last verdict has it; in no order.

        For streams of batches, and for libraries that take Arrow datasets; some, DuckDB for one, know no
        16-bit floats, so name the `columns` without the embedding for them. It can be pickled. Where a file
        is damaged, its scans raise ManifestError, or OSError or ValueError of Arrow's own. Files are read
        by the thread that asks for batches; for DuckDB, which asks from its own threads, all that a query
        looks at is read before its first row.
        """
        return self.rows.dataset(columns)

    def to_table(
        self,
        columns: Sequence[str] | None = None,
        filter: Filter | None = None,
        status: Status = "accepted",
    ) -> pa.Table:
        """Rows in the order they were committed: real and generated images that count, or another `status`.

        Each as its last verdict has it; `void` are candidates that are to be made again. Without `columns`
        it has all of them, embeddings included.
        `filter` is a SQL condition such as `class = 'burnt'`, or a pyarrow expression. UsageError if it
        cannot be read or names a column that is not there.
        """
        return self.rows.to_table(columns, filter, status)

    def count_by(
        self, *columns: str | Sequence[str], filter: Filter | None = None, status: Status = "accepted"
    ) -> pa.Table:
        """One row for each combination of values that occurs, sorted, with its number in column `count`
        (`count_` where one of `columns` is called that). `columns` are names, or lists of them."""
        return self.rows.count_by(*columns, filter=filter, status=status)

    def sql(self, query: str, status: Status = "accepted") -> pa.Table:
        """The result of a SQL query over the table `manifest`, whose rows are in no order."""
        return self.rows.sql(query, status)

    def lineage(self, image_id: str) -> Lineage:
        """Where an image comes from: model, words, seed, scores, run, and what it was generated from.
        Of rejected candidates, too. UsageError if there is none of that id.
        """
        from balancer.runs.lineage import read_lineage

        return read_lineage(self.rows, image_id)

    # ---- for training: see balancer/training -----------------------------------------------------

    def images(
        self,
        filter: Filter | None = None,
        *,
        split: str | None = None,
        allow_synthetic_eval: bool = False,
    ) -> ManifestImages:
        """The accepted images that meet `filter`, a sequence; each is read and decoded when it is asked.

        Of a `split`, or of all. As in everything below: UsageError if generated images would be in validation
        or test, unless `allow_synthetic_eval`; images that a later split or the hold-out shows as well are
        left out, with a warning.
        """
        from balancer.training.images import find_images

        return find_images(self.rows, Choice(split, filter, allow_synthetic_eval))

    def embeddings(
        self,
        split: str | None = "train",
        *,
        filter: Filter | None = None,
        allow_synthetic_eval: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What the verifier made of the images: vectors (images, dim) and labels (images,), the place of each
        class in the config. `balancer.embed` gives those of other images.

        Images without an embedding are left out. UsageError if there are no rows.
        """
        from balancer.training.embeddings import read_embeddings

        return read_embeddings(self.rows, Choice(split, filter, allow_synthetic_eval))

    def to_torch(
        self,
        split: str | None = "train",
        transform: Transform | None = None,
        facets: Sequence[str] = (),
        *,
        filter: Filter | None = None,
        size: int | None = None,
        allow_synthetic_eval: bool = False,
        recommended: bool = False,
    ) -> ImageDataset:
        """A map-style dataset for a DataLoader: (image, label), with `facets` (image, label, facet labels).

        With `size` every image is a square of so many pixels, scaled to cover it and cut in the middle; a
        DataLoader makes batches of images of one size only. `transform` gets a Pillow image; without one an
        image is a float32 tensor (3, height, width) in 0..1.
        `label` is an int, the place of the class in the dataset's `classes`; facet labels are a dict of ints,
        -1 where a facet does not apply or is not known. `recommended` leaves out the generated images that
        `balancer evaluate` advises against. UsageError if there are no rows, or nothing is recommended.
        """
        from balancer.training.torch_dataset import make_dataset

        choice = Choice(split, filter, allow_synthetic_eval, recommended)
        return make_dataset(self.rows, choice, transform, as_list(facets), size)

    def sampler(
        self,
        by: Sequence[str] | None = None,
        real_weight: float | None = None,
        *,
        real_share: float | None = None,
        split: str | None = "train",
        filter: Filter | None = None,
        seed: int | None = None,
        allow_synthetic_eval: bool = False,
        recommended: bool = False,
    ) -> ImageSampler:
        """A sampler for `to_torch` with the same split and filter: as many draws as there are images, with
        replacement, each combination of values of `by` (by default each class) equally often. Within one,
        `real_share` of the draws (by default half, or more if more of its images are real) go to real images;
        with `real_weight`, a real image is drawn that many times as often as a generated one. `recommended`,
        for `to_torch` too, has the share that `balancer evaluate` found best, and without `by` draws classes
        as the tested arm. `exposures()` count the draws. `seed` repeats them, else torch's generator decides.
        """
        from balancer.training.torch_dataset import make_sampler

        choice = Choice(split, filter, allow_synthetic_eval, recommended)
        return make_sampler(self.rows, choice, by and as_list(by), seed, real_share, real_weight)

    def to_hf(
        self,
        split: str | None = "train",
        *,
        filter: Filter | None = None,
        columns: Sequence[str] | None = None,
        allow_synthetic_eval: bool = False,
    ) -> datasets.Dataset:
        """A Hugging Face dataset: `image` (Image, decoded when asked for), `label` and facets (ClassLabel,
        null where a facet has none), and `columns`, by default where each image comes from.
        Needs the extra `hf`; UnavailableError without it.
        """
        from balancer.training.hugging_face import hugging_face_dataset

        choice = Choice(split, filter, allow_synthetic_eval)
        return hugging_face_dataset(self.rows, choice, columns and as_list(columns))

    def to_ray(
        self,
        split: str | None = "train",
        *,
        filter: Filter | None = None,
        columns: Sequence[str] | None = None,
        size: int | None = None,
        allow_synthetic_eval: bool = False,
    ) -> ray.data.Dataset:
        """A Ray Data dataset: `image` (uint8, height x width x 3), `label` (int), class, facets and
        `columns`, by default where each image comes from. Pixels are read as blocks are consumed, by Ray's
        workers, which must reach the run folder by the same path. `size` is that of `to_torch`.
        Needs the extra `ray-data`; UnavailableError without it.
        """
        from balancer.training.ray_data import ray_dataset

        choice = Choice(split, filter, allow_synthetic_eval)
        return ray_dataset(self.rows, choice, columns and as_list(columns), size)


def open_manifest(uri: str | os.PathLike[str]) -> Manifest:
    """The manifest of a run folder. UsageError if it is none, ManifestError if it is damaged."""
    return manifest_in(open_storage(uri, create=False))


def manifest_in(storage: Storage) -> Manifest:
    return Manifest(open_rows(storage))
