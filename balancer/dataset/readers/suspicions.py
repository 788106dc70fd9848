"""Warn about what looks like a mistake in a dataset's folders and names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from balancer.dataset.readers.labelled import TABLE_SUFFIXES
from balancer.dataset.readers.listing import DatasetListing
from balancer.dataset.splits import SPLIT_NAMES
from balancer.text.names import composed, without_case
from balancer.text.quantities import are, counted, listed

GENERIC = frozenset("all data dataset image images img imgs jpegimages photos pictures pics raw".split())
"""Names that say nothing of what images show."""

ANNOTATIONS = frozenset("annotation annotations label labels mask masks segmentation segmentations".split())
MAX_NAMED = 5


def suspect(root: Path, listing: DatasetListing, known: Collection[str]) -> None:
    """Add warnings to the listing; folders of annotations leave its classes. `known` are the classes of a
    config, which are no mistake."""
    mine = {composed(name) for name in known}
    _pass_over_annotations(listing, mine)
    listing.warnings += [
        line
        for line in (
            _system_folders(listing),
            _hidden(listing),
            _outside(listing),
            _generic_class(root, listing, mine),
            _alike("class", set(map(composed, listing.classes)), "dataset.labels can merge them"),
            _alike("file name", listing.files, "some systems can keep only one of them"),
        )
        if line
    ]


def _pass_over_annotations(listing: DatasetListing, known: Collection[str]) -> None:
    with_images = {*listing.files.values(), *(name.partition("/")[0] for name, _ in listing.faults)}
    for name in list(listing.classes):
        if name.lower() in ANNOTATIONS and composed(name) not in known and name not in with_images:
            listing.classes.remove(name)
            listing.warnings.append(f"{name}: no image in it, passed over as a folder of annotations")


def _system_folders(listing: DatasetListing) -> str:
    if not listing.system:
        return ""
    return f"passed over, because a system made them: {_named(sorted(listing.system))}"


def _hidden(listing: DatasetListing) -> str:
    if not listing.hidden:
        return ""
    return f"passed over, because the name begins with a dot: {_named(sorted(listing.hidden))}"


def _outside(listing: DatasetListing) -> str:
    if listing.joined or not (beside := [name for name in listing.outside if "/" not in name]):
        return ""
    images = f"{counted(len(beside), 'image')} {are(len(beside))}"
    return f"{images} beside the class folders, and not counted: {_named(sorted(beside))}"


def _generic_class(root: Path, listing: DatasetListing, known: Collection[str]) -> str:
    if len(listing.classes) != 1 or not listing.files:
        return ""
    [name] = listing.classes
    if composed(name) in known or (name.lower() not in GENERIC and name.lower() not in SPLIT_NAMES):
        return ""
    inner = sorted({file.split("/")[1] for file in listing.files if file.count("/") > 1})
    said = f"the only class is called {name!r}"
    at_top = sorted(path.name for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    tables = [*at_top, *listing.tables] if listing.joined is None else []
    advice = f"if {tables[0]} names the classes, set dataset.table: {tables[0]}" if tables else ""
    if len(inner) > 1:
        meant = f"{said} and holds folders ({_named(inner)}): did you mean dataset.path: {root / name}?"
        return f"{meant} Or {advice}" if advice else meant
    if advice:
        return f"{said}; {advice}"
    return f"{said}: the images of each class belong into a folder named after the class"


def _alike(noun: str, names: Iterable[str], consequence: str) -> str:
    """Names that are equal but for case, or for the Unicode form of their accents."""
    groups = _groups(names, without_case)
    if not groups:
        return ""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    each = listed([", ".join(sorted(group)) for group in groups], MAX_NAMED, "; ", "; and ")
    return f"{plural} equal but for case or Unicode form: {each} ({consequence})"


def _groups(names: Iterable[str], form: Callable[[str], str]) -> list[list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[form(name)].append(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _named(names: list[str]) -> str:
    return listed(names, MAX_NAMED, last=", and ")
