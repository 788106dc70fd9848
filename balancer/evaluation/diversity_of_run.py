"""The diversity of the classes and cells of a run, from the embeddings in its manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.dataset.near_duplicates import COMPARED, KnownImage, find_near_duplicates, known_images
from balancer.evaluation.diversity import (
    LIMITS_OF_SIGHT,
    MAX_IMAGES,
    Diversity,
    Embeddings,
    Pictures,
    measure_diversity,
)
from balancer.manifest.query.rows import open_rows
from balancer.manifest.rows import SYNTHETIC

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.config.schema import CopiesConfig, ParentConfig
    from balancer.manifest.query.rows import ManifestRows
    from balancer.storage import Storage


@dataclass(frozen=True, slots=True)
class RunDiversity:
    """`cells` are those with generated images, `embeddings` names the model that made the embeddings."""

    classes: Mapping[str, Diversity]
    cells: Mapping[str, Diversity]
    embeddings: str

    @property
    def collapsed(self) -> tuple[str, ...]:
        return tuple(name for name, each in self.classes.items() if each.level == "red")

    def as_dict(self) -> dict[str, Any]:
        return {
            "embeddings": self.embeddings,
            "limits": LIMITS_OF_SIGHT,
            "collapsed": list(self.collapsed),
            "classes": {name: asdict(each) for name, each in self.classes.items()},
            "cells": {name: asdict(each) for name, each in self.cells.items()},
        }


def diversity_of_run(storage: Storage) -> dict[str, Any] | None:
    """What `balancer status --json` says of it; None if simulated actors judged nothing.

    Compares at most 500 real and 500 generated images of each class, always the same ones.
    """
    found = read_diversity(open_rows(storage))
    return None if found is None else found.as_dict()


def read_diversity(manifest: ManifestRows) -> RunDiversity | None:
    import pyarrow.compute as pc

    run = manifest.run
    if run.simulated:
        return None
    light = manifest.to_table(["id", "class", "cell", "source", *run.facets])
    chosen = _choose(light)
    rows = manifest.to_table(COMPARED, pc.field("id").isin(chosen["id"].combine_chunks()))
    images = {image.id: image for image in known_images(rows) if image.phash and _is_finite(image.embedding)}
    real, made = _by_source(chosen.to_pylist(), images)
    limits = _limits(run.config["verification"])

    def images_of(rows: Sequence[Mapping[str, Any]]) -> list[KnownImage]:
        return [images[row["id"]] for row in rows]

    classes = {
        name: _pictures(images_of(real[name]), images_of(made[name]), limits)
        for name in run.targets
        if made[name]
    }
    references = {name: _embeddings(images_of(real[name])) for name in run.targets}
    cells = {}
    for cell, of_cell in _by_cell(made).items():
        class_name = of_cell[0]["class"]
        alike = [row for row in real[class_name] if _is_of_cell(row, of_cell[0], run.facets)]
        cells[cell] = _pictures(images_of(alike), images_of(of_cell), limits, class_name)
    return RunDiversity(
        measure_diversity(classes, references),
        measure_diversity(cells, references),
        str(run.models["verifier"]["model"]),
    )


def _choose(rows: pa.Table) -> pa.Table:
    """At most MAX_IMAGES of each class and source, spread by a random order that is the same each time."""
    order = np.random.default_rng(0).permutation(rows.num_rows)
    taken: defaultdict[tuple[str, str], int] = defaultdict(int)
    classes, sources = rows["class"].to_pylist(), rows["source"].to_pylist()
    kept = []
    for place in order.tolist():
        group = classes[place], sources[place]
        if taken[group] < MAX_IMAGES:
            taken[group] += 1
            kept.append(place)
    return rows.take(np.array(sorted(kept), np.int64))


_Rows = dict[str, list[dict[str, Any]]]


def _by_source(rows: Sequence[dict[str, Any]], images: Mapping[str, KnownImage]) -> tuple[_Rows, _Rows]:
    """Real and generated rows with an embedding, by class."""
    real: _Rows = defaultdict(list)
    made: _Rows = defaultdict(list)
    for row in rows:
        if row["id"] in images:
            (made if row["source"] == SYNTHETIC else real)[row["class"]].append(row)
    return real, made


def _by_cell(made: _Rows) -> _Rows:
    cells: _Rows = defaultdict(list)
    for row in (row for rows in made.values() for row in rows):
        cells[row["cell"]].append(row)
    return cells


def _is_of_cell(real: Mapping[str, Any], made: Mapping[str, Any], facets: Sequence[str]) -> bool:
    return all(made[facet] is None or real[facet] == made[facet] for facet in facets)


def _limits(verification: Mapping[str, Any]) -> CopiesConfig:
    """Those of `verification.parent`: what the narrower ones of `copies` find is not accepted."""
    from balancer.config.schema import CopiesConfig, ParentConfig

    wide: ParentConfig = ParentConfig.model_validate(verification.get("parent", {}))
    return CopiesConfig(max_distance=wide.max_distance, min_similarity=wide.min_similarity)


def _is_finite(embedding: bytes | None) -> bool:
    return bool(embedding) and bool(np.isfinite(np.frombuffer(embedding or b"", "<f2")).all())


def _pictures(
    real: Sequence[KnownImage], made: Sequence[KnownImage], limits: CopiesConfig, class_name: str = ""
) -> Pictures:
    duplicates = len(find_near_duplicates(made, limits))
    return Pictures(_embeddings(real), _embeddings(made), duplicates, class_name)


def _embeddings(images: Sequence[KnownImage]) -> Embeddings:
    vectors = [np.frombuffer(image.embedding or b"", "<f2") for image in images]
    return np.asarray(vectors, np.float64) if vectors else np.empty((0, 1))
