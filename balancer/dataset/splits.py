"""Which real images train a classifier and which test it: splits, given by the dataset or dealt out.

Generated images are training images, always: no split is ever given to one. The exception is a child, an
image that was generated from a real one: it goes where its parent goes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING

from balancer.errors import DatasetError
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit, RealImage

TRAIN, VALIDATION, TEST = "train", "validation", "test"

SPLITS = (TRAIN, VALIDATION, TEST)
"""From what is trained on to what is kept apart longest: of two images that show one picture, the one in the
later split stays where it is."""

EVALUATION = (VALIDATION, TEST)

_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}

LISTED = 5
"""Faults that an error names."""


def splits_of(found: Audit, config: Config, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The split of each image of a dataset, by file name.

    `known` are those of an earlier start of the run, which stay. Raises DatasetError if the metadata table
    names a split that is none.
    """
    if config.dataset.splits is None and not any(image.split for image in found.images):
        return {image.file_name: (known or {}).get(image.file_name, TRAIN) for image in found.images}
    _check_names(found)
    shares: Mapping[str, Fraction] = config.dataset.split_shares() or {TRAIN: Fraction(1)}
    fresh = deal_out(found.images, shares)
    if not known or all(fresh.get(name, split) == split for name, split in known.items()):
        return fresh  # images that came since may change nothing for the others
    return deal_out(found.images, shares, known)


def training_part(found: Audit, splits: Mapping[str, str]) -> Audit:
    """The dataset as plans see it: without the images of validation and test."""
    images = tuple(image for image in found.images if splits[image.file_name] == TRAIN)
    per_class = Counter(image.class_name for image in images)
    return replace(found, images=images, counts={name: per_class[name] for name in found.counts})


def is_kept_apart(image: RealImage) -> bool:
    """Whether the metadata table's column `split` gives an image to validation or test."""
    return _NAMES.get(image.split.lower()) in EVALUATION


def kept_apart(found: Audit, splits: Mapping[str, str], config: Config) -> str:
    """A line on the images that are not for training, and what says so; empty if all are."""
    apart = [image for image in found.images if splits[image.file_name] != TRAIN]
    if not apart:
        return ""
    # Without shares nothing is dealt out: what the table does not name goes with a copy of it.
    given = len(apart) if config.dataset.splits is None else sum(map(is_kept_apart, apart))
    counts = {"column `split` of the metadata table": given, "dataset.splits": len(apart) - given}
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

    What is `known` stays, and what the table gives; files of one picture go together, with one that is
    settled if there is one. All other pictures are dealt out in the order of a hash of their pixels, each to
    the split of which their class lacks most: no class is ever more than an image from its shares, but for
    pictures of several files.
    """
    splits: dict[str, str] = {}
    open_: list[list[RealImage]] = []
    for files in _pictures(images).values():
        settled = {image.file_name: _settled(image, known or {}) for image in files}
        if any(settled.values()):
            # Settled in two splits, a picture is a leak already; the rest joins what is kept apart longest.
            follow = max((split for split in settled.values() if split), key=SPLITS.index)
            splits |= {name: split or follow for name, split in settled.items()}
        else:
            open_.append(files)
    dealer = _Dealer(shares, ((image.class_name, splits.get(image.file_name)) for image in images))
    for files in sorted(open_, key=lambda files: _hash(files[0])):
        splits |= dict.fromkeys((image.file_name for image in files), dealer.deal(files))
    return splits


def followed(row_id: str, known: Mapping[str, tuple[str | None, str | None]]) -> str | None:
    """The split an image belongs to: its own, or that of the image it was generated from, however far back.

    `known` gives own split and parent of an id. None where a parent is not known, or parents go in a circle.
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
    """Counts of images by class and split, in whole numbers: weights are shares over one denominator."""

    def __init__(self, shares: Mapping[str, Fraction], settled: Iterable[tuple[str, str | None]]) -> None:
        self._whole = lcm(*(share.denominator for share in shares.values()))
        self._weights = {split: int(shares[split] * self._whole) for split in SPLITS if split in shares}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for class_name, split in settled:
            if split in self._weights:
                self._counts[class_name][split] += 1

    def deal(self, files: Sequence[RealImage]) -> str:
        """The split for a picture's files, which now count as there."""
        classes = Counter(image.class_name for image in files)
        split = max(self._weights, key=lambda split: self._lacking(split, classes))  # of equals the first
        for class_name, count in classes.items():
            self._counts[class_name][split] += count
        return split

    def _lacking(self, split: str, classes: Mapping[str, int]) -> int:
        return sum(
            self._weights[split] * (self._counts[name].total() + count)
            - self._whole * self._counts[name][split]
            for name, count in classes.items()
        )


def _pictures(images: Iterable[RealImage]) -> dict[str, list[RealImage]]:
    """Files by what they show: two with the same pixels are one picture, however they are encoded."""
    found: defaultdict[str, list[RealImage]] = defaultdict(list)
    for image in images:
        found[_picture(image)].append(image)
    return found


def _picture(image: RealImage) -> str:
    return image.pixel_sha256 or image.sha256


def _hash(image: RealImage) -> bytes:
    """A picture's place in the order of dealing, which nothing but its pixels decides."""
    return hashlib.blake2b(_picture(image).encode(), digest_size=16, person=b"balancer.split").digest()


def _settled(image: RealImage, known: Mapping[str, str]) -> str | None:
    return known.get(image.file_name) or _NAMES.get(image.split.lower())


def _check_names(found: Audit) -> None:
    wrong = [image for image in found.images if image.split and image.split.lower() not in _NAMES]
    if wrong:
        named = "; ".join(f"{image.file_name}: {image.split!r}" for image in wrong[:LISTED])
        more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise DatasetError(
            f"{found.path}: the metadata table names splits that are none: {named}{more}",
            hint=f"the splits are {', '.join(SPLITS)}; an image without one goes by dataset.splits",
        )
