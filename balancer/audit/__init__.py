"""What a dataset holds: a folder with one subfolder of images per class, and perhaps a table of facet values.

Nothing found in a dataset stops the audit: what cannot be used is listed with its reason. Only a folder
that is no dataset at all is a DatasetError. Names beginning with a dot are left out, links are not followed,
and images nested deeper than their class folder belong to it all the same.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.audit.facet_table import Table, facet_columns, read_table, row_of, table_key
from balancer.audit.listing import list_dataset
from balancer.audit.location import dataset_folder, find_dataset, holdout_folder
from balancer.errors import DatasetError
from balancer.storage.address import refuse_credentials

if TYPE_CHECKING:
    from balancer.audit.picture import Picture
    from balancer.cells import Facet
    from balancer.config import Config

__all__ = [
    "Audit",
    "RealImage",
    "audit",
    "audit_dataset",
    "audit_holdout",
    "credited_facets",
    "dataset_folder",
    "find_dataset",
    "known_values",
    "match_classes",
]

MAX_IMAGE_BYTES = 64_000_000
MAX_IMAGE_PIXELS = 64_000_000


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

    `metadata` is relative to `path`, by default `metadata.parquet`, `.csv` or `.jsonl` if there is one.
    Without `facets`, every column of that table that repeats a few values is one.
    """
    refuse_credentials(os.fspath(path), "the path of this dataset")
    root = Path(path)
    listing = list_dataset(root)
    table = read_table(root, metadata)
    names = facet_columns(table) if facets is None else tuple(facets)
    found = _measure_all(root, listing.files, max_bytes, max_pixels)
    images = tuple(_with_facets(item, table, names) for item in found if isinstance(item, RealImage))
    faults = [item for item in found if not isinstance(item, RealImage)]
    per_class = Counter(image.class_name for image in images)
    known = {table_key(name) for name in (*listing.files, *listing.outside, *dict(listing.faults))}
    return Audit(
        path=root,
        images=images,
        unreadable=tuple(sorted([*listing.faults, *faults])),
        duplicates=_same_bytes(images),
        counts={name: per_class[name] for name in sorted(listing.classes)},
        facet_names=names,
        unlabelled=tuple(image.file_name for image in images if names and not image.facets),
        misfiled=tuple(image.file_name for image in images if _is_misfiled(image, table)),
        unknown_rows=tuple(sorted(name for name in table if name not in known)),
        outside=tuple(sorted(listing.outside)),
        ignored_files=listing.ignored_files,
    )


def audit_dataset(config: Config) -> Audit:
    """Audit the dataset of a config, within its limits and for its facets."""
    return _audit_folder(dataset_folder(config.dataset), config.dataset.metadata, config)


def audit_holdout(config: Config) -> Audit | None:
    """Audit the hold-out images of a config in the same way; None if it has none.

    Its table has the name of the dataset's. Raises DatasetError for folders that are no class of the config.
    """
    folder = holdout_folder(config.dataset)
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
    return audit(
        folder,
        metadata=metadata,
        facets=tuple(config.facets),
        max_bytes=round(dataset.max_image_megabytes * 1e6),
        max_pixels=round(dataset.max_image_megapixels * 1e6),
    )


def match_classes(audit: Audit, config: Config) -> dict[str, int]:
    """Images per class of the config, in its order; a class without a folder has none.

    Raises DatasetError for folders that are no class of the config.
    """
    strangers = [name for name in audit.counts if name not in config.classes]
    if strangers:
        named = "; ".join(_stranger(name, list(config.classes)) for name in strangers)
        hint = _split_hint(audit.path, strangers, config) or "add it to `classes`, or move the folder away"
        raise DatasetError(f"{audit.path}: {named}", hint=hint)
    return {name: audit.counts.get(name, 0) for name in config.classes}


def credited_facets(found: Audit, config: Config) -> dict[str, list[dict[str, str]]] | None:
    """For each class the facet values that the table gives of its images; None if the config does not count
    them."""
    if config.target.count_real_facets == "no":
        return None
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


def _measure_all(
    root: Path, files: Iterable[str], max_bytes: int, max_pixels: int
) -> list[RealImage | tuple[str, str]]:
    """An image, or its name and why it is not used, for each file."""
    from balancer.audit.lanes import look_at_all
    from balancer.audit.picture import Limits

    names = sorted(files)
    seen = look_at_all(root, names, Limits(max_bytes, max_pixels))
    return [
        (name, each) if isinstance(each, str) else _image(name, each)
        for name, each in zip(names, seen, strict=True)
    ]


def _image(name: str, picture: Picture) -> RealImage:
    return RealImage(
        file_name=name,
        class_name=name.partition("/")[0],
        facets={},
        width=picture.width,
        height=picture.height,
        num_bytes=picture.num_bytes,
        sha256=picture.sha256,
        phash=picture.phash,
        pixel_sha256=picture.pixel_sha256,
        marked_synthetic=picture.marked_synthetic,
    )


def _with_facets(image: RealImage, table: Table, names: Sequence[str]) -> RealImage:
    row = row_of(table, image.file_name)
    facets = {name: row[name] for name in names if name in row}
    return replace(image, facets=facets, split=row.get("split", ""))


def _is_misfiled(image: RealImage, table: Table) -> bool:
    return row_of(table, image.file_name).get("class", image.class_name) != image.class_name


def _same_bytes(images: Iterable[RealImage]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        groups[image.sha256].append(image.file_name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _stranger(name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, classes, n=1)
    question = f" (did you mean {near[0]!r}?)" if near else ""
    return f"folder {name!r} is not a class of the config{question}"


def _split_hint(root: Path, strangers: Sequence[str], config: Config) -> str:
    """Where one folder too high was named, the folder that was meant."""
    for name in strangers:
        if any((root / name / class_name).is_dir() for class_name in config.classes):
            return f"did you mean dataset.path: {root / name}?"
    return ""
