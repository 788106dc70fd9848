"""Reading a manifest: rows by a condition, counts by columns, SQL.

Conditions are evaluated by DuckDB over an Arrow dataset, which reads what they look at. It does so in a
database of its own that can reach no files, no network, no extensions and no Python variables.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from balancer.errors import ManifestError, UsageError, first_line
from balancer.manifest.columns import EMBEDDING
from balancer.manifest.log.reader import ID
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.snapshot.dataset import Source
from balancer.manifest.snapshot.index import STATUS
from balancer.manifest.snapshot.superseded import FILE, PLACE
from balancer.storage import Storage, open_storage
from balancer.text.names import composed, free_names

if TYPE_CHECKING:
    import datasets
    import duckdb
    import numpy as np
    import ray.data
    from numpy.typing import NDArray
    from torch.utils.data import WeightedRandomSampler

    from balancer.runs.lineage import Lineage
    from balancer.training.images import ManifestImages
    from balancer.training.torch_dataset import ImageDataset, Transform

Status = Literal["accepted", "rejected", "void", "all"]
Filter: TypeAlias = "str | pc.Expression"

TABLE = "manifest"
_READING_FAILED = re.compile(r"reading the stream registered as \S+ failed: ")
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[^\s'"(),=<>!+*/%;]+""")
COUNT = "count"
_EXAMPLE = "a condition looks like: class = 'burnt' and score >= 0.8"


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """The rows of a run as they were when it was opened; `run` says what the run is.

    A row is read when it is asked for, and of it the columns that are: from the compacted copy, if there is
    one (`balancer compact`), and from what the log has since. Any method raises ManifestError if what it
    reads was damaged, or deleted after the manifest was compacted anew.
    """

    run: RunInfo
    uri: str
    """The run folder."""
    _source: Source

    def __repr__(self) -> str:
        facets = f", facets={self.run.facets!r}" if self.run.facets else ""
        classes = len(self.run.config["classes"])
        return f"Manifest({self.uri!r}, run_id={self.run.run_id!r}, classes={classes}{facets})"

    def _repr_html_(self) -> str:
        """What a notebook shows: counts, and a few rows with their images."""
        from balancer.report.notebook import manifest_html

        return manifest_html(self)

    @property
    def schema(self) -> pa.Schema:
        return self._source.schema

    def dataset(self, columns: Sequence[str] | None = None) -> ds.Dataset:
        """Every row, rejected candidates included, as its last verdict has it; in no order.

        For streams of batches, and for libraries that take Arrow datasets; some, DuckDB for one, know no
        16-bit floats, so name the `columns` without the embedding for them. It can be pickled. Where a file
        is damaged, its scans raise ManifestError, or OSError or ValueError of Arrow's own. Files are read
        by the thread that asks for batches; for DuckDB, which asks from its own threads, all that a query
        looks at is read before its first row.
        """
        names = self._names(columns)
        return self._source.dataset(pa.schema(map(self.schema.field, names), self.schema.metadata))

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
        names = self._names(columns)
        with self._reading():
            if isinstance(filter, str) and filter.strip():
                found = self._source.rows_at(self._meeting(_as_spelled(filter, self.run), status), names)
            else:
                found = self._source.rows(names, self._condition(filter, status))
        return _as_one(found).replace_schema_metadata(self.schema.metadata)

    def count_by(
        self, *columns: str | Sequence[str], filter: Filter | None = None, status: Status = "accepted"
    ) -> pa.Table:
        """One row for each combination of values that occurs, sorted, with its number in column `count`
        (`count_` where one of `columns` is called that). `columns` are names, or lists of them."""
        names = self._names([name for listed in columns for name in _listed(listed)])
        if any(pa.types.is_nested(self.schema.field(name).type) for name in names):
            raise UsageError(f"rows cannot be counted by {', '.join(names)}")
        with self._reading():
            if isinstance(filter, str) and filter.strip():
                counts = self._counted_by_sql(names, _as_spelled(filter, self.run), status)
            else:
                counts = self._counted(names, self._condition(filter, status))
        if names:
            counts = counts.sort_by([(key, "ascending") for key in _keys(names)])
        return counts.rename_columns([*names, *free_names([COUNT], names).values()])

    def sql(self, query: str, status: Status = "accepted") -> pa.Table:
        """The result of a SQL query over the table `manifest`, whose rows are in no order."""
        schema = _for_sql(self.schema, with_embedding=EMBEDDING in query)
        with self._reading(), _database(_of_status(self._source.dataset(schema), status)) as database:
            spelled = _as_spelled(query, self.run)
            return _run(lambda: database.sql(spelled), spelled, schema.names)

    def _names(self, columns: Sequence[str] | None) -> list[str]:
        """As the manifest spells them; one that is given twice counts once."""
        if columns is None:
            return list(self.schema.names)
        spelled = {composed(name): name for name in self.schema.names}
        names = [
            name if name in spelled.values() else spelled.get(composed(name), name)
            for name in _listed(columns)
        ]
        for name in names:
            _check_column(name, self.schema.names)
        return list(dict.fromkeys(names))

    def _condition(self, filter: Filter | None, status: Status) -> pc.Expression | None:
        """Raises UsageError for an expression that cannot be applied."""
        of_status = None if status == "all" else pc.field(STATUS) == status
        if not isinstance(filter, pc.Expression):
            return of_status
        try:
            self._source.dataset().scanner(filter=filter)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
            raise self._not_applicable(error) from error
        return filter if of_status is None else of_status & filter

    def _meeting(self, condition: str, status: Status) -> pa.Table:
        """Which rows meet a SQL condition. DuckDB only says where they are; they are read by Arrow, so that
        their types stay as they are."""
        schema = _for_sql(self.schema, with_embedding=False)
        with _database(_of_status(self._source.numbered(schema), status)) as database:
            rows = database.table(TABLE)
            return _run(
                lambda: rows.filter(condition).project(f"{FILE}, {PLACE}, {ID}"), condition, schema.names
            )

    def _counted_by_sql(self, names: Sequence[str], condition: str, status: Status) -> pa.Table:
        schema = _for_sql(self.schema, with_embedding=False)
        grouped = ", ".join(map(quoted, names))
        shown = ", ".join(
            f"{quoted(name)} AS {quoted(key)}" for name, key in zip(names, _keys(names), strict=True)
        )
        with _database(_of_status(self._source.dataset(schema), status)) as database:
            rows = database.table(TABLE)
            counts = _run(
                lambda: rows.filter(condition).aggregate(
                    f"{shown}{', ' * bool(names)}count(*) AS {COUNT}", grouped
                ),
                condition,
                schema.names,
            )
        return counts.cast(self._counts_schema(names))

    def _counted(self, names: Sequence[str], condition: pc.Expression | None) -> pa.Table:
        scanner = self._source.dataset().scanner(columns=list(names) or [ID], filter=condition)
        if not names:
            return pa.table({COUNT: [scanner.count_rows()]})
        keys = _keys(names)
        parts = [self._counts_schema(names).empty_table()]
        for batch in scanner.to_batches():
            rows = pa.Table.from_batches([batch]).rename_columns(keys)
            counts = rows.group_by(keys).aggregate([([], "count_all")])
            parts.append(counts.rename_columns([*keys, COUNT]).cast(parts[0].schema))
        groups = pa.concat_tables(parts).group_by(keys).aggregate([(COUNT, "sum")])
        return groups.rename_columns([*keys, COUNT])

    def _counts_schema(self, names: Sequence[str]) -> pa.Schema:
        """With keys in the place of names."""
        kinds = [_plain(self.schema.field(name).type) for name in names]
        return pa.schema([*zip(_keys(names), kinds, strict=True), (COUNT, pa.int64())])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells damage from mistakes, through whatever library it was met."""
        files = self._source.files
        files.problem = None
        try:
            yield
        except (UsageError, OSError, pa.ArrowInvalid) as error:
            if files.problem is not None:
                raise files.problem from None
            if isinstance(error, UsageError):
                raise
            if (damage := files.damage()) is not None:
                raise damage from error
            if isinstance(error, pa.ArrowInvalid):
                raise self._not_applicable(error) from error
            raise ManifestError(f"the manifest cannot be read: {first_line(error)}") from error

    def _not_applicable(self, error: Exception) -> UsageError:
        what = str(error).partition(" in ")[0]
        hint = f"the columns are {', '.join(self.schema.names)}"
        return UsageError(f"the filter cannot be applied: {first_line(ValueError(what))}", hint=hint)

    def lineage(self, image_id: str) -> Lineage:
        """Where an image comes from: model, words, seed, scores, run, and what it was generated from.

        Of rejected candidates, too. UsageError if there is none of that id.
        """
        from balancer.runs.lineage import lineage_of

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
        size: int | None = None,
        allow_synthetic_eval: bool = False,
    ) -> ImageDataset:
        """A map-style dataset for a DataLoader: (image, label), with `facets` (image, label, facet labels).

        With `size` every image is a square of so many pixels, scaled to cover it and cut in the middle; a
        DataLoader makes batches of images of one size only. `transform` gets a Pillow image; without one an
        image is a float32 tensor (3, height, width) in 0..1.
        `label` is an int, the place of the class in the dataset's `classes`; facet labels are a dict of ints,
        -1 where a facet does not apply or is not known. UsageError if there are no rows.
        """
        from balancer.training.torch_dataset import dataset_of

        return dataset_of(
            self,
            split,
            transform,
            _listed(facets),
            filter,
            size=size,
            allow_synthetic_eval=allow_synthetic_eval,
        )

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
            self, _listed(by), real_weight, split, filter, seed, allow_synthetic_eval=allow_synthetic_eval
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

        return hugging_face_dataset(
            self, split, filter, columns and _listed(columns), allow_synthetic_eval=allow_synthetic_eval
        )

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

        return ray_dataset(
            self,
            split,
            filter,
            columns and _listed(columns),
            size=size,
            allow_synthetic_eval=allow_synthetic_eval,
        )


def open_manifest(uri: str | os.PathLike[str]) -> Manifest:
    """The manifest of a run folder. UsageError if it is none, ManifestError if it is damaged."""
    return manifest_in(open_storage(uri, create=False))


def manifest_in(storage: Storage) -> Manifest:
    info = read_run(storage)
    return Manifest(info, storage.uri, Source(storage, info))


def _listed(names: Sequence[str]) -> list[str]:
    """A single name is meant as one, not as its letters."""
    return [names] if isinstance(names, str) else [*names]


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _keys(names: Sequence[str]) -> list[str]:
    """Stand for names where Arrow would read a path: one that begins with a dot."""
    return [f"key {number}" for number in range(len(names))]


def _as_spelled(condition: str, run: RunInfo) -> str:
    """A condition with the names of the run as the run has them: accents can be typed in two ways. Anything
    else in it, such as the id of an image, stays as it is."""
    if condition.isascii():
        return condition
    facets = {composed(name): name for name in run.facets}
    values = {composed(name): name for name in _values_of(run)}

    def spelled(match: re.Match[str]) -> str:
        token = match[0]
        if token[0] == "'":
            known = values.get(composed(token[1:-1].replace("''", "'")))
            return token if known is None else "'" + known.replace("'", "''") + "'"
        if token[0] == '"':
            known = facets.get(composed(token[1:-1].replace('""', '"')))
            return token if known is None else quoted(known)
        return facets.get(composed(token), token)

    return _TOKEN.sub(spelled, condition)


def _values_of(run: RunInfo) -> Iterator[str]:
    yield from run.config["classes"]
    for facet in run.config["facets"].values():
        yield from facet["values"]


def _of_status(rows: ds.Dataset, status: Status) -> ds.Dataset:
    return rows if status == "all" else rows.filter(pc.field(STATUS) == status)


def _for_sql(schema: pa.Schema, with_embedding: bool) -> pa.Schema:
    """DuckDB has no 16-bit floats."""
    position = schema.get_field_index(EMBEDDING)
    if not with_embedding:
        return schema.remove(position)
    size = schema.field(position).type.list_size
    return schema.set(position, pa.field(EMBEDDING, pa.list_(pa.float32(), size)))


def _as_one(table: pa.Table) -> pa.Table:
    """One chunk a column; of dictionaries only what occurs, whatever files it was read from."""
    for position, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            values = table[position].cast(column.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(position, column, values)
    return table.combine_chunks()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _database(rows: ds.Dataset) -> duckdb.DuckDBPyConnection:
    import duckdb

    database = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
        },
    )
    database.register(TABLE, rows)
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
        if _READING_FAILED.search(str(error)):
            raise OSError(str(error).partition(" failed: ")[2]) from error
        raise _explained(error, text, columns) from error


def _explained(error: duckdb.Error, text: str, columns: Sequence[str]) -> UsageError:
    import duckdb

    first_line = str(error).partition("\n")[0].partition(": ")[2]
    hint = _hint_to_quote(text, columns)
    if not hint and (unknown := re.match(r'Referenced column "(.+?)" not found', first_line)):
        return _no_column(unknown[1], columns, quoted=f'"{unknown[1]}"' in text)
    if isinstance(error, duckdb.ParserException):
        return UsageError(f"{text!r} is not valid SQL: {first_line}", hint=hint or _EXAMPLE)
    return UsageError(f"{text!r} cannot be evaluated: {first_line}", hint=hint or _EXAMPLE)


def _hint_to_quote(text: str, columns: Sequence[str]) -> str:
    """Where a condition names a column that SQL reads as something else; empty if there is none."""
    bare = [match[0] for match in _TOKEN.finditer(text) if match[0][0] not in "'\""]
    named = [name for name in columns if name in bare]
    reserved = _words_of_sql() if named else set()
    found = [name for name in named if name.lower() in reserved or not name.isidentifier()]
    return f"this column goes in double quotes: {quoted(found[0])}" if found else ""


def _words_of_sql() -> set[str]:
    """Those that cannot be the name of a column without quotes."""
    import duckdb

    query = (
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    )
    with duckdb.connect(":memory:") as database:
        return {str(word) for (word,) in database.execute(query).fetchall()}


def _check_column(name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise _no_column(name, columns)


def _no_column(name: str, columns: Sequence[str], quoted: bool = False) -> UsageError:
    if quoted:
        return UsageError(f'no column "{name}"', hint=f"text goes in single quotes: '{name}'")
    near = difflib.get_close_matches(name, columns, n=1)
    question = f", did you mean {near[0]!r}?" if near else ""
    return UsageError(f"no column {name!r}{question}", hint=f"the columns are {', '.join(columns)}")
