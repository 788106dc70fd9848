"""A run's images for other tools: one file for each format, all writing through `destination`.

Every export takes its rows through `balancer.training.selection`, so that none has a leak, and copies image
files byte for byte, so that the mark of generated ones stays.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from balancer.errors import UsageError
from balancer.export.job import Job, Options, option_name
from balancer.export.metadata import LAYOUT
from balancer.training.choice import Choice
from balancer.training.selection import select

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import Filter
    from balancer.run_manifest import Manifest

__all__ = ["FORMATS", "Exported", "Options", "export"]

# What `balancer export --help` says of each format. Its module has the same name.
FORMATS = {
    "folders": "class folders, with links by facet value",
    "parquet": "one Parquet file",
    "arrow": "one Arrow file",
    "hf": "a Hugging Face imagefolder with a dataset card",
    "webdataset": "tar shards",
    "labelstudio": "Label Studio tasks with predictions",
    "fiftyone": "a FiftyOne dataset",
}

EVERYWHERE = "allow_synthetic_eval"
"""The option that every format knows."""

MODULES = {"hf": "hugging_face"}
"""Of formats that are called like a library."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds now. `kept` files were there already, and right; `left_out` is a line on images
    that the rules of splits leave out, or empty."""

    images: int
    written: int
    kept: int
    removed: int
    left_out: str


class Format(Protocol):
    """What a format's module has."""

    OPTIONS: frozenset[str]
    """The fields of `Options` that say something here."""

    def columns(self, options: Options, schema: pa.Schema) -> list[str]:
        """The columns of the manifest that it writes."""

    def write(self, job: Job) -> None:
        """Write rows and images."""


def export(
    manifest: Manifest,
    form: str,
    destination: str | os.PathLike[str],
    filter: Filter | None = None,
    options: Options | None = None,
    progress: Callable[[int], None] = lambda done: None,
    begin: Callable[[int], None] = lambda total: None,
) -> Exported:
    """Write the accepted images of a run that meet `filter` in one of FORMATS.

    The same export again completes or renews what is there. `begin` is told how many images there are,
    `progress` how many are done. Raises UsageError for a destination that holds anything else, for a filter
    that cannot be read, and if generated images would be in validation or test.
    """
    options = options or Options()
    module = _module(form)
    _check_options(form, module.OPTIONS, options)
    columns = module.columns(options, manifest.run.schema())
    choice = Choice(filter=filter, allow_synthetic_eval=options.allow_synthetic_eval)
    selection = select(manifest.rows, columns, choice)
    begin(selection.rows.num_rows)
    identity = _identity(manifest, form, filter, module.OPTIONS, options)
    job = Job.of(manifest, selection, os.fspath(destination), identity, options, progress)
    module.write(job)
    return Exported(
        images=selection.rows.num_rows,
        written=job.destination.written,
        kept=job.destination.kept,
        removed=job.destination.removed,
        left_out=selection.remark,
    )


def _module(form: str) -> Format:
    if form not in FORMATS:
        raise UsageError(f"no export format {form!r}", hint=f"the formats are {', '.join(FORMATS)}")
    return cast("Format", importlib.import_module(f"balancer.export.formats.{MODULES.get(form, form)}"))


def _check_options(form: str, known: frozenset[str], options: Options) -> None:
    for name in options.given():
        if name not in {*known, EVERYWHERE}:
            raise UsageError(f"{option_name(name)} has no effect on format {form!r}")


def _identity(
    manifest: Manifest, form: str, filter: Filter | None, known: frozenset[str], options: Options
) -> Mapping[str, Any]:
    """What two exports have in common that may be written to one destination, one after the other.

    What tells most comes first: a refusal names the first difference.
    """
    return {
        "format": form,
        "run_id": manifest.run.run_id,
        "filter": "" if filter is None else str(filter).strip(),
        **{name: value for name, value in options.as_dict().items() if name in {*known, EVERYWHERE}},
        "layout": LAYOUT,
    }
