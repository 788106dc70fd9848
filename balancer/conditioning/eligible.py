"""The real images that candidates may be made from.

Only images of the training split, and of these none that is linked to validation, test or hold-out by a chain
of near-duplicates: what a classifier is tested on must not show in what it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from balancer.conditioning.pool import Parent, ParentPool
from balancer.dataset.audit import RealImage, known_values
from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates_across
from balancer.dataset.splits import TRAIN
from balancer.manifest.rows import real_id

if TYPE_CHECKING:
    from balancer.config.schema import Config, CopiesConfig


def make_pool(
    config: Config, images: Sequence[RealImage], known: Sequence[KnownImage], splits: Mapping[str, str]
) -> ParentPool:
    """`known` are all images that the verifier has seen: those in `images`, by the ids of their rows, and
    those of the hold-out. `splits` are by file name; an image without one is a training image."""
    free = find_free(images, known, splits, config.verification.copies)
    axes = config.facet_axes()
    return ParentPool(
        [
            Parent(real_id(image), image.class_name, known_values(image, axes), picture_of(image))
            for image in images
            if image.class_name in config.classes and real_id(image) in free
        ],
        config,
    )


def find_free(
    images: Sequence[RealImage],
    known: Sequence[KnownImage],
    splits: Mapping[str, str],
    limits: CopiesConfig,
) -> frozenset[str]:
    """The ids of those that may be shown to a generator. The arguments are those of `make_pool`."""
    training = {real_id(image) for image in images if splits.get(image.file_name, TRAIN) == TRAIN}
    return unlinked(
        [image for image in known if image.id in training],
        [image for image in known if image.id not in training],
        limits,
    )


def without_measuring(images: Iterable[RealImage], holdout: Iterable[RealImage]) -> list[KnownImage]:
    """Real images by their hashes alone, which link more of them than hashes and embeddings do."""
    named = [*((real_id(image), image) for image in images)]
    named += [(f"holdout/{image.file_name}", image) for image in holdout]
    return [KnownImage(name, image.phash, picture_of(image)) for name, image in named]


def unlinked(
    training: Sequence[KnownImage], apart: Sequence[KnownImage], limits: CopiesConfig
) -> frozenset[str]:
    """The ids of the `training` images that no chain of near-duplicates connects with one kept `apart`."""
    rest, linked = list(training), list(apart)
    while rest and linked:
        near = find_near_duplicates_across(rest, linked, limits)
        linked = [image for image in rest if image.id in near]
        rest = [image for image in rest if image.id not in near]
    return frozenset(image.id for image in rest)


def picture_of(image: RealImage) -> str:
    """The hash of its pixels, or of its file where those were not hashed."""
    return image.pixel_sha256 or image.sha256
