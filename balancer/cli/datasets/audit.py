"""`balancer audit`: count the images of a dataset, and list its problems."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import DATASET_SETTING_HELP
from balancer.errors import UsageError
from balancer.text.quantities import counted, percent

if TYPE_CHECKING:
    from balancer.dataset.audit import Audit
    from balancer.dataset.conflicts import Conflict


@click.command("audit")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every file name.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=DATASET_SETTING_HELP)
@click.option("--all", "every", is_flag=True, help="List every class, however many.")
def command(dataset: str, as_json: bool, overrides: tuple[str, ...], every: bool) -> None:
    """Count the images of DATASET, most simply a folder with one subfolder of images per class.

    Shows counts and shares per class, and per facet if there is a metadata table; unreadable files with
    reasons; exact duplicates. DATASET `sample` is the rendered sample dataset. Of a run folder, shows the
    balanced dataset: before, as planned and after, and whether it meets the criteria.
    """
    from balancer.cli.datasets.audit_run import is_run, print_run
    from balancer.config.load import load_dataset_settings
    from balancer.dataset.audit import audit_path

    if is_run(dataset):
        if overrides:
            raise UsageError(f"{dataset} is a run, which --set does not change", hint="leave out --set")
        print_run(dataset, as_json, every)
        return

    result = audit_path(dataset, load_dataset_settings(overrides), watch=console.watch_images)
    if as_json:
        console.print_json(_as_json(result))
    else:
        _print(result, every)


def _print(audit: Audit, every: bool) -> None:
    from balancer.dataset.notices import describe_layout

    names = _in_order(audit, every)
    images = counted(len(audit.images), "image")
    of = f" of {counted(len(names), 'class', 'classes')}" if len(names) > console.LISTED else ""
    console.first_rows(
        f"{audit.given or audit.path}: {images}{of}",
        ["class", "images", "share, %"],
        names,
        "classes, which have no fewer",
        every=every,
        row=lambda name: [name, audit.counts[name], _percent(audit.counts[name], len(audit.images))],
    )
    console.say()
    console.say(describe_layout(audit))
    for facet in audit.facet_names:
        console.say()
        console.table(f"by {facet}", *_facet_table(audit, facet, names if every else names[: console.LISTED]))
    if splits := _split_counts(audit):
        console.say()
        console.table(f"by split, from {audit.split_source}", ["split", "images"], list(splits.items()))
    console.say_problems(_remarks(audit))
    for line in audit.warnings:
        console.warn(line)
    if audit.ignored_files:
        console.say()
        console.say(f"files that are not images, ignored ({audit.ignored_files})")


def _in_order(audit: Audit, every: bool) -> list[str]:
    """The classes; of many, those with the fewest images first."""
    names = [*audit.counts]
    return sorted(names, key=audit.counts.__getitem__) if len(names) > console.LISTED and not every else names


def _facet_table(
    audit: Audit, facet: str, names: Sequence[str]
) -> tuple[list[str], list[list[console.Cell]]]:
    """Classes as rows, those of `names`, values as columns, with their shares among the images that have a
    value."""
    per_cell = Counter((image.class_name, image.facets.get(facet)) for image in audit.images)
    values = _list_values(audit, facet)
    labelled = sum(count for (_, value), count in per_cell.items() if value is not None)
    shown: list[str | None] = list(values) if labelled == len(audit.images) else [*values, None]
    totals = {value: sum(per_cell[name, value] for name in audit.counts) for value in shown}
    rows: list[list[console.Cell]] = [[name, *(per_cell[name, value] for value in shown)] for name in names]
    rows.append(["all", *totals.values()])
    rows.append(["share, %", *(value and _percent(total, labelled) for value, total in totals.items())])
    return ["class", *("(no value)" if value is None else value for value in shown)], rows


def _remarks(audit: Audit) -> dict[str, Sequence[str]]:
    return {
        "unreadable": [f"{name}: {reason}" for name, reason in audit.unreadable],
        "files with the same bytes": [", ".join(names) for names in audit.duplicates],
        "pictures in two classes or splits": [*map(str, audit.conflicts)],
        "pictures that look alike in two classes or splits": [*map(str, audit.lookalikes)],
        "left out by dataset.conflicts": [f"{name}: {reason}" for name, reason in audit.dropped],
        "images without a facet value in the metadata table": audit.unlabelled,
        "images whose class in the metadata table is not their folder": audit.misfiled,
        "rows of the metadata table without an image": audit.unknown_rows,
        "images in no class, not counted": audit.outside,
        "how the dataset was read": audit.remarks,
        "images marked as generated by a model": audit.marked_synthetic,
    }


def _as_json(audit: Audit) -> dict[str, object]:
    total, facets = len(audit.images), _facet_counts(audit)
    return {
        "path": os.fsencode(audit.given or audit.path).decode(errors="replace"),
        "layout": audit.layout,
        "layout_reason": audit.layout_reason,
        "images": total,
        "classes": {
            name: {"images": count, "share": _share(count, total), "facets": facets[name]}
            for name, count in audit.counts.items()
        },
        "facets": {facet: _value_counts(audit, facet) for facet in audit.facet_names},
        "splits": _split_counts(audit),
        "unreadable": [{"file_name": name, "reason": reason} for name, reason in audit.unreadable],
        "duplicates": [list(names) for names in audit.duplicates],
        "conflicts": [_conflict(conflict) for conflict in audit.conflicts],
        "lookalikes": [_conflict(conflict) for conflict in audit.lookalikes],
        "dropped": [{"file_name": name, "reason": reason} for name, reason in audit.dropped],
        "unlabelled": list(audit.unlabelled),
        "misfiled": list(audit.misfiled),
        "unknown_rows": list(audit.unknown_rows),
        "outside": list(audit.outside),
        "marked_synthetic": list(audit.marked_synthetic),
        "ignored_files": audit.ignored_files,
        "tables": list(audit.tables),
        "remarks": list(audit.remarks),
        "warnings": list(audit.warnings),
    }


def _conflict(conflict: Conflict) -> dict[str, object]:
    return {
        "between": conflict.between,
        "files": dict(zip(conflict.file_names, conflict.labels, strict=True)),
    }


def _value_counts(audit: Audit, facet: str) -> dict[str, object]:
    """Counts, and shares among the images that have a value."""
    counts = Counter(image.facets[facet] for image in audit.images if facet in image.facets)
    total = counts.total()
    return {
        value: {"images": counts[value], "share": _share(counts[value], total)}
        for value in _list_values(audit, facet)
    }


def _split_counts(audit: Audit) -> dict[str, int]:
    """Images per split that the dataset itself gives; empty if it gives none."""
    return dict(sorted(Counter(image.split for image in audit.images if image.split).items()))


def _facet_counts(audit: Audit) -> dict[str, dict[str, dict[str, int]]]:
    """Images of each class with each value."""
    values = {facet: _list_values(audit, facet) for facet in audit.facet_names}
    counts = Counter(
        (image.class_name, facet, image.facets.get(facet)) for image in audit.images for facet in values
    )
    return {
        name: {facet: {value: counts[name, facet, value] for value in values[facet]} for facet in values}
        for name in audit.counts
    }


def _list_values(audit: Audit, facet: str) -> Sequence[str]:
    return sorted({image.facets[facet] for image in audit.images if facet in image.facets})


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(part: int, whole: int) -> int | str | None:
    if not whole:
        return None
    shown = percent(part, whole, unit="")
    return int(shown) if shown.isdigit() else shown
