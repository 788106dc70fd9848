"""Find labels that contradict: one picture in two classes, or in two splits that the dataset gives.

The same picture means the same pixels, whatever the encoding. Pictures that only look alike are listed and
change nothing: without embeddings, the hash alone is wrong too often to act on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.dataset.near_duplicates import find_near_hashes, hash_numbers
from balancer.dataset.splits import SPLIT_NAMES, SPLITS
from balancer.errors import DatasetError
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    from balancer.config.schema import DatasetConfig
    from balancer.dataset.audit import RealImage

MAX_NAMED = 3
MAX_DISTANCE = 4
LEAST_BITS = 8
"""Hashes of plain pictures have fewer bits set, or nearly all, and are alike whatever they show."""

CLASSES, SPLITS_OF_DATASET = "classes", "splits"


@dataclass(frozen=True, slots=True)
class Conflict:
    """`between` is "classes" or "splits"; `labels` are those of the files."""

    between: str
    file_names: tuple[str, ...]
    labels: tuple[str, ...]

    def __str__(self) -> str:
        pairs = zip(self.file_names, self.labels, strict=True)
        return ", ".join(f"{name} ({label})" for name, label in pairs)


@dataclass(frozen=True, slots=True)
class Resolved:
    """`images` remain; `dropped` are names with the reason."""

    images: list[RealImage]
    conflicts: tuple[Conflict, ...]
    dropped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def resolve_conflicts(root: Path, images: Sequence[RealImage], settings: DatasetConfig) -> Resolved:
    """Apply `dataset.conflicts`. Raises DatasetError if it is `error` and there are conflicts."""
    conflicts = tuple(_find(images))
    if conflicts and settings.conflicts == "error":
        raise DatasetError(
            f"{root}: {_describe(conflicts)}",
            hint="correct the labels, or set dataset.conflicts to drop or keep",
        )
    dropped = dict(_drop(conflicts)) if settings.conflicts == "drop" else {}
    what = f"{len(dropped)} of their files are left out" if dropped else "all of them count"
    return Resolved(
        images=[image for image in images if image.file_name not in dropped],
        conflicts=conflicts,
        dropped=tuple(sorted(dropped.items())),
        warnings=(f"{_describe(conflicts)}; {what} (dataset.conflicts)",) if conflicts else (),
    )


def find_lookalikes(images: Sequence[RealImage]) -> list[Conflict]:
    """Pairs of different pictures in two classes or splits whose hashes are close."""
    by_hash: defaultdict[str, list[RealImage]] = defaultdict(list)
    for image in images:
        by_hash[image.phash].append(image)
    hashes = [text for text in by_hash if LEAST_BITS <= int(text, 16).bit_count() <= 64 - LEAST_BITS]
    numbers = hash_numbers(hashes)
    pairs = [(place, place) for place in range(len(hashes))]
    pairs += find_near_hashes(numbers, MAX_DISTANCE) if len(hashes) > 1 else []
    seen: dict[tuple[str, str], Conflict] = {}
    for one, other in pairs:
        for conflict in _between(by_hash[hashes[one]], by_hash[hashes[other]]):
            seen.setdefault((conflict.file_names[0], conflict.file_names[1]), conflict)
    return sorted(seen.values(), key=lambda conflict: conflict.file_names)


def _find(images: Iterable[RealImage]) -> Iterator[Conflict]:
    groups: defaultdict[str, list[RealImage]] = defaultdict(list)
    for image in images:
        groups[image.pixel_sha256 or image.sha256].append(image)
    for group in groups.values():
        if len(group) > 1 and (conflict := _conflict(group)):
            yield conflict


def _conflict(group: Sequence[RealImage]) -> Conflict | None:
    names = tuple(image.file_name for image in group)
    classes = tuple(image.class_name for image in group)
    if len(set(classes)) > 1:
        return Conflict(CLASSES, names, classes)
    splits = tuple(_split(image) for image in group)
    if len(set(splits) - {""}) > 1:
        return Conflict(SPLITS_OF_DATASET, names, splits)
    return None


def _split(image: RealImage) -> str:
    return SPLIT_NAMES.get(image.split.lower(), "")


def _between(some: Sequence[RealImage], others: Sequence[RealImage]) -> Iterator[Conflict]:
    """Conflicts of one image of each kind: of many that look alike, the first ones tell enough."""
    for one in some[:MAX_NAMED]:
        for other in others[:MAX_NAMED]:
            pair = sorted((one, other), key=lambda image: image.file_name)
            same = one.pixel_sha256 == other.pixel_sha256
            if not same and (conflict := _conflict(pair)):
                yield conflict


def _drop(conflicts: Iterable[Conflict]) -> Iterator[tuple[str, str]]:
    """Of two classes nobody knows which is right, so all files go; of two splits the later one stays."""
    for conflict in conflicts:
        if conflict.between == CLASSES:
            yield from (
                (name, f"the same picture in two classes: {conflict}") for name in conflict.file_names
            )
            continue
        last = max((label for label in conflict.labels if label), key=SPLITS.index)
        for name, label in zip(conflict.file_names, conflict.labels, strict=True):
            if label not in (last, ""):
                yield name, f"the same picture in a later split: {conflict}"


def _describe(conflicts: Sequence[Conflict]) -> str:
    parts = []
    for between in (CLASSES, SPLITS_OF_DATASET):
        mine = [conflict for conflict in conflicts if conflict.between == between]
        if mine:
            count = len(mine)
            parts.append(f"{counted(count, 'picture')} {are(count)} in two {between}, such as {mine[0]}")
    return "; ".join(parts)
