"""Balance an image-classification dataset with generated images that proved they show what was asked.

The command line's verbs for Python: `audit`, `plan`, `run`, `open_manifest`, and `embed` for images that a
classifier on stored embeddings is to judge.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

# Submodules named like a verb are imported here, first: importing one later would put the module in the
# place of the function.
from balancer.audit import audit, audit_dataset, credited_facets, match_classes
from balancer.plan import make_plan
from balancer.shadowed import refuse_shadowed
from balancer.storage.address import refuse_credentials

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actors.run import Reporter, RunResult
    from balancer.config import Config
    from balancer.manifest.query import Manifest
    from balancer.plan import Plan

__all__ = ["audit", "embed", "open_manifest", "plan", "run"]


def plan(config: Config | str | os.PathLike[str]) -> Plan:
    """The exact number of images each cell lacks, for a config or the path of one.

    With `target.count_real_facets: measured` the verifier is loaded to look at the real images.
    """
    from balancer.splits import splits_of, training_part

    loaded = _loaded(config)
    found = audit_dataset(loaded)
    for line in found.warnings:
        warnings.warn(line, stacklevel=2)
    training = training_part(found, splits_of(found, loaded))
    facets = credited_facets(training, loaded)
    if loaded.target.count_real_facets == "measured":
        refuse_shadowed()
        from actors.real_images import measure_here, real_facets

        facets = real_facets(measure_here(loaded, training, None), loaded)
    return make_plan(loaded, match_classes(training, loaded), facets)


def run(
    config: Config | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    limit: int | None = None,
    allow_config_change: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Fill every quota with verified images in the run folder `out`, or go on where it was left.

    `address` is a Ray cluster (`host:port` or `auto`; by default `RAY_ADDRESS`, else Ray is started on this
    machine), `limit` the number of slots to work on now. InterruptedRun after SIGINT or SIGTERM.
    """
    refuse_shadowed()
    from actors.run import run as run_job

    return run_job(
        _loaded(config),
        out,
        address=address,
        limit=limit,
        allow_config_change=allow_config_change,
        reporter=reporter,
    )


def open_manifest(run_folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a run folder, for queries; UsageError if there is none."""
    from balancer.manifest.query import open_manifest as open_folder

    return open_folder(run_folder)


def embed(
    run_folder: str | os.PathLike[str], images: Iterable[str | os.PathLike[str]]
) -> NDArray[np.float32]:
    """Embeddings of image files, as the manifest of a run has them of its own: (images, dim), of length 1.

    Loads the run's verifier, on the GPU if there is one. DatasetError for a file that is no image,
    UnavailableError if the weights are missing or are not those of the run.
    """
    refuse_shadowed()
    from actors.embedding import embed_files

    paths = [os.fspath(path) for path in images]
    for path in paths:
        refuse_credentials(path, "the path of an image")
    return embed_files(open_manifest(run_folder).run, paths)


def _loaded(config: Config | str | os.PathLike[str]) -> Config:
    from balancer.config import Config
    from balancer.configfile import load_config

    return config if isinstance(config, Config) else load_config(config)
