"""A manifest as a `datasets.Dataset` of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.image_files import ImageFiles
from balancer.text.names import free_names
from balancer.training.columns import plain_table, usual_columns
from balancer.training.extras import need
from balancer.training.labels import NO_LABEL, Labels
from balancer.training.selection import select, warn_of_left_out

if TYPE_CHECKING:
    import datasets

    from balancer.manifest.query.rows import ManifestRows
    from balancer.training.choice import Choice

IMAGE, LABEL = "image", "label"


def hugging_face_dataset(
    manifest: ManifestRows, choice: Choice, columns: Sequence[str] | None
) -> datasets.Dataset:
    library = need("datasets", "hf")
    names = usual_columns(manifest.run, columns)
    selection = select(manifest, [*names, "file_name", "source"], choice)
    warn_of_left_out(selection)
    rows, files = selection.rows, ImageFiles.of(manifest.uri, manifest.run)
    labels = Labels.of(manifest.run)
    table = labelled_table(rows, names, labels)
    features = make_features(library, table.schema, labels)
    paths = files.local_paths(zip(rows["file_name"].to_pylist(), rows["source"].to_pylist(), strict=True))
    if paths is None:  # an object store: what `datasets` would open by path is read here
        return library.Dataset.from_generator(
            _examples, features=features, gen_kwargs={"rows": rows, "table": table, "files": files}
        )
    image = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
    )
    schema = features.arrow_schema
    with_images = pa.table([image, *table.columns], names=[IMAGE, *table.column_names]).cast(schema)
    split = choice.split and library.NamedSplit(choice.split)
    return library.Dataset(library.table.InMemoryTable(with_images), split=split)


def labelled_table(rows: pa.Table, names: Sequence[str], labels: Labels) -> pa.Table:
    """The columns with class and facets as numbers; the class is called `label`, and facets may be null."""
    columns: dict[str, Any] = {}
    facets = free_names(list(labels.facets), (IMAGE, LABEL))
    for name in names:
        if name == CLASS_PROPERTY:
            columns[LABEL] = pa.array(labels.numbers(rows, name))
        elif name in labels.facets:
            numbers = labels.numbers(rows, name)
            columns[facets[name]] = pa.array(numbers, mask=numbers == NO_LABEL)
        else:
            columns[name] = plain_table(rows, [name])[name]
    return pa.table(columns)


def make_features(library: Any, schema: pa.Schema, labels: Labels) -> Any:
    """The types that `datasets` has for a labelled table, with an image before its columns."""
    features = library.Features.from_arrow_schema(schema)
    features[LABEL] = library.ClassLabel(names=list(labels.classes))
    for name, column in free_names(list(labels.facets), (IMAGE, LABEL)).items():
        if column in features:
            features[column] = library.ClassLabel(names=list(labels.facets[name]))
    return library.Features({IMAGE: library.Image(), **features})


def _examples(rows: pa.Table, table: pa.Table, files: ImageFiles) -> Iterator[Mapping[str, Any]]:
    named = rows.select(["file_name", "source"]).to_pylist()
    for place, row in enumerate(named):
        data = files.read(row["file_name"], row["source"])
        example: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
        yield {IMAGE: {"bytes": data, "path": None}, **example}
