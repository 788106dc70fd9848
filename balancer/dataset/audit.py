"""What a dataset holds: a folder with one subfolder of images per class, and perhaps a table of facet values.

Nothing found in a dataset stops the audit: what cannot be used is listed with its reason. Only a folder
that is no dataset at all is a DatasetError. Names beginning with a dot are left out, links are not followed,
and images nested deeper than their class folder belong to it all the same. The names of classes, facets and
values are composed as `balancer.text.names` has it, and those of files are as they are on the disk.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import Row, columns_passed_over, facet_columns, is_missing, read_tables
from balancer.dataset.facet_values import FacetValues
from balancer.dataset.joining import join
from balancer.dataset.listing import list_dataset
from balancer.dataset.location import dataset_folder, find_dataset, holdout_folder
from balancer.errors import DatasetError
from balancer.storage.address import refuse_credentials
from balancer.text.names import composed, near, without_case
from balancer.text.safetext import shortened

if TYPE_CHECKING:
    from balancer.cells import Facet
    from balancer.config.schema import Config
    from balancer.dataset.decoding.picture import Picture

__all__ = [
    "Audit",
    "RealImage",
    "audit",
    "audit_dataset",
    "audit_holdout",
    "credited_facets",
    "dataset_folder",
    "find_dataset",
    "holdout_folder",
    "known_values",
    "listed",
    "match_classes",
]

MAX_IMAGE_BYTES = 64_000_000
MAX_IMAGE_PIXELS = 64_000_000

MAX_NAMED = 20
"""Folders that an error names; for each the class it resembles is looked for."""

MAX_TABLES_NAMED = 3
MAX_COLUMN_NAME = 60


@dataclass(frozen=True, slots=True)
class RealImage:
    """`file_name` is relative to the dataset, with slashes; `facets` holds the values the table gives, and
    `split` what its column of that name says, "" if nothing."""

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
    """`counts` has every class folder, with its readable images; names are sorted throughout."""

    path: Path
    images: tuple[RealImage, ...]
    unreadable: tuple[tuple[str, str], ...]
    """(file name, reason) of images that are not used."""
    duplicates: tuple[tuple[str, ...], ...]
    """File names whose bytes are the same."""
    counts: Mapping[str, int]
    facet_names: tuple[str, ...]
    unlabelled: tuple[str, ...]
    """Images for which no facet has a value, if there are facets."""
    misfiled: tuple[str, ...]
    """Images whose `class` in the table is not the folder they are in; the folder counts."""
    unknown_rows: tuple[str, ...]
    """File names in the table of which there is no image."""
    outside: tuple[str, ...]
    """Images beside the class folders, which are in no class."""
    ignored_files: int
    """Files in class folders that are no pictures."""
    tables: tuple[str, ...] = ()
    """Metadata tables that were read."""
    remarks: tuple[str, ...] = ()
    """How these were understood, where they are not written as usual."""
    warnings: tuple[str, ...] = ()
    """What in them has no match, or is ambiguous."""
    passed_over: tuple[str, ...] = ()
    """Columns of the tables that are taken for no facets, because their values hardly repeat."""
    lost_facets: tuple[str, ...] = ()
    """Those of a config of which they should give values, and give none that it has."""

    @property
    def marked_synthetic(self) -> tuple[str, ...]:
        """Images that say themselves that a model made them."""
        return tuple(image.file_name for image in self.images if image.marked_synthetic)


def audit(
    path: str | os.PathLike[str],
    *,
    metadata: str | os.PathLike[str] | None = None,
    facets: Sequence[str] | None = None,
    max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Audit:
    """Read every image of a dataset; raises DatasetError if `path` is none.

    `metadata` is relative to `path`, by default `metadata.parquet`, `.csv` or `.jsonl` if there is one, and
    those of the folders below. Without `facets`, every column of that table that repeats a few values is one.
    """
    refuse_credentials(os.fspath(path), "the path of this dataset")
    return _audit(Path(path), metadata, facets, max_bytes, max_pixels)


def _audit(
    root: Path,
    metadata: str | os.PathLike[str] | None,
    facets: Sequence[str] | None,
    max_bytes: int,
    max_pixels: int,
    axes: Sequence[Facet] = (),
    classes: Iterable[str] = (),
) -> Audit:
    """`axes` and `classes` are those of a config, whose spelling then is that of the audit."""
    listing = list_dataset(root)
    tables = read_tables(root, metadata, listing.tables)
    joined = join(tables, root, (*listing.files, *listing.outside, *dict(listing.faults)))
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    every_row = (row for table in tables for row in table.rows.values())
    names = facet_columns(every_row) if facets is None else tuple(facets)
    passed_over = columns_passed_over(columns, names) if facets is None else ()
    values = FacetValues.of(columns, names, axes)
    spelling = {composed(name): name for name in classes}
    class_of = {folder: spelling.get(composed(folder), composed(folder)) for folder in listing.classes}
    found = _measure_all(root, listing.files, class_of, max_bytes, max_pixels)
    images = tuple(
        _with_facets(item, joined.rows.get(item.file_name, {}), values)
        for item in found
        if isinstance(item, RealImage)
    )
    faults = [item for item in found if not isinstance(item, RealImage)]
    per_class = Counter(image.class_name for image in images)
    told = ", ".join(table.path for table in tables[:MAX_TABLES_NAMED])
    return Audit(
        path=root,
        images=images,
        unreadable=tuple(sorted([*listing.faults, *faults])),
        duplicates=_same_bytes(images),
        counts={name: per_class[name] for name in sorted(set(class_of.values()))},
        facet_names=names,
        unlabelled=tuple(image.file_name for image in images if names and not image.facets),
        misfiled=tuple(
            image.file_name for image in images if _is_misfiled(image, joined.rows.get(image.file_name, {}))
        ),
        unknown_rows=tuple(sorted(joined.unknown)),
        outside=tuple(sorted(listing.outside)),
        ignored_files=listing.ignored_files,
        tables=tuple(table.path for table in tables),
        remarks=(*joined.remarks, *_of_columns(passed_over)),
        passed_over=passed_over,
        warnings=(
            *_folders_of_one_class(class_of),
            *joined.warnings,
            *(values.warnings(told, columns) if joined.rows else ()),
        ),
    )


def _of_columns(passed_over: Sequence[str]) -> list[str]:
    if not passed_over:
        return []
    return [f"not taken for facets, because their values hardly repeat: {listed(passed_over)}"]


def listed(columns: Sequence[str]) -> str:
    """Names of columns, the first of many."""
    more = len(columns) - MAX_NAMED
    shown = ", ".join(shortened(name, MAX_COLUMN_NAME) for name in columns[:MAX_NAMED])
    return shown + (f" and {more} more" if more > 0 else "")


def audit_dataset(config: Config) -> Audit:
    """Audit the dataset of a config, within its limits and for its facets."""
    return _audit_folder(dataset_folder(config), config.dataset.metadata, config)


def audit_holdout(config: Config) -> Audit | None:
    """Audit the hold-out images of a config in the same way; None if it has none.

    Its table has the name of the dataset's. Raises DatasetError for folders that are no class of the config.
    """
    folder = holdout_folder(config)
    if folder is None:
        return None
    metadata = config.dataset.metadata
    if metadata is not None and os.path.isabs(metadata):
        metadata = None  # that table is about the dataset's files
    found = _audit_folder(folder, metadata, config)
    match_classes(found, config)
    return found


def _audit_folder(folder: Path, metadata: str | None, config: Config) -> Audit:
    dataset = config.dataset
    found = _audit(
        folder,
        metadata,
        tuple(config.facets),
        round(dataset.max_image_megabytes * 1e6),
        round(dataset.max_image_megapixels * 1e6),
        config.facet_axes(),
        config.classes,
    )
    if config.facets and not found.tables and config.target.count_real_facets == "known":
        remark = (
            f"{folder}: no metadata table, so no real image counts for a facet (target.count_real_facets)"
        )
        return replace(found, warnings=(*found.warnings, remark))
    return replace(found, lost_facets=_lost_facets(found, config))


def match_classes(audit: Audit, config: Config) -> dict[str, int]:
    """Images per class of the config, in its order; a class without a folder has none.

    Raises DatasetError for folders that are no class of the config.
    """
    strangers = [name for name in audit.counts if name not in config.classes]
    if strangers:
        named = "; ".join(_stranger(name, list(config.classes)) for name in strangers[:MAX_NAMED])
        if len(strangers) > MAX_NAMED:
            named += f"; and {len(strangers) - MAX_NAMED} more"
        hint = _split_hint(audit.path, strangers, config) or "add it to `classes`, or move the folder away"
        raise DatasetError(f"{audit.path}: {named}", hint=hint)
    return {name: audit.counts.get(name, 0) for name in config.classes}


def credited_facets(
    found: Audit, config: Config, *, must_match: bool = True
) -> dict[str, list[dict[str, str]]] | None:
    """For each class the facet values that the table gives of its images; None if the config does not count
    them. DatasetError if they are to be counted, and nothing in the table matches a facet, unless that does
    not matter."""
    if config.target.count_real_facets == "no":
        return None
    if must_match and config.target.count_real_facets == "known" and found.lost_facets:
        _refuse_lost_facets(found)
    values: dict[str, list[dict[str, str]]] = {name: [] for name in config.classes}
    for image in found.images:
        if image.class_name in values:
            values[image.class_name].append(known_values(image, config.facet_axes()))
    return values


def known_values(image: RealImage, facets: Sequence[Facet]) -> dict[str, str]:
    """What the table says of one image, as far as it is a value of a facet that applies to its class."""
    return {
        facet.name: image.facets[facet.name]
        for facet in facets
        if facet.applies_to(image.class_name) and image.facets.get(facet.name) in facet.values
    }


def _lost_facets(found: Audit, config: Config) -> tuple[str, ...]:
    """A facet without a column is not lost where another one has values: not everything need be labelled."""
    if not (found.tables and found.images):
        return ()
    axes = config.facet_axes()
    known = Counter(name for image in found.images for name in known_values(image, axes))
    given = Counter(
        facet.name
        for image in found.images
        for facet in axes
        if facet.name in image.facets and facet.applies_to(image.class_name)
    )
    return tuple(facet.name for facet in axes if not known[facet.name] and (given[facet.name] or not known))


def _refuse_lost_facets(found: Audit) -> None:
    """They would be planned as if no image had a value."""
    problem = (
        f"{found.path}: target.count_real_facets is `known`, and the metadata table gives no image a value "
        f"of {', '.join(found.lost_facets)} that the config has"
    )
    raise DatasetError(
        "\n".join([problem, *found.warnings]),
        hint="mend the table (columns file_name and one per facet), or set target.count_real_facets: no",
    )


def _measure_all(
    root: Path, files: Iterable[str], class_of: Mapping[str, str], max_bytes: int, max_pixels: int
) -> list[RealImage | tuple[str, str]]:
    """An image, or its name and why it is not used, for each file."""
    from balancer.dataset.decoding.lanes import look_at_all
    from balancer.dataset.decoding.picture import Limits

    names = sorted(files)
    seen = look_at_all(root, names, Limits(max_bytes, max_pixels))
    return [
        (name, each) if isinstance(each, str) else _image(name, class_of[name.partition("/")[0]], each)
        for name, each in zip(names, seen, strict=True)
    ]


def _image(name: str, class_name: str, picture: Picture) -> RealImage:
    return RealImage(
        file_name=name,
        class_name=class_name,
        facets={},
        width=picture.width,
        height=picture.height,
        num_bytes=picture.num_bytes,
        sha256=picture.sha256,
        phash=picture.phash,
        pixel_sha256=picture.pixel_sha256,
        marked_synthetic=picture.marked_synthetic,
    )


def _with_facets(image: RealImage, row: Row, values: FacetValues) -> RealImage:
    split = row.get("split", "")
    facets = values.read(row, image.class_name)
    return replace(image, facets=facets, split="" if is_missing(split) else split)


def _is_misfiled(image: RealImage, row: Row) -> bool:
    named = row.get("class", image.class_name)
    return without_case(named) != without_case(image.class_name) and not is_missing(named)


def _folders_of_one_class(class_of: Mapping[str, str]) -> list[str]:
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for folder, class_name in class_of.items():
        folders[class_name].append(folder)
    return [
        f"{len(alike)} folders are named {name!r}, but for spaces or the codes of letters: all are that class"
        for name, alike in folders.items()
        if len(alike) > 1
    ]


def _same_bytes(images: Iterable[RealImage]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        groups[image.sha256].append(image.file_name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _stranger(name: str, classes: Sequence[str]) -> str:
    meant = near(name, classes)
    question = f" (did you mean {meant!r}?)" if meant is not None else ""
    return f"folder {name!r} is not a class of the config{question}"


def _split_hint(root: Path, strangers: Sequence[str], config: Config) -> str:
    """Where one folder too high was named, the folder that was meant."""
    for name in strangers:
        if any((root / name / class_name).is_dir() for class_name in config.classes):
            return f"did you mean dataset.path: {root / name}?"
    return ""
