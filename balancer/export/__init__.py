"""Exports of a run's images for other tools: one module per format, all writing through `destination`.

Every export selects its rows with `balancer.training.selection`, which lets no leak through, and copies image
files byte for byte, which keeps the mark of generated images.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from balancer.errors import UsageError
from balancer.export.job import Job, Options, option_name
from balancer.export.metadata import LAYOUT
from balancer.text.quantities import counted, listed
from balancer.training.choice import Choice
from balancer.training.selection import select

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import Filter
    from balancer.run_manifest import Manifest

__all__ = ["FORMATS", "Exported", "Options", "export"]

FORMATS = {
    "folders": "class folders, with links by facet value",
    "parquet": "one Parquet file",
    "arrow": "one Arrow file",
    "hf": "a Hugging Face imagefolder with a dataset card",
    "webdataset": "tar shards",
    "csv": "a table of files and labels, with the images in class folders",
    "coco": "COCO annotations whose boxes are whole images",
    "labelstudio": "Label Studio tasks with predictions",
    "fiftyone": "a FiftyOne dataset",
}
"""Each format with its line in `balancer export --help`. Its module has the same name, or is in MODULES."""

ALLOW, RECOMMENDED, QUARANTINED = "allow_synthetic_eval", "recommended", "quarantined"
"""The options that every format takes."""

MODULES = {"hf": "hugging_face"}
"""Modules that are not called like their format."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export. `kept` files existed already and were up to date; `left_out` is a line about
    images left out by the rules of splits or by people, or empty."""

    images: int
    written: int
    kept: int
    removed: int
    left_out: str


class Format(Protocol):
    """The interface of a format's module."""

    OPTIONS: frozenset[str]
    """The fields of `Options` that affect this format."""

    def columns(self, options: Options, schema: pa.Schema) -> list[str]:
        """The columns of the manifest that it needs."""

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

    The same export again completes or updates it. `begin` is called with the number of images, `progress`
    with the number done. Raises UsageError for a destination that holds anything else, for an invalid filter,
    and for generated images in validation or test.
    """
    options = options or Options()
    module = _module(form)
    _check_options(form, module.OPTIONS, options)
    columns = module.columns(options, manifest.run.schema())
    choice = Choice(None, filter, options.allow_synthetic_eval, options.recommended)
    quarantined = () if options.quarantined else _quarantined(manifest)
    selection = select(manifest.rows, columns, choice, quarantined=quarantined)
    begin(selection.rows.num_rows)
    identity = _identity(manifest, form, filter, module.OPTIONS, options)
    job = Job.of(manifest, selection, os.fspath(destination), identity, options, progress)
    module.write(job)
    return Exported(
        images=selection.rows.num_rows,
        written=job.destination.written,
        kept=job.destination.kept,
        removed=job.destination.removed,
        left_out="; ".join(line for line in (selection.remark, _remark(quarantined)) if line),
    )


def _quarantined(manifest: Manifest) -> tuple[str, ...]:
    """Cells in which people found too many errors (`review.max_error`)."""
    if not manifest.run.config.get("review", {}).get("max_error"):
        return ()
    from balancer.manifest.log.view import read_log
    from balancer.review.summary import COLUMNS, quarantined_cells
    from balancer.storage import open_storage

    storage = open_storage(manifest.uri, create=False)
    view = read_log(storage, COLUMNS)
    return quarantined_cells(storage, manifest.run.under(view.rules), view)


def _remark(quarantined: Sequence[str]) -> str:
    if not quarantined:
        return ""
    cells, few = counted(len(quarantined), "cell"), listed(list(quarantined), 3)
    return f"{cells} left out, because people found too many wrong labels (review.max_error): {few}"


def _module(form: str) -> Format:
    if form not in FORMATS:
        raise UsageError(f"no export format {form!r}", hint=f"the formats are {', '.join(FORMATS)}")
    return cast("Format", importlib.import_module(f"balancer.export.formats.{MODULES.get(form, form)}"))


def _check_options(form: str, known: frozenset[str], options: Options) -> None:
    for name in options.given():
        if name not in {*known, ALLOW, RECOMMENDED, QUARANTINED}:
            raise UsageError(f"{option_name(name)} has no effect on format {form!r}")


def _identity(
    manifest: Manifest, form: str, filter: Filter | None, known: frozenset[str], options: Options
) -> Mapping[str, Any]:
    """Two exports with the same identity may follow each other in one destination.

    The most telling field comes first, because a refusal names the first difference.
    """
    return {
        "format": form,
        "run_id": manifest.run.run_id,
        "filter": "" if filter is None else str(filter).strip(),
        **{name: value for name, value in options.as_dict().items() if name in {*known, ALLOW}},
        **({RECOMMENDED: True} if options.recommended else {}),  # exports from before have no such field
        **({QUARANTINED: True} if options.quarantined else {}),
        "layout": LAYOUT,
    }
