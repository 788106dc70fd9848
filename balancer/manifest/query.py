"""Reading a manifest: rows by a condition, counts by columns, SQL.

Conditions are evaluated by DuckDB over the Arrow data, in a database of its own that can reach no files,
no network, no extensions and no Python variables.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.errors import UsageError
from balancer.manifest.log import read_log
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.schema import EMBEDDING
from balancer.storage import open_storage

if TYPE_CHECKING:
    import datasets
    import duckdb
    import ray.data
    from numpy.typing import NDArray
    from torch.utils.data import WeightedRandomSampler

    from balancer.lineage import Lineage
    from balancer.training.images import ManifestImages
    from balancer.training.torch_dataset import ImageDataset, Transform

Status = Literal["accepted", "rejected", "void", "all"]
Filter: TypeAlias = "str | pc.Expression"

TABLE = "manifest"
_ROW = "__row"
_EXAMPLE = "a condition looks like: class = 'burnt' and score >= 0.8"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a run as they were when it was opened; `run` says what the run is."""

    run: RunInfo
    rows: pa.Table
    """Every row, rejected candidates included."""
    uri: str = ""
    """The run folder."""

    def to_table(
        self,
        columns: Sequence[str] | None = None,
        filter: Filter | None = None,
        status: Status = "accepted",
    ) -> pa.Table:
        """Rows in the order they were committed: real and generated images that count, or another `status`.

        Each as its last verdict has it; `void` are candidates that are to be made again.
        `filter` is a SQL condition such as `class = 'burnt'`, or a pyarrow expression. UsageError if it
        cannot be read or names a column that is not there.
        """
        for name in columns or ():
            _check_column(name, self.rows.column_names)
        names = self.rows.column_names if columns is None else list(columns)
        if isinstance(filter, str) and filter.strip():
            return self.rows.select(names).take(_row_numbers(self.rows, filter, status))
        if isinstance(filter, pc.Expression):
            return _of_status(_matching(self.rows, filter), status).select(names)
        return _of_status(self.rows, status, names)

    def count_by(self, *columns: str, filter: Filter | None = None, status: Status = "accepted") -> pa.Table:
        """One row for each combination of values that occurs, sorted, with its number in column `count`."""
        found = self.to_table(columns or ["id"], filter, status)
        if not columns:
            return pa.table({"count": [found.num_rows]})
        try:
            counts = found.group_by(list(columns)).aggregate([([], "count_all")])
        except pa.ArrowNotImplementedError as error:
            raise UsageError(f"rows cannot be counted by {', '.join(columns)}") from error
        plain = [_plain(counts[name]) for name in columns]
        table = pa.Table.from_arrays([*plain, counts["count_all"]], names=[*columns, "count"])
        return table.sort_by([(name, "ascending") for name in columns])

    def sql(self, query: str, status: Status = "accepted") -> pa.Table:
        """The result of a SQL query over the table `manifest`."""
        rows = self.to_table(status=status)
        rows = _with_plain_embedding(rows) if EMBEDDING in query else _without_embedding(rows)
        with _database(rows) as database:
            return _run(lambda: database.sql(query), query, rows.column_names)

    def lineage(self, image_id: str) -> Lineage:
        """Where an image comes from: model, words, seed, scores, run, and what it was generated from.

        Of rejected candidates, too. UsageError if there is none of that id.
        """
        from balancer.lineage import lineage_of

        return lineage_of(self, image_id)

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
        from balancer.training.images import images_of

        return images_of(self, filter, split, allow_synthetic_eval=allow_synthetic_eval)

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
        from balancer.training.embeddings import embeddings_of

        return embeddings_of(self, split, filter, allow_synthetic_eval=allow_synthetic_eval)

    def to_torch(
        self,
        split: str | None = "train",
        transform: Transform | None = None,
        facets: Sequence[str] = (),
        *,
        filter: Filter | None = None,
        allow_synthetic_eval: bool = False,
    ) -> ImageDataset:
        """A map-style dataset for a DataLoader: (image, label), with `facets` (image, label, facet labels).

        `transform` gets a Pillow image; without one an image is a float32 tensor (3, height, width) in 0..1.
        `label` is an int, the place of the class in the dataset's `classes`; facet labels are a dict of ints,
        -1 where a facet does not apply or is not known. UsageError if there are no rows.
        """
        from balancer.training.torch_dataset import dataset_of

        return dataset_of(self, split, transform, facets, filter, allow_synthetic_eval=allow_synthetic_eval)

    def sampler(
        self,
        by: Sequence[str] = ("class",),
        real_weight: float = 1.0,
        *,
        split: str | None = "train",
        filter: Filter | None = None,
        seed: int | None = None,
        allow_synthetic_eval: bool = False,
    ) -> WeightedRandomSampler:
        """A sampler for `to_torch` with the same split and filter: as many draws as there are images, with
        replacement, each combination of values of `by` equally often.

        Within one, a real image is drawn `real_weight` times as often as a generated one. `seed` makes the
        draws repeatable; by default they follow torch's own generator.
        """
        from balancer.training.torch_dataset import sampler_of

        return sampler_of(
            self, by, real_weight, split, filter, seed, allow_synthetic_eval=allow_synthetic_eval
        )

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

        return hugging_face_dataset(self, split, filter, columns, allow_synthetic_eval=allow_synthetic_eval)

    def to_ray(
        self,
        split: str | None = "train",
        *,
        filter: Filter | None = None,
        columns: Sequence[str] | None = None,
        allow_synthetic_eval: bool = False,
    ) -> ray.data.Dataset:
        """A Ray Data dataset: `image` (uint8, height x width x 3), `label` (int), class, facets and
        `columns`, by default where each image comes from. Pixels are read as blocks are consumed, by Ray's
        workers, which must reach the run folder by the same path.

        Needs the extra `ray-data`; UnavailableError without it.
        """
        from balancer.training.ray_data import ray_dataset

        return ray_dataset(self, split, filter, columns, allow_synthetic_eval=allow_synthetic_eval)


