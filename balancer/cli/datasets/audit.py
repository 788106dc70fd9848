"""`balancer audit`: count what a dataset has, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.dataset.audit import Audit

MAX_LISTED = 20
"""Faults of one kind that are named; `--json` names them all."""


@click.command("audit")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every file name.")
def command(dataset: str, as_json: bool) -> None:
    """Count the images of DATASET, a folder with one subfolder of images per class.

    Counts and shares per class, and per facet if there is a metadata table; unreadable files with reasons,
    exact duplicates. DATASET `sample` is the rendered sample dataset.
    """
    from balancer.dataset.audit import audit, find_dataset

    found = audit(find_dataset(dataset))
    if as_json:
        console.print_json(_as_json(found))
    else:
        _print(found)


def _print(found: Audit) -> None:
    console.table(f"{found.path}: {counted(len(found.images), 'image')}", *_class_table(found))
    for facet in found.facet_names:
        console.say()
        console.table(f"by {facet}", *_facet_table(found, facet))
    if splits := _split_counts(found):
        console.say()
        console.table("by split, as the metadata table gives it", ["split", "images"], list(splits.items()))
    for title, lines in _remarks(found).items():
        _print_remarks(title, lines)
    for line in found.warnings:
        console.warn(line)
    if found.ignored_files:
        console.say()
        console.say(f"files that are no pictures, ignored ({found.ignored_files})")


def _class_table(found: Audit) -> tuple[list[str], list[list[console.Cell]]]:
    rows: list[list[console.Cell]] = [
        [name, count, _percent(count, len(found.images))] for name, count in found.counts.items()
    ]
    return ["class", "images", "share, %"], rows


def _facet_table(found: Audit, facet: str) -> tuple[list[str], list[list[console.Cell]]]:
    """Classes down, values across, with their shares among the images that have a value."""
    per_cell = Counter((image.class_name, image.facets.get(facet)) for image in found.images)
    values = _values_of(found, facet)
    labelled = sum(count for (_, value), count in per_cell.items() if value is not None)
    shown: list[str | None] = list(values) if labelled == len(found.images) else [*values, None]
    totals = {value: sum(per_cell[name, value] for name in found.counts) for value in shown}
    rows: list[list[console.Cell]] = [
        [name, *(per_cell[name, value] for value in shown)] for name in found.counts
    ]
    rows.append(["all", *totals.values()])
    rows.append(["share, %", *(value and _percent(total, labelled) for value, total in totals.items())])
    return ["class", *("(no value)" if value is None else value for value in shown)], rows


def _remarks(found: Audit) -> dict[str, Sequence[str]]:
    return {
        "unreadable": [f"{name}: {reason}" for name, reason in found.unreadable],
        "files with the same bytes": [", ".join(names) for names in found.duplicates],
        "images without a facet value in the metadata table": found.unlabelled,
        "images of another class in the metadata table than their folder's": found.misfiled,
        "rows of the metadata table without an image": found.unknown_rows,
        "images outside the class folders, not counted": found.outside,
        "how metadata tables were read": found.remarks,
        "images that say themselves that a model made them": found.marked_synthetic,
    }


def _print_remarks(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.say()
    console.say(f"{title} ({len(lines)})")
    for line in lines[:MAX_LISTED]:
        console.say(f"  {line}")
    if len(lines) > MAX_LISTED:
        console.say(f"  and {len(lines) - MAX_LISTED} more; --json lists them all")


def _as_json(found: Audit) -> dict[str, object]:
    total = len(found.images)
    return {
        "path": os.fsencode(found.path).decode(errors="replace"),
        "images": total,
        "classes": {
            name: {"images": count, "share": _share(count, total), "facets": _facet_counts(found, name)}
            for name, count in found.counts.items()
        },
        "facets": {facet: _value_counts(found, facet) for facet in found.facet_names},
        "splits": _split_counts(found),
        "unreadable": [{"file_name": name, "reason": reason} for name, reason in found.unreadable],
        "duplicates": [list(names) for names in found.duplicates],
        "unlabelled": list(found.unlabelled),
        "misfiled": list(found.misfiled),
        "unknown_rows": list(found.unknown_rows),
        "outside": list(found.outside),
        "marked_synthetic": list(found.marked_synthetic),
        "ignored_files": found.ignored_files,
        "tables": list(found.tables),
        "remarks": list(found.remarks),
        "warnings": list(found.warnings),
    }


def _value_counts(found: Audit, facet: str) -> dict[str, object]:
    """Shares are among the images that have a value."""
    counts = Counter(image.facets[facet] for image in found.images if facet in image.facets)
    total = counts.total()
    return {
        value: {"images": counts[value], "share": _share(counts[value], total)}
        for value in _values_of(found, facet)
    }


def _split_counts(found: Audit) -> dict[str, int]:
    """Images whose split the table gives; empty if it gives none."""
    return dict(sorted(Counter(image.split for image in found.images if image.split).items()))


def _facet_counts(found: Audit, class_name: str) -> dict[str, dict[str, int]]:
    mine = [image for image in found.images if image.class_name == class_name]
    counts = {facet: Counter(image.facets.get(facet) for image in mine) for facet in found.facet_names}
    return {facet: {value: counts[facet][value] for value in _values_of(found, facet)} for facet in counts}


def _values_of(found: Audit, facet: str) -> Sequence[str]:
    return sorted({image.facets[facet] for image in found.images if facet in image.facets})


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(part: int, whole: int) -> int | None:
    return round(100 * part / whole) if whole else None
