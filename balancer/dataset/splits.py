"""Assign real images to training, validation and test: as the dataset says, or by shares.

Generated images are always training images. The exception is a child, an image generated from a real one:
it belongs to its parent's split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING

from balancer.dataset.readers.crops import photograph_of
from balancer.errors import DatasetError
from balancer.text.quantities import are, counted, listed

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit, RealImage

TRAIN, VALIDATION, TEST = "train", "validation", "test"

SPLITS = (TRAIN, VALIDATION, TEST)
"""In order: of two duplicates, the one in the later split stays."""

EVALUATION = (VALIDATION, TEST)

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Names of splits in tables and folders, in lower case."""

LISTED = 5
"""Problems that an error names."""


def assign_splits(audit: Audit, config: Config, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The split of each image of a dataset, by file name.

    `known` are the splits of an earlier start of the run; they stay. Raises DatasetError if the metadata
    table names an unknown split.
    """
    if config.dataset.splits is None and not any(image.split for image in audit.images):
        return {image.file_name: (known or {}).get(image.file_name, TRAIN) for image in audit.images}
    _check_names(audit)
    shares: Mapping[str, Fraction] = config.dataset.split_shares() or {TRAIN: Fraction(1)}
    fresh = deal_out(audit.images, shares)
    if not known or all(fresh.get(name, split) == split for name, split in known.items()):
        return fresh  # new images changed nothing for the others
    return deal_out(audit.images, shares, known)


def select_training(audit: Audit, splits: Mapping[str, str]) -> Audit:
    """The audit without the images of validation and test, for planning."""
    images = tuple(image for image in audit.images if splits[image.file_name] == TRAIN)
    per_class = Counter(image.class_name for image in images)
    return replace(audit, images=images, counts={name: per_class[name] for name in audit.counts})


def is_kept_apart(image: RealImage) -> bool:
    """Whether the dataset itself, a table or a folder, assigns an image to validation or test."""
    return SPLIT_NAMES.get(image.split.lower()) in EVALUATION


def describe_kept_apart(audit: Audit, splits: Mapping[str, str], config: Config) -> str:
    """A line on the images kept out of training and the reason; empty if there are none."""
    apart = [image for image in audit.images if splits[image.file_name] != TRAIN]
    if not apart:
        return ""
    # Without shares nothing is dealt out: an image that the table does not name follows its duplicate.
    given = len(apart) if config.dataset.splits is None else sum(map(is_kept_apart, apart))
    counts = {audit.split_source: given, "dataset.splits": len(apart) - given}
    sources = {source: number for source, number in counts.items() if number}
    because = " and ".join(
        source if len(sources) == 1 else f"{number} by {source}" for source, number in sources.items()
    )
    images = f"{counted(len(apart), 'real image')} {are(len(apart))}"
    return f"{images} for validation or test ({because}), and not counted"


def deal_out(
    images: Sequence[RealImage], shares: Mapping[str, Fraction], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of each image, by file name.

    `known` splits and those of the table stay. Files with the same pixels go together, and follow a settled
    one if there is one. All others are dealt out in the order of a hash of their pixels, each to the split
    that its class lacks most. No class is more than one image off its shares, except for duplicate files.
    """
    splits: dict[str, str] = {}
    open_: list[list[RealImage]] = []
    for files in _pictures(images).values():
        settled = {image.file_name: _settled(image, known or {}) for image in files}
        if any(settled.values()):
            # If an image is settled in two splits, it is a leak already; its other files join the later one.
            follow = max((split for split in settled.values() if split), key=SPLITS.index)
            splits |= {name: split or follow for name, split in settled.items()}
        else:
            open_.append(files)
    dealer = _Dealer(shares, ((image.class_name, splits.get(image.file_name)) for image in images))
    for files in sorted(open_, key=lambda files: _hash(files[0])):
        splits |= dict.fromkeys((image.file_name for image in files), dealer.deal(files))
    return splits


def resolve_split(row_id: str, known: Mapping[str, tuple[str | None, str | None]]) -> str | None:
    """The split of an image: its own, or that of its first ancestor.

    `known` maps ids to (split, parent). None if a parent is unknown or the parents form a cycle.
    """
    passed: set[str] = set()
    while row_id in known and row_id not in passed:
        passed.add(row_id)
        split, parent = known[row_id]
        if parent is None:
            return split
        row_id = parent
    return None


class _Dealer:
    """Counts images by class and split. Weights are the shares over a common denominator, as integers."""

    def __init__(self, shares: Mapping[str, Fraction], settled: Iterable[tuple[str, str | None]]) -> None:
        self._whole = lcm(*(share.denominator for share in shares.values()))
        self._weights = {split: int(shares[split] * self._whole) for split in SPLITS if split in shares}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for class_name, split in settled:
            if split in self._weights:
                self._counts[class_name][split] += 1

    def deal(self, files: Sequence[RealImage]) -> str:
        """Choose the split for the files of one image, and count them there."""
        classes = Counter(image.class_name for image in files)
        split = max(self._weights, key=lambda split: self._lacking(split, classes))  # ties: the first
        for class_name, count in classes.items():
            self._counts[class_name][split] += count
        return split

    def _lacking(self, split: str, classes: Mapping[str, int]) -> int:
        return sum(
            self._weights[split] * (self._counts[name].total() + count)
            - self._whole * self._counts[name][split]
            for name, count in classes.items()
        )


def _pictures(images: Sequence[RealImage]) -> dict[str, list[RealImage]]:
    """Files grouped by their pixels, whatever their encoding, and crops also by their photograph: what
    surrounds one object is beside the next."""
    next_of: dict[str, str] = {}

    def last(key: str) -> str:
        while next_of.setdefault(key, key) != key:
            key = next_of[key]
        return key

    for image in images:
        photograph = photograph_of(image.file_name)
        if photograph != image.file_name:
            next_of[last(photograph)] = last(_picture(image))
    groups: defaultdict[str, list[RealImage]] = defaultdict(list)
    for image in images:
        groups[last(_picture(image))].append(image)
    return groups


def _picture(image: RealImage) -> str:
    return image.pixel_sha256 or image.sha256


def _hash(image: RealImage) -> bytes:
    """The dealing order of an image, decided by its pixels alone."""
    return hashlib.blake2b(_picture(image).encode(), digest_size=16, person=b"balancer.split").digest()


def _settled(image: RealImage, known: Mapping[str, str]) -> str | None:
    return known.get(image.file_name) or SPLIT_NAMES.get(image.split.lower())


def _check_names(audit: Audit) -> None:
    wrong = [image for image in audit.images if image.split and image.split.lower() not in SPLIT_NAMES]
    if wrong:
        named = listed([f"{image.file_name}: {image.split!r}" for image in wrong], LISTED, "; ", "; and ")
        raise DatasetError(
            f"{audit.path}: the metadata table names unknown splits: {named}",
            hint=f"the splits are {', '.join(SPLITS)}; dataset.splits assigns images without one",
        )
