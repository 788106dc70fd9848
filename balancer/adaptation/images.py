"""The images that adapters are trained on, and their captions.

Only images of the training split, and of these none that is linked to validation, test or hold-out by a chain
of near-duplicates. Images are compared by their hashes alone, which link a few more than a verifier would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.conditioning.eligible import find_free, picture_of, without_measuring
from balancer.dataset.audit import known_values
from balancer.manifest.rows import real_id

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit, RealImage
    from balancer.dataset.near_duplicates import KnownImage

MAX_CAPTIONS = 24
"""Of one image. Each wording meets each other one until then."""


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """`picture` is the hash of the pixels, `sha256` that of the file; `contexts` are the facets
    that its captions state, with the wordings of the value of each."""

    file_name: str
    class_name: str
    picture: str
    sha256: str
    captions: tuple[str, ...]
    contexts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    phash: str = ""


def find_training_images(
    config: Config, audit: Audit, holdout: Audit | None, splits: Mapping[str, str]
) -> tuple[TrainingImage, ...]:
    """Sorted by class and file. `splits` are by file name; an image without one is a training image. One
    picture in several files of a class counts once."""
    return divide_images(config, audit, holdout, splits)[0]


def divide_images(
    config: Config, audit: Audit, holdout: Audit | None, splits: Mapping[str, str]
) -> tuple[tuple[TrainingImage, ...], tuple[KnownImage, ...]]:
    """The training images, and all images that no adapter may be trained on, whatever their class."""
    known = without_measuring(audit.images, () if holdout is None else holdout.images)
    free = find_free(audit.images, known, splits, config.verification.copies)
    once: dict[tuple[str, str], TrainingImage] = {}
    for image in sorted(audit.images, key=lambda one: (one.class_name, one.file_name)):
        if image.class_name in config.classes and real_id(image) in free:
            made = _training_image(image, config)
            once.setdefault((made.class_name, made.picture), made)
    return tuple(once.values()), tuple(image for image in known if image.id not in free)


def _training_image(image: RealImage, config: Config) -> TrainingImage:
    values = known_values(image, config.facet_axes()) if config.adaptation.contexts else {}
    contexts = tuple((name, config.facets[name].values[value].prompts) for name, value in values.items())
    return TrainingImage(
        image.file_name,
        image.class_name,
        picture_of(image),
        image.sha256,
        combine([config.classes[image.class_name].prompts, *(words for _, words in contexts)]),
        contexts,
        image.phash,
    )


def combine(wordings: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Captions of one wording of each, in the order in which prompts have them. They take turns, shifted
    whenever their pairs with the first begin to repeat."""
    count = min(math.prod(map(len, wordings)), MAX_CAPTIONS)
    return tuple(dict.fromkeys(_combination(wordings, turn) for turn in range(count)))


def _combination(wordings: Sequence[tuple[str, ...]], turn: int) -> str:
    first = len(wordings[0])
    places = [turn + turn // math.lcm(first, len(choices)) for choices in wordings[1:]]
    return ", ".join(
        choices[place % len(choices)] for choices, place in zip(wordings, [turn, *places], strict=True)
    )
