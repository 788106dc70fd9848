"""Audit a dataset: the images of each class, in any layout (`readers`), and optional tables of facet values.

Unusable files do not stop the audit: it lists them with their reasons. Only a folder that is not a dataset
raises DatasetError. Hidden names are skipped, links are not followed. Names of classes, facets and values are
composed (`balancer.text.names`), names of files stay as they are on the disk.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.conflicts import Conflict, find_lookalikes, resolve_conflicts
from balancer.dataset.decoding.addresses import is_object
from balancer.dataset.decoding.watching import Watch, unwatched
from balancer.dataset.facet_table import (
    NO_CLASS,
    TableRow,
    find_facet_columns,
    find_ignored_columns,
    is_missing,
    name_tables,
    read_tables,
)
from balancer.dataset.facet_values import FacetMatcher
from balancer.dataset.joining import join
from balancer.dataset.location import dataset_folder, find_dataset, holdout_folder
from balancer.dataset.notices import (
    warn_lookalikes,
    warn_marked,
    warn_merged_folders,
    warn_misfiled,
    warn_other_splits,
)
from balancer.dataset.readers.choice import FOLDERS, SPLIT_FOLDERS, list_dataset
from balancer.errors import DatasetError
from balancer.manifest.rows import SYNTHETIC
from balancer.storage.address import refuse_credentials
from balancer.text.names import composed, near, without_case
from balancer.text.safetext import shortened

if TYPE_CHECKING:
    from balancer.cells import Facet
    from balancer.config.schema import Config, DatasetConfig
    from balancer.dataset.decoding.image_info import ImageInfo
    from balancer.dataset.readers.listing import DatasetListing

__all__ = [
    "Audit",
    "RealImage",
    "audit",
    "audit_dataset",
    "audit_holdout",
    "audit_path",
    "credited_facets",
    "dataset_folder",
    "find_dataset",
    "holdout_folder",
    "known_values",
    "list_columns",
    "match_classes",
]

MAX_IMAGE_BYTES = 64_000_000
MAX_IMAGE_PIXELS = 64_000_000

MAX_NAMED = 20
"""Folders that an error names, each with the class it resembles."""

WITH_FOLDERS = (FOLDERS, SPLIT_FOLDERS)
"""Layouts whose classes are folders."""

MAX_COLUMN_NAME = 60

_NO_ROW: Mapping[str, str] = {}
_NO_FACETS: Mapping[str, str] = {}
"""Shared by all images without values: a dict of each would take as much as its name."""


@dataclass(frozen=True, slots=True)
class RealImage:
    """`file_name` is relative to the dataset, with slashes. `facets` come from the metadata table, `split`
    from split folders or the table; it is "" if they give none."""

    file_name: str
    class_name: str
    facets: Mapping[str, str]
    width: int
    height: int
    num_bytes: int
    sha256: str
    phash: str
    pixel_sha256: str = ""
    marked_synthetic: bool = False
    split: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """`counts` are the readable images of every class. All names are sorted. `path` is the folder of the
    files, also if a table or another file was given as the dataset."""

    path: Path
    images: tuple[RealImage, ...]
    unreadable: tuple[tuple[str, str], ...]
    """(file name, reason) of unusable images."""
    duplicates: tuple[tuple[str, ...], ...]
    """Names of files with the same bytes."""
    counts: Mapping[str, int]
    facet_names: tuple[str, ...]
    unlabelled: tuple[str, ...]
    """Images without a value for any facet, if there are facets."""
    misfiled: tuple[str, ...]
    """Images whose `class` in the table differs from their folder; the folder counts."""
    unknown_rows: tuple[str, ...]
    """File names in the tables without an image."""
    outside: tuple[str, ...]
    """Images beside the class folders; they belong to no class."""
    ignored_files: int
    """Files in class folders that are not images."""
    tables: tuple[str, ...] = ()
    """Metadata tables that were read."""
    remarks: tuple[str, ...] = ()
    """How unusual tables were read."""
    warnings: tuple[str, ...] = ()
    """Entries of the tables that are ambiguous or match nothing."""
    passed_over: tuple[str, ...] = ()
    """Columns that are not used as facets, because their values hardly repeat."""
    given: Path | None = None
    """The dataset as it was named, if that is not `path`."""
    layout: str = "folders"
    layout_reason: str = ""
    split_source: str = "column `split` of the metadata table"
    """Where the splits of images come from."""

    conflicts: tuple[Conflict, ...] = ()
    """Pictures in two classes or splits."""
    lookalikes: tuple[Conflict, ...] = ()
    """Different pictures that look alike, in two classes or splits."""
    dropped: tuple[tuple[str, str], ...] = ()
    """(file name, reason) of images that `dataset.conflicts` leaves out."""
    set_aside: tuple[RealImage, ...] = ()
    """Images that are not `images`, because they say that a model made them."""
    lost_facets: tuple[str, ...] = ()
    """Facets of the config that should have values in the tables and have none that the config knows."""

    @property
    def marked_synthetic(self) -> tuple[str, ...]:
        """Images whose own metadata says that a model made them."""
        marked = (image for image in self.images if image.marked_synthetic)
        return tuple(sorted(image.file_name for image in (*marked, *self.set_aside)))


def audit(
    path: str | os.PathLike[str],
    *,
    metadata: str | os.PathLike[str] | None = None,
    facets: Sequence[str] | None = None,
    max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
    settings: DatasetConfig | None = None,
) -> Audit:
    """Read every image of a dataset. Raises DatasetError if `path` is not one.

    `metadata` is relative to `path`; by default `metadata.parquet`, `.csv` or `.jsonl`, there and in the
    folders below. Without `facets`, every column that repeats a few values is a facet. `settings` are those
    of a config's section `dataset` that say which images belong to which class.
    """
    from balancer.config.schema import DatasetConfig

    refuse_credentials(os.fspath(path), "the path of this dataset")
    how = _How(settings or DatasetConfig(), metadata, facets, max_bytes, max_pixels)
    return _run_audit(Path(path), how)


def audit_path(
    dataset: str, settings: DatasetConfig, facets: Sequence[str] | None = None, watch: Watch = unwatched
) -> Audit:
    """Audit the dataset that a command names, with the limits of its settings."""
    return _run_audit(find_dataset(dataset), replace(_how(settings, settings.metadata, facets), watch=watch))


def _how(
    settings: DatasetConfig,
    metadata: str | None,
    facets: Sequence[str] | None,
    axes: Sequence[Facet] = (),
    classes: Collection[str] = (),
) -> _How:
    max_bytes, max_pixels = settings.max_image_megabytes * 1e6, settings.max_image_megapixels * 1e6
    return _How(settings, metadata, facets, round(max_bytes), round(max_pixels), axes, classes)


@dataclass(frozen=True, slots=True)
class _How:
    """How to audit. `axes` and `classes` come from a config; the audit uses their spelling."""

    settings: DatasetConfig
    metadata: str | os.PathLike[str] | None
    facets: Sequence[str] | None
    max_bytes: int
    max_pixels: int
    axes: Sequence[Facet] = ()
    classes: Collection[str] = ()
    is_holdout: bool = False
    watch: Watch = unwatched


def _run_audit(path: Path, how: _How) -> Audit:
    listing = list_dataset(path, how.settings, how.classes)
    root = listing.root
    tables = listing.read_tables or read_tables(root, how.metadata, listing.tables)
    joined = listing.joined or join(tables, root, listing.every_name(), listing.left_out_folders)
    columns = [
        name for name in dict.fromkeys(name for table in tables for name in table.columns) if name != NO_CLASS
    ]
    every_row = (row for table in tables for row in table.rows.values())
    names = find_facet_columns(every_row) if how.facets is None else tuple(how.facets)
    passed_over = find_ignored_columns(columns, names) if how.facets is None else ()
    values = FacetMatcher.match(columns, names, how.axes)
    spelling = {composed(name): name for name in how.classes}
    spelled = {label: spelling.get(composed(label), composed(label)) for label in listing.classes}
    infos, faults = _read_images(root, listing, how)
    images = [
        _real_image(name, spelled[listing.files[name]], info, joined.rows.get(name, _NO_ROW), values, listing)
        for name, info in infos
    ]
    set_aside, images = _set_aside(images, how.settings)
    resolved = resolve_conflicts(root, images, how.settings)
    duplicates, images = _same_bytes(images), resolved.images
    lookalikes = find_lookalikes(images)
    misfiled = [
        image.file_name
        for image in images
        if (row := joined.rows.get(image.file_name))
        and _is_misfiled(image, row, listing.labels[image.file_name])
    ]
    per_class = Counter(image.class_name for image in images)
    table_names = name_tables(tables)
    return Audit(
        path=root,
        images=tuple(images),
        unreadable=tuple(sorted([*listing.faults, *faults])),
        duplicates=duplicates,
        counts={name: per_class[name] for name in sorted(set(spelled.values()))},
        facet_names=names,
        unlabelled=tuple(image.file_name for image in images if names and not image.facets),
        misfiled=tuple(misfiled),
        unknown_rows=tuple(sorted(joined.unknown)),
        outside=tuple(sorted(listing.outside)),
        ignored_files=listing.ignored_files,
        tables=tuple(table.path for table in tables),
        remarks=(*listing.remarks, *joined.remarks, *_remark_ignored_columns(passed_over)),
        passed_over=passed_over,
        warnings=(
            *listing.warnings,
            *(() if how.is_holdout else listing.unmatched),
            *warn_marked(set_aside, images),
            *resolved.warnings,
            *warn_lookalikes(lookalikes),
            *warn_merged_folders(spelled),
            *joined.warnings,
            *warn_misfiled(misfiled, table_names),
            *warn_other_splits(images, joined.rows, listing, table_names),
            *(values.warnings(table_names, columns) if joined.rows else ()),
        ),
        conflicts=resolved.conflicts,
        lookalikes=tuple(lookalikes),
        dropped=resolved.dropped,
        set_aside=set_aside,
        given=None if path == root else path,
        layout=listing.layout,
        layout_reason=listing.reason,
        split_source=listing.split_source,
    )


def _remark_ignored_columns(passed_over: Sequence[str]) -> list[str]:
    if not passed_over:
        return []
    return [f"not used as facets, because their values hardly repeat: {list_columns(passed_over)}"]


def list_columns(columns: Sequence[str]) -> str:
    """The names of the first columns, and the number of the rest."""
    more = len(columns) - MAX_NAMED
    shown = ", ".join(shortened(name, MAX_COLUMN_NAME) for name in columns[:MAX_NAMED])
    return shown + (f" and {more} more" if more > 0 else "")


def audit_dataset(config: Config, watch: Watch = unwatched) -> Audit:
    """Audit the dataset of a config, with its limits and facets."""
    if config.dataset.crop_boxes and config.output.real_images == "reference":
        raise DatasetError(
            "output.real_images: reference is set, and a run cannot refer to crops (dataset.crop_boxes)",
            hint="set output.real_images: copy",
        )
    audited = _audit_folder(dataset_folder(config), config.dataset.metadata, config, watch)
    remote = next((image.file_name for image in audited.images if is_object(image.file_name)), None)
    if remote is not None and config.output.real_images == "reference":
        raise DatasetError(
            f"output.real_images: reference is set, and a run cannot refer to images in a bucket: {remote}",
            hint="set output.real_images: copy",
        )
    return audited


def audit_holdout(config: Config, watch: Watch = unwatched) -> Audit | None:
    """Audit the hold-out of a config in the same way; None if it has none.

    Its table has the same name as the dataset's. Raises DatasetError for folders that are not classes of the
    config.
    """
    folder = holdout_folder(config)
    if folder is None:
        return None
    metadata = config.dataset.metadata
    if metadata is not None and os.path.isabs(metadata):
        metadata = None  # that table describes the dataset's files
    holdout = _audit_folder(folder, metadata, config, watch, is_holdout=True)
    match_classes(holdout, config)
    return holdout


def _audit_folder(
    folder: Path, metadata: str | None, config: Config, watch: Watch, *, is_holdout: bool = False
) -> Audit:
    how = _how(config.dataset, metadata, tuple(config.facets), config.facet_axes(), config.classes)
    audited = _run_audit(folder, replace(how, is_holdout=is_holdout, watch=watch))
    if config.facets and not audited.tables and config.target.count_real_facets == "known":
        remark = (
            f"{folder}: no metadata table, so no real image counts for a facet (target.count_real_facets)"
        )
        return replace(audited, warnings=(*audited.warnings, remark))
    return replace(audited, lost_facets=_lost_facets(audited, config))


def match_classes(audit: Audit, config: Config) -> dict[str, int]:
    """Images per class of the config, in its order; 0 for a class without a folder.

    Raises DatasetError for folders that are not classes of the config.
    """
    unknown = [name for name in audit.counts if name not in config.classes]
    if unknown:
        noun = "folder" if audit.layout in WITH_FOLDERS else "class"
        named = "; ".join(_describe_unknown(name, noun, list(config.classes)) for name in unknown[:MAX_NAMED])
        if len(unknown) > MAX_NAMED:
            named += f"; and {len(unknown) - MAX_NAMED} more"
        hint = (
            _split_hint(audit.path, unknown, config)
            or "add it to `classes`, or leave it out with dataset.exclude"
        )
        raise DatasetError(f"{audit.path}: {named}", hint=hint)
    return {name: audit.counts.get(name, 0) for name in config.classes}


def credited_facets(
    audit: Audit, config: Config, *, must_match: bool = True
) -> dict[str, list[dict[str, str]]] | None:
    """The facet values of the images of each class, from the metadata table; None if the config does not
    count them. If they are counted and `must_match`, raises DatasetError for a facet without any match."""
    if config.target.count_real_facets == "no":
        return None
    if must_match and config.target.count_real_facets == "known" and audit.lost_facets:
        _refuse_lost_facets(audit)
    values: dict[str, list[dict[str, str]]] = {name: [] for name in config.classes}
    axes = config.facet_axes()
    for image in audit.images:
        if image.class_name in values:
            values[image.class_name].append(known_values(image, axes))
    return values


def known_values(image: RealImage, facets: Sequence[Facet]) -> dict[str, str]:
    """The table's values for one image that the facets of its class have."""
    return {
        facet.name: image.facets[facet.name]
        for facet in facets
        if facet.applies_to(image.class_name) and image.facets.get(facet.name) in facet.values
    }


