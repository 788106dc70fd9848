"""COCO and Pascal VOC: the class of an image is the category of its objects, if they are all of one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import NO_CLASS, Table, read_annotations
from balancer.dataset.joining import join
from balancer.dataset.readers.annotation_files import BOXES, LINEAGE, VOC_IMAGES, VOC_LISTS
from balancer.dataset.readers.crops import crop_name, photograph_of
from balancer.dataset.readers.labelled import label
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.readers.walking import Entry, is_folder, walk
from balancer.dataset.splits import SPLIT_NAMES
from balancer.errors import DatasetError
from balancer.text.json_reading import read_json
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

VOC_ANNOTATIONS = "Annotations"
COCO_FOLDER = "annotations"
COCO_IN_SPLITS = "_annotations.coco.json"
COCO_OBJECTS = "instances_"
"""The files for objects, beside those for captions and key points."""


def find_coco(root: Path, entries: Sequence[Entry]) -> list[str]:
    """COCO files: `annotations/instances_*.json`, or `_annotations.coco.json` in the folders at the top."""
    folders = sorted(entry.name for entry in entries if is_folder(entry))
    if COCO_FOLDER in folders:
        names = sorted(path.name for path in (root / COCO_FOLDER).glob("*.json"))
        chosen = [name for name in names if name.startswith(COCO_OBJECTS)]
        if chosen:
            return [f"{COCO_FOLDER}/{name}" for name in chosen]
    return [f"{name}/{COCO_IN_SPLITS}" for name in folders if (root / name / COCO_IN_SPLITS).is_file()]


def is_voc(entries: Sequence[Entry]) -> bool:
    folders = {entry.name for entry in entries if is_folder(entry)}
    return {VOC_ANNOTATIONS, VOC_IMAGES} <= folders


def read_coco(root: Path, entries: Sequence[Entry], listing: DatasetListing, settings: DatasetConfig) -> None:
    names = [settings.table] if settings.table is not None else find_coco(root, entries)
    if not names:
        raise DatasetError(
            f"{root}: neither {COCO_FOLDER}/{COCO_OBJECTS}*.json nor {COCO_IN_SPLITS} in a folder is there",
            hint="name the file in dataset.table",
        )
    tables = read_annotations(root, names, settings.crop_boxes)
    for table in tables:
        if split := split_in_name(table.path):
            table.rows = {key: {**row, "split": split} for key, row in table.rows.items()}
    _label(root, entries, listing, tables, "COCO files", settings)


def read_voc(root: Path, entries: Sequence[Entry], listing: DatasetListing, settings: DatasetConfig) -> None:
    if not is_voc(entries):
        raise DatasetError(f"{root}: no folders {VOC_ANNOTATIONS} and {VOC_IMAGES}, which a VOC dataset has")
    tables = read_annotations(root, [VOC_ANNOTATIONS], settings.crop_boxes)
    _label(root, entries, listing, tables, VOC_LISTS, settings)


def _label(
    root: Path,
    entries: Sequence[Entry],
    listing: DatasetListing,
    tables: Sequence[Table],
    splits: str,
    settings: DatasetConfig,
) -> None:
    walk(entries, 0, listing)
    for table in tables:
        table.folder = _image_folder(table, listing.outside)
    if settings.crop_boxes:
        _cut(root, listing, tables, settings.min_crop_side)
        listing.split_source = splits
        return
    label(listing, tables, root)
    listing.split_source = splits
    rows = {} if listing.joined is None else listing.joined.rows
    without = [name for name, _ in listing.faults if NO_CLASS in rows.get(name, {})]
    if without:
        images = counted(len(without), "image")
        listing.warnings.append(
            f"{images} left out, with objects of several categories or none, such as {without[0]}"
        )


def _cut(root: Path, listing: DatasetListing, tables: Sequence[Table], min_side: int) -> None:
    """Give each box of the listed images a name and its category as class."""
    joined = join(tables, root, listing.every_name())
    photographs, rows, small, useless = set(listing.outside), dict(joined.rows), 0, 0
    joined.rows = {}
    for photograph, row in rows.items():
        used: Counter[tuple[int, ...]] = Counter()
        for category, *box in read_json(row.get(BOXES, "[]").encode()) if photograph in photographs else ():
            if not category or not box:
                useless += 1
                continue
            if min(box[2:]) < min_side:
                small += 1
                continue
            used[tuple(box)] += 1
            name = crop_name(photograph, tuple(box), used[tuple(box)])
            listing.add_class(category)
            listing.files[name] = category
            kept = {key: row[key] for key in ("split", *LINEAGE) if key in row}
            joined.rows[name] = {"class": category, **kept}
    cut = {photograph_of(name) for name in listing.files}
    listing.outside = sorted(photographs - cut)
    for table in tables:
        table.rows, table.columns = {}, [name for name in table.columns if name != BOXES]
    listing.joined, listing.read_tables, listing.tables = joined, [*tables], []
    if small:
        listing.warnings.append(
            f"{counted(small, 'box', 'boxes')} left out: a side is under {min_side} pixels"
            " (dataset.min_crop_side)"
        )
    if useless:
        listing.warnings.append(
            f"{counted(useless, 'box', 'boxes')} left out: around a crowd, without a category that is listed,"
            " or without four usable numbers"
        )
    if listing.outside:
        images = counted(len(listing.outside), "image")
        listing.warnings.append(f"{images} without a box that can be cut out, such as {listing.outside[0]}")


def split_in_name(name: str) -> str:
    """The split that a file or its folder is named after: `instances_val2017.json`, `valid/...`."""
    words = re.findall("[a-z]+", name.lower())
    return next((word for word in words if word in SPLIT_NAMES), "")


def _image_folder(table: Table, names: Sequence[str]) -> str:
    """The folder in which most of the table's files are; of several, one named after the table's split."""
    split = split_in_name(table.path)
    counts: Counter[str] = Counter()
    for name in names:
        folder, _, base = name.rpartition("/")
        while True:
            if base in table.rows:
                counts[folder] += 1
            if not folder:
                break
            folder, _, part = folder.rpartition("/")
            base = f"{part}/{base}"
    return max(
        counts,
        key=lambda folder: (counts[folder], split_in_name(folder) == split, folder),
        default=table.folder,
    )