def open_manifest(uri: str | os.PathLike[str]) -> Manifest:
    """The manifest of a run folder. UsageError if it is none, ManifestError if it is damaged."""
    storage = open_storage(uri, create=False)
    return Manifest(read_run(storage), read_log(storage).table, storage.uri)


def _of_status(rows: pa.Table, status: Status, names: Sequence[str] | None = None) -> pa.Table:
    chosen = rows if names is None else rows.select(list(names))
    return chosen if status == "all" else chosen.filter(pc.equal(rows["status"], status))


def _matching(table: pa.Table, expression: pc.Expression) -> pa.Table:
    try:
        return table.filter(expression)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
        what = str(error).partition(" in ")[0]
        raise UsageError(f"the filter cannot be applied: {what}", hint=_columns(table)) from error


def _row_numbers(table: pa.Table, condition: str, status: Status) -> pa.ChunkedArray:
    """Where the rows stand that meet a SQL condition.

    DuckDB only says which they are; they are taken from the Arrow table, whose types stay as they are.
    """
    numbers = pa.array(np.arange(table.num_rows))
    with _database(_without_embedding(table).append_column(_ROW, numbers)) as database:
        rows = database.table(TABLE)
        if status != "all":
            rows = rows.filter(f"status = '{status}'")
        columns = [name for name in table.column_names if name != EMBEDDING]
        found = _run(lambda: rows.filter(condition).order(_ROW).project(_ROW), condition, columns)
    return found[_ROW]


def _database(table: pa.Table) -> duckdb.DuckDBPyConnection:
    import duckdb

    database = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
        },
    )
    database.register(TABLE, table)
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _run(query: Callable[[], duckdb.DuckDBPyRelation | None], text: str, columns: Sequence[str]) -> pa.Table:
    import duckdb

    try:
        if (relation := query()) is None:
            raise UsageError(f"{text!r} returns no rows", hint="only SELECT queries do")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        raise _explained(error, text, columns) from error


def _explained(error: duckdb.Error, text: str, columns: Sequence[str]) -> UsageError:
    import duckdb

    first_line = str(error).partition("\n")[0].partition(": ")[2]
    if unknown := re.match(r'Referenced column "(.+?)" not found', first_line):
        return _no_column(unknown[1], columns, quoted=f'"{unknown[1]}"' in text)
    if isinstance(error, duckdb.ParserException):
        return UsageError(f"{text!r} is not valid SQL: {first_line}", hint=_EXAMPLE)
    return UsageError(f"{text!r} cannot be evaluated: {first_line}", hint=_EXAMPLE)


def _check_column(name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise _no_column(name, columns)


def _no_column(name: str, columns: Sequence[str], quoted: bool = False) -> UsageError:
    if quoted:
        return UsageError(f'no column "{name}"', hint=f"text goes in single quotes: '{name}'")
    near = difflib.get_close_matches(name, columns, n=1)
    question = f", did you mean {near[0]!r}?" if near else ""
    return UsageError(f"no column {name!r}{question}", hint=f"the columns are {', '.join(columns)}")


def _columns(table: pa.Table) -> str:
    return f"the columns are {', '.join(table.column_names)}"


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _without_embedding(table: pa.Table) -> pa.Table:
    """DuckDB has no 16-bit floats."""
    return table.drop_columns([EMBEDDING])


def _with_plain_embedding(table: pa.Table) -> pa.Table:
    size = table.schema.field(EMBEDDING).type.list_size
    plain = table[EMBEDDING].cast(pa.list_(pa.float32(), size))
    return table.set_column(table.column_names.index(EMBEDDING), EMBEDDING, plain)