def _lost_facets(audit: Audit, config: Config) -> tuple[str, ...]:
    """A facet without a column is not lost if another facet has values: not everything must be labelled."""
    if not (audit.tables and audit.images):
        return ()
    axes = config.facet_axes()
    known = Counter(name for image in audit.images for name in known_values(image, axes))
    given = Counter(
        facet.name
        for image in audit.images
        for facet in axes
        if facet.name in image.facets and facet.applies_to(image.class_name)
    )
    return tuple(facet.name for facet in axes if not known[facet.name] and (given[facet.name] or not known))


def _refuse_lost_facets(audit: Audit) -> None:
    """Refuse to plan as if no image had a value."""
    problem = (
        f"{audit.path}: target.count_real_facets is `known`, but no value in the metadata table is a value "
        f"of {', '.join(audit.lost_facets)} in the config"
    )
    raise DatasetError(
        "\n".join([problem, *audit.warnings]),
        hint="fix the table (columns file_name and one per facet), or set target.count_real_facets: no",
    )


def _read_images(
    root: Path, listing: DatasetListing, how: _How
) -> tuple[Iterator[tuple[str, ImageInfo]], list[tuple[str, str]]]:
    """Names with the infos of images, and those of unusable files with the reason."""
    from balancer.dataset.decoding.fact_cache import read_known_images
    from balancer.dataset.decoding.image_info import DecodeLimits

    names = sorted(listing.files)
    with how.watch(len(names)) as count:
        infos = read_known_images(root, names, DecodeLimits(how.max_bytes, how.max_pixels), count)
    read = ((name, info) for name, info in zip(names, infos, strict=True) if not isinstance(info, str))
    return read, [(name, info) for name, info in zip(names, infos, strict=True) if isinstance(info, str)]


