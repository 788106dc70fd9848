"""Balance an image-classification dataset with generated images that proved they show what was asked.

The command line's verbs for Python: `audit`, `plan`, `adapt`, `run`, `run_status`, `write_report`,
`export_run`, `open_manifest`, and `embed` for images that a classifier on stored embeddings is to judge.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import balancer.process.early  # noqa: F401  # before everything that takes time
from balancer.process.shadowed import refuse_shadowed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actors.adapt import Adapted
    from actors.run import Reporter, RunResult
    from balancer.config.schema import Config
    from balancer.dataset.audit import audit
    from balancer.export import Exported
    from balancer.manifest.query.rows import Filter
    from balancer.planning.plan import Plan
    from balancer.run_manifest import Manifest

    __version__: str

__all__ = [
    "adapt",
    "audit",
    "embed",
    "export_run",
    "open_manifest",
    "plan",
    "run",
    "run_status",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("balancer")
    if name == "audit":  # every process that imports a module of the package would load what it needs
        from balancer.dataset.audit import audit

        return audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def plan(config: Config | str | os.PathLike[str]) -> Plan:
    """The exact number of images each cell lacks, for a config or the path of one.

    With `target.count_real_facets: measured` the verifier is loaded to look at the real images.
    """
    from balancer.dataset.audit import audit_dataset, credited_facets, match_classes
    from balancer.dataset.splits import assign_splits, select_training
    from balancer.evaluation.targets import with_recommended_targets
    from balancer.planning.plan import make_plan

    loaded = with_recommended_targets(_loaded(config))
    found = audit_dataset(loaded)
    for line in found.warnings:
        warnings.warn(line, stacklevel=2)
    training = select_training(found, assign_splits(found, loaded))
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
    confirmed: bool = False,
    reuse: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    progress: bool = False,
) -> RunResult:
    """Fill every quota with verified images in the run folder `out`, or go on where it was left.

    `address` is a Ray cluster (`host:port` or `auto`; by default `RAY_ADDRESS`, else Ray is started on this
    machine), `limit` the number of slots to work on now. A started run takes up what changed in config and
    dataset; where accepted images would leave, only if `confirmed`. `reuse` is another run, whose accepted
    images are tried before any is generated. With `progress` notes and progress are shown on stderr, as the
    command line shows them; `reporter` takes them instead. InterruptedRun after SIGINT or SIGTERM.
    """
    if limit is not None and limit < 1:
        from balancer.errors import UsageError

        raise UsageError(f"limit={limit}: a run works on 1 slot at least", hint="limit=None is no limit")
    refuse_shadowed()
    loaded = _loaded(config)
    with contextlib.ExitStack() as stack:
        if progress and reporter is None:
            reporter = stack.enter_context(_on_stderr(loaded.name or os.fspath(out)))
        from actors.run import run as run_job

        return run_job(
            loaded,
            out,
            address=address,
            limit=limit,
            allow_config_change=allow_config_change,
            confirmed=confirmed,
            reuse=reuse,
            reporter=reporter,
        )


def adapt(
    config: Config | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
    progress: bool = False,
) -> Adapted:
    """Train LoRA adapters on the training images into the folder `out`, or go on where it was left.

    `address` is a Ray cluster, as for `run`. With `replace`, adapters there that were trained on other images
    or with other settings are trained again. With `progress` notes are shown on stderr; `reporter` takes them
    instead. InterruptedRun after SIGINT or SIGTERM.
    """
    refuse_shadowed()
    loaded = _loaded(config)
    with contextlib.ExitStack() as stack:
        if progress and reporter is None:
            reporter = stack.enter_context(_on_stderr(loaded.name or os.fspath(out)))
        from actors.adapt import adapt as train

        return train(loaded, out, address=address, replace=replace, reporter=reporter)


@contextlib.contextmanager
def _on_stderr(title: str) -> Iterator[Reporter]:
    from balancer.cli import console

    begun_s = time.monotonic()
    console.note("0:00 loading Ray")
    from actors.run import Reporter

    with console.progress_display(title) as display:
        yield Reporter(note=console.note, progress=display.update, begun_s=begun_s)


def run_status(run_folder: str | os.PathLike[str]) -> dict[str, Any]:
    """How far a run is, from its files alone: what `balancer status --json` prints."""
    from balancer.evaluation.diversity_of_run import diversity_of_run
    from balancer.manifest.rows import utc_now
    from balancer.manifest.status import read_status
    from balancer.storage import open_storage

    storage = open_storage(run_folder, create=False)
    return read_status(storage, utc_now()) | {"diversity": diversity_of_run(storage)}


def write_report(run_folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> str:
    """Write a run's report to `out`, by default `report.html` in its folder; returns where it is."""
    from balancer.report import write_report as write

    return write(run_folder, out)


def export_run(
    run_folder: str | os.PathLike[str],
    form: str,
    destination: str | os.PathLike[str],
    filter: Filter | None = None,
    **options: Any,
) -> Exported:
    """Write the accepted images of a run to `destination` in one of `balancer.export.FORMATS`.

    `options` are those of `balancer export`: `copy`, `embed`, `shard_megabytes`, `licence`,
    `allow_synthetic_eval`, `recommended`, `quarantined`.
    """
    from balancer.export import Options, export

    return export(open_manifest(run_folder), form, destination, filter, Options(**options))


def open_manifest(run_folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a run folder, for queries; UsageError if there is none."""
    from balancer.run_manifest import open_manifest as open_folder

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
    from balancer.storage.address import refuse_credentials

    paths = [os.fspath(path) for path in images]
    for path in paths:
        refuse_credentials(path, "the path of an image")
    return embed_files(open_manifest(run_folder).run, paths)


def _loaded(config: Config | str | os.PathLike[str]) -> Config:
    from balancer.config.load import load_config
    from balancer.config.schema import Config

    return config if isinstance(config, Config) else load_config(config)
