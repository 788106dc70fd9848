"""Leave out classes and files by pattern, and rename or merge classes.

A pattern is compared with the class, with `class/file` and with the name relative to the dataset; `*` matches
any characters, slashes too, and case counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from balancer.dataset.readers.listing import DatasetListing
from balancer.text.names import composed, near, pick
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig

MAX_NAMED = 5


def is_left_out(folder: str, settings: DatasetConfig) -> bool:
    """Whether `dataset.exclude` leaves out a whole folder by its name."""
    return any(fnmatchcase(composed(folder), composed(pattern)) for pattern in settings.exclude)


def select(listing: DatasetListing, settings: DatasetConfig, left_out: Iterable[str] = ()) -> None:
    """Apply `include`, `exclude` and `labels`; `left_out` are folders that `exclude` matched before."""
    if settings.include or settings.exclude:
        _filter(listing, settings, left_out)
    if settings.labels:
        _rename(listing, settings)


@dataclass(slots=True)
class _Patterns:
    """Counts the files that each pattern matches."""

    setting: str
    patterns: Sequence[str]
    matched: dict[str, int] = field(default_factory=dict)

    def match(self, names: Iterable[str]) -> bool:
        forms = [composed(name) for name in names]
        any_match = False
        for pattern in self.patterns:
            if any(fnmatchcase(form, pattern) for form in forms):
                self.matched[pattern] = self.matched.get(pattern, 0) + 1
                any_match = True
        return any_match

    def warnings(self) -> list[str]:
        return [
            f"{self.setting}: {pattern!r} matches no class and no file of the dataset"
            for pattern in self.patterns
            if pattern not in self.matched
        ]


def _filter(listing: DatasetListing, settings: DatasetConfig, left_out: Iterable[str]) -> None:
    include = _Patterns("dataset.include", [*map(composed, settings.include)])
    exclude = _Patterns("dataset.exclude", [*map(composed, settings.exclude)])
    for folder in left_out:
        exclude.match([folder])

    def keeps(name: str, class_name: str) -> bool:
        tail = name.removeprefix(listing.splits.get(name, "") + "/").removeprefix(f"{class_name}/")
        names = (class_name, f"{class_name}/{tail}", name)
        return (not settings.include or include.match(names)) and not exclude.match(names)

    kept = {name: class_name for name, class_name in listing.files.items() if keeps(name, class_name)}
    with_images = set(kept.values())
    before = set(listing.files.values())
    listing.classes = [
        name for name in listing.classes if name in with_images or (name not in before and keeps(name, name))
    ]
    listing.faults = [
        (name, reason) for name, reason in listing.faults if keeps(name, _folder(name, listing))
    ]
    listing.left_out = [name for name in listing.files if name not in kept]
    if gone := len(listing.left_out):
        of = " and ".join(pattern.setting for pattern in (include, exclude) if pattern.patterns)
        listing.remarks.append(f"left out by {of}: {counted(gone, 'image')}")
    listing.files = kept
    listing.splits = {name: split for name, split in listing.splits.items() if name in kept}
    listing.warnings += [*include.warnings(), *exclude.warnings()]


def _folder(name: str, listing: DatasetListing) -> str:
    """The class folder of a file that cannot be used."""
    return next((part for part in name.split("/") if part in listing.classes), name.partition("/")[0])


def _rename(listing: DatasetListing, settings: DatasetConfig) -> None:
    named: dict[str, str] = {}
    for label, class_name in settings.labels.items():
        if (folder := pick(composed(label), map(composed, listing.classes))) is None:
            meant = near(label, listing.classes)
            question = f", did you mean {meant!r}?" if meant else ""
            listing.warnings.append(f"dataset.labels: the dataset has no class {label!r}{question}")
        else:
            named[folder] = class_name
    merged: dict[str, list[str]] = {}
    for name in listing.classes:
        merged.setdefault(named.get(composed(name), name), []).append(name)
    listing.remarks += [
        f"by dataset.labels, {', '.join(names)} {'is' if len(names) == 1 else 'are'} {class_name}"
        for class_name, names in merged.items()
        if names != [class_name]
    ]
    listing.classes = list(merged)
    listing.files = {name: named.get(composed(label), label) for name, label in listing.files.items()}