def _real_image(
    name: str,
    class_name: str,
    info: ImageInfo,
    row: TableRow,
    values: FacetMatcher,
    listing: DatasetListing,
) -> RealImage:
    split = listing.splits.get(name) or row.get("split", "")
    return RealImage(
        file_name=name,
        class_name=class_name,
        facets=values.read(row, class_name) or _NO_FACETS,
        width=info.width,
        height=info.height,
        num_bytes=info.num_bytes,
        sha256=info.sha256,
        phash=info.phash,
        pixel_sha256=info.pixel_sha256,
        marked_synthetic=info.marked_synthetic or _is_of_a_run(row),
        split="" if is_missing(split) else split,
    )


def _is_of_a_run(row: TableRow) -> bool:
    """Whether an export of ours says that the image was generated: another program may have written the file
    anew, without its mark."""
    return row.get("source") == SYNTHETIC and not is_missing(row.get("run_id", ""))


def _is_misfiled(image: RealImage, row: TableRow, label: str) -> bool:
    """Whether the table names another class than the folder's `label` and what the config makes of it."""
    named = without_case(row.get("class", label))
    return named not in (without_case(label), without_case(image.class_name)) and not is_missing(named)


def _set_aside(
    images: Sequence[RealImage], settings: DatasetConfig
) -> tuple[tuple[RealImage, ...], list[RealImage]]:
    """The images that a model made, by their own word, and the others. A verifier that is tested on generated
    images, or a target that counts them, would flatter the generator."""
    if settings.count_marked_synthetic:
        return (), list(images)
    return (
        tuple(image for image in images if image.marked_synthetic),
        [image for image in images if not image.marked_synthetic],
    )


def _same_bytes(images: Iterable[RealImage]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        groups[image.sha256].append(image.file_name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _describe_unknown(name: str, noun: str, classes: Sequence[str]) -> str:
    meant = near(name, classes)
    question = f" (did you mean {meant!r}?)" if meant is not None else ""
    return f"{noun} {name!r} is not a class of the config{question}"


def _split_hint(root: Path, unknown: Sequence[str], config: Config) -> str:
    """The folder that was meant, if the config names its parent."""
    for name in unknown:
        if any((root / name / class_name).is_dir() for class_name in config.classes):
            return f"did you mean dataset.path: {root / name}?"
    return ""
