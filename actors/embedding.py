"""Embeddings of any image files by a run's verifier, for what was trained on the stored ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.weights import resolve as weights
from balancer.config.schema import EMBEDDED_MODEL, Config
from balancer.errors import DatasetError, UnavailableError, UsageError
from balancer.images import read_bytes
from balancer.manifest.runfile import RunInfo
from balancer.verification.verdict import Measurement

if TYPE_CHECKING:
    from actors.models.verifier import Verifier

BATCH_IMAGES = 64

Path = str | os.PathLike[str]


def embed_files(run: RunInfo, files: Iterable[Path]) -> NDArray[np.float32]:
    """(files, dim). UsageError for a run of simulated actors, whose embeddings mean nothing."""
    config = run.config_as(Config)
    if config.actors.kind == "simulated":
        raise UsageError("the embeddings of this run are simulated, and mean nothing")
    judged = config.verification
    _refuse_other_weights(judged.model, judged.revision, run.models["verifier"])
    from actors.models.verifier import Verifier

    verifier = Verifier(judged.model, judged.revision, config.properties())
    rows = [row for batch in _batches(files) for row in _embedded(verifier, batch, config)]
    return np.stack(rows) if rows else np.empty((0, verifier.embedding_dim), np.float32)


def _refuse_other_weights(model: str, revision: str | None, kept: Mapping[str, Any]) -> None:
    """Before anything is loaded: a run may come from anywhere, and names its model itself."""
    here = weights.describe(model, revision, None, "verifier")
    # A run has no sha256 if the hub had none; a folder always has one.
    untold = kept.get("sha256") is None and model != EMBEDDED_MODEL and not os.path.isdir(model)
    for key in ("revision",) if untold else ("revision", "sha256"):
        if here[key] != kept.get(key):
            raise UnavailableError(
                f"the weights of {model} are {here[key] or 'unnamed'}, and those of the run were"
                f" {kept.get(key) or 'unnamed'}: their embeddings cannot be compared",
                hint="install the version of balancer that made the run, or name its verification.revision",
            )


def _batches(files: Iterable[Path]) -> Iterator[tuple[Path, ...]]:
    rest = iter(files)
    while batch := tuple(itertools.islice(rest, BATCH_IMAGES)):
        yield batch


def _embedded(verifier: Verifier, files: tuple[Path, ...], config: Config) -> Iterator[NDArray[np.float32]]:
    limits = config.dataset
    data = [read_bytes(file, max_bytes=round(limits.max_image_megabytes * 1e6)) for file in files]
    measured = verifier.measure_files_here(data, round(limits.max_image_megapixels * 1e6))
    for file, measurement in zip(files, measured, strict=True):
        if not isinstance(measurement, Measurement):
            raise DatasetError(f"{os.fspath(file)}: {measurement}")
        yield np.frombuffer(measurement.embedding, "<f2").astype(np.float32)
