"""Wordings of what no wanted image is: a verifier that compares only classes always picks one of them.

An image belongs to the domain if the classes have a larger share of the probability than these wordings have.
Contrast by the softmax over concept names is from MCM (Ming et al., "Delving into Out-of-Distribution
Detection with Vision-Language Representations", NeurIPS 2022); a share against many negative labels is from
NegLabel (Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR
2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from balancer.config.schema import Config

Floats = NDArray[np.float64]

IMAGE_FAILURES = (
    "white noise",
    "television static",
    "cloudy noise",
    "a picture drowned in noise",
    "a blurred picture without any detail",
    "an unfinished smudge",
    "a faint unfinished picture",
    "scrambled tiles",
    "a puzzle in the wrong order",
    "a collage of cut pieces",
    "a smooth colour gradient",
    "a flat colour",
    "an empty background",
    "abstract blobs of colour",
    "overlapping geometric shapes",
    "stripes and checks",
    "a repeating pattern",
    "a photographic negative with inverted colours",
    "a picture in false colours",
    "garish oversaturated colours",
    "a coarse pixelated mosaic",
    "a tiny detail hugely enlarged",
    "a line drawing",
    "a corrupted image file",
)

UNRELATED = (
    "text on a page",
    "handwriting",
    "a chart",
    "a map",
    "a screenshot",
    "a logo",
    "textile",
    "clothing",
    "a shoe",
    "a car",
    "a machine",
    "a tool",
    "furniture",
    "a building",
    "a street",
    "a landscape",
    "the sky",
    "a tree",
    "a dog",
    "a bird",
    "a person",
)

NEGATIVES = (*IMAGE_FAILURES, *UNRELATED)


def negatives_of(config: Config) -> tuple[str, ...]:
    """What the images of a run might show and must not."""
    wordings = (
        wording for values in config.properties().values() for of in values.values() for wording in of
    )
    return (*negatives_for(wordings), *config.verification.negatives)


_COMMON = frozenset("a an any by for from in of on or the to with without and image photo picture".split())


def negatives_for(wordings: Iterable[str], negatives: Iterable[str] = NEGATIVES) -> tuple[str, ...]:
    """The negatives that share no telling word with `wordings` of the classes: of dogs, "a dog" is none."""
    wanted = {word for wording in wordings for word in _telling_words(wording)}
    return tuple(negative for negative in negatives if not wanted & _telling_words(negative))


def _telling_words(text: str) -> set[str]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
    return {word.removesuffix("s") for word in words} - _COMMON


def domain_score(class_logits: Floats, negative_logits: Floats) -> Floats:
    """The share of the classes in the softmax over classes and negatives, 0 to 1, one per image.

    Rows are images, columns are values. A row with a NaN scores NaN, and so does one whose largest logits are
    infinite. Without negatives the score is 1.
    """
    with np.errstate(invalid="ignore"):
        classes, negatives = (
            np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1)
            for logits in (class_logits, negative_logits)
        )
        score: Floats = np.exp(-np.logaddexp(0.0, negatives - classes))
    return score
