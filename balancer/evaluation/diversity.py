"""Whether the generated images of a class are as diverse as its real ones, on embeddings.

Red: improved recall or the Vendi ratio is too low. Amber: the generated images differ from the real ones by a
good part of what the nearest other class does, or too many of them are near-duplicates. No limit is stricter
than what halves of the real images reach against each other. A cell has seldom enough real images for more
than its near-duplicates.

The embeddings are those of the verifier that selected the images, so what it cannot tell apart does not count
as diversity here. Half the modes of a class can be missing without an alarm (`LIMITS_OF_SIGHT`).

Improved precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991. Vendi score: Friedman and Dieng
2022, arXiv 2210.02410. KID: Bińkowski et al. 2018, arXiv 1801.01401.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEAST_IMAGES = 20
"""Real images, and generated ones, below which nothing is estimated: noise would look like a collapse."""

MIN_RECALL = 0.8
MIN_VENDI_RATIO = 0.85
KID_SHARE = 0.5
"""Of the KID between the real images and those of the nearest other class."""

MAX_NEAR_DUPLICATES = 0.1
"""Share of the generated images of a class or cell that show the same as another of them."""

NEIGHBOURS = 3
"""Neighbours that the radius around an image reaches to."""

LEFT_OUT = 0.1
"""Share of the images of one kind that are set against the others of that kind."""

MAX_IMAGES = 500
"""Images of each kind that are compared; of more, a random part."""

SUBSETS = 5
"""Parts of the generated images, each as large as the real ones, whose Vendi scores are averaged."""

SPLITS = 200
"""Random splits of real images over all classes; at least MIN_SPLITS of each."""

MIN_SPLITS = 8

QUANTILE = 1.96
"""Of the normal distribution, at 2.5 % on one side: there are two tests for red."""

LIMITS_OF_SIGHT = (
    "measured on the embeddings of the verifier that selected the images; it misses what that cannot tell"
    " apart, and often the loss of half the modes of a class"
)

Level = Literal["green", "amber", "red", "not estimable"]
Embeddings = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Embeddings of shape (images, dim), one row each, of a class, or of a cell of `class_name`.
    `near_duplicates` counts the generated images that show the same as another one."""

    real: Embeddings
    made: Embeddings
    near_duplicates: int = 0
    class_name: str = ""


@dataclass(frozen=True, slots=True)
class Diversity:
    """One class or cell. Figures are None where there are too few images. `kid_of_nearest` is the KID between
    its real images and those of `nearest`, another class. `reasons` say why it is not green."""

    level: Level
    real: int
    generated: int
    recall: float | None = None
    precision: float | None = None
    vendi_ratio: float | None = None
    kid: float | None = None
    nearest: str | None = None
    kid_of_nearest: float | None = None
    near_duplicates: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Null:
    """What real images reach against others of their class, over all classes: the mean `recall` of a few
    against the rest; `vendi_variance` and `kid_deviation` are of halves, as they would be with one image in
    each."""

    recall: float = 1.0
    vendi_variance: float = 0.0
    kid_deviation: float = 0.0

    def least_recall(self, images: int, of_made: float) -> float:
        """`of_made` is the recall of a few generated images against the others. It is what as many generated
        images reach where neighbours are far apart, as they are in many dimensions."""
        recall = min(self.recall, of_made)
        return min(MIN_RECALL, recall - QUANTILE * float(np.sqrt(recall * (1 - recall) / images)))

    def least_vendi_ratio(self, images: int) -> float:
        return min(MIN_VENDI_RATIO, 1 - QUANTILE * float(np.sqrt(self.vendi_variance / images)))

    def most_kid(self, images: int) -> float:
        """Without a difference, the KID of twice as many images deviates half as much."""
        return QUANTILE * self.kid_deviation / images


def measure_diversity(
    groups: Mapping[str, Pictures], references: Mapping[str, Embeddings] | None = None, seed: int = 0
) -> dict[str, Diversity]:
    """The diversity of each class or cell. `references` are the real images of all classes, by default
    those of the groups. The same `seed` gives the same figures."""
    rng = np.random.default_rng(seed)
    sampled = {name: _sampled(pictures, rng) for name, pictures in groups.items()}
    estimable = {name: each for name, each in sampled.items() if is_estimable(each)}
    null = estimate_null(list(estimable.values()), rng)
    real = {
        name: unit(_part(images, MAX_IMAGES, rng))
        for name, images in (references or {name: each.real for name, each in groups.items()}).items()
        if len(images) >= LEAST_IMAGES
    }
    measured = {}
    for name, pictures in groups.items():
        if name in estimable:
            own = pictures.class_name or name
            others = {other: images for other, images in real.items() if other != own}
            measured[name] = _measured(pictures, sampled[name], null, others, rng)
        else:
            measured[name] = duplicates_only(pictures)
    return measured


def is_estimable(pictures: Pictures) -> bool:
    return min(len(pictures.real), len(pictures.made)) >= LEAST_IMAGES


def duplicates_only(pictures: Pictures) -> Diversity:
    """What can be said of a class or cell with few images."""
    reasons = [*_duplicates(pictures)]
    return Diversity(
        "amber" if reasons else "not estimable",
        len(pictures.real),
        len(pictures.made),
        near_duplicates=pictures.near_duplicates,
        reasons=tuple(reasons),
    )


def estimate_null(groups: Sequence[Pictures], rng: np.random.Generator) -> Null:
    """From random splits of the real images of each group."""
    if not groups:
        return Null()
    splits = max(MIN_SPLITS, SPLITS // len(groups))
    recalls, variances = [], []
    for group in groups:
        half, halves = len(group.real) // 2, []
        for _ in range(splits):
            images = group.real[rng.permutation(len(group.real))]
            one, other = images[:half], images[half : 2 * half]
            vendi_change = np.log(vendi_score(other) / vendi_score(one))
            halves.append((half * vendi_change**2, half**2 * kid(one, other) ** 2))
        recalls.append(_recall_within(group.real, splits, rng))
        variances.append(np.mean(halves, axis=0))
    vendi_variance, kid_variance = np.mean(variances, axis=0)
    return Null(float(np.mean(recalls)), float(vendi_variance), float(np.sqrt(kid_variance)))


# ---- the measures ----------------------------------------------------------------------------------


def improved_recall(real: Embeddings, made: Embeddings, k: int) -> float:
    """Share of the real images that are within the reach of a generated one: nearer than its k-th neighbour
    among the generated ones. With the arguments exchanged it is improved precision."""
    from scipy.spatial.distance import cdist

    radii = np.partition(cdist(made, made), min(k, len(made) - 1), axis=1)[:, min(k, len(made) - 1)]
    return float((cdist(real, made) <= radii).any(axis=1).mean())


def vendi_score(images: Embeddings) -> float:
    """The effective number of different images: 1 if all are alike, their number if none is like another."""
    values = np.linalg.eigvalsh(images @ images.T / len(images))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def kid(first: Embeddings, second: Embeddings) -> float:
    """Kernel inception distance, without bias: about 0 for two samples of one distribution. The kernel is
    the usual cubic one, with factor 1, because the embeddings are unit vectors."""
    within = _mean_of_pairs(first) + _mean_of_pairs(second)
    return float(within - 2 * _kernel(first, second).mean())


def _kernel(first: Embeddings, second: Embeddings) -> Embeddings:
    product: Embeddings = (first @ second.T + 1) ** 3
    return product


def _mean_of_pairs(images: Embeddings) -> float:
    kernel, count = _kernel(images, images), len(images)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


# ---- parts -----------------------------------------------------------------------------------------


def _measured(
    pictures: Pictures,
    sampled: Pictures,
    null: Null,
    others: Mapping[str, Embeddings],
    rng: np.random.Generator,
) -> Diversity:
    real, made = sampled.real, sampled.made
    size = len(real)
    recall = improved_recall(real, made, NEIGHBOURS)
    vendi_ratio = _vendi_ratio(real, made, rng)
    distance = kid(real, made)
    nearest = _nearest(real, others)
    of_nearest = None if nearest is None else kid(real, others[nearest])
    red = []
    if recall < (least := null.least_recall(size, _recall_within(made, MIN_SPLITS, rng))):
        red.append(f"recall {recall:.2f} is below {least:.2f}")
    if vendi_ratio < (least := null.least_vendi_ratio(size)):
        red.append(f"Vendi ratio {vendi_ratio:.2f} is below {least:.2f}")
    amber = [*_duplicates(pictures)]
    if of_nearest is not None and distance > max(KID_SHARE * of_nearest, null.most_kid(size)):
        amber.append(f"KID {distance:.3g}, and {of_nearest:.3g} to the real images of {nearest}")
    return Diversity(
        "red" if red else "amber" if amber else "green",
        len(pictures.real),
        len(pictures.made),
        recall=recall,
        precision=improved_recall(made, real, NEIGHBOURS),
        vendi_ratio=vendi_ratio,
        kid=distance,
        nearest=nearest,
        kid_of_nearest=of_nearest,
        near_duplicates=pictures.near_duplicates,
        reasons=(*red, *amber),
    )


def _duplicates(pictures: Pictures) -> Sequence[str]:
    count, made = pictures.near_duplicates, len(pictures.made)
    return (
        [f"{count} of {made} generated images are near-duplicates"]
        if count > MAX_NEAR_DUPLICATES * made
        else []
    )


def _sampled(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    return Pictures(unit(_part(pictures.real, MAX_IMAGES, rng)), unit(_part(pictures.made, MAX_IMAGES, rng)))


def _part(images: Embeddings, most: int, rng: np.random.Generator) -> Embeddings:
    return images if len(images) <= most else images[rng.choice(len(images), most, replace=False)]


def unit(images: Embeddings) -> Embeddings:
    """Rows of length 1, as `kid` and the other measures expect."""
    lengths = np.linalg.norm(images, axis=1, keepdims=True)
    scaled: Embeddings = images / np.where(lengths > 0, lengths, 1)
    return scaled


def _vendi_ratio(real: Embeddings, made: Embeddings, rng: np.random.Generator) -> float:
    """At equal numbers, because the Vendi score grows with the number of images."""
    size = min(len(real), len(made))
    scores = [vendi_score(_part(made, size, rng)) for _ in range(SUBSETS if len(made) > size else 1)]
    return float(np.mean(scores)) / vendi_score(_part(real, size, rng))


def _recall_within(images: Embeddings, splits: int, rng: np.random.Generator) -> float:
    """The mean recall of a few of the images against the others."""
    few, recalls = max(1, round(LEFT_OUT * len(images))), []
    for _ in range(splits):
        mixed = images[rng.permutation(len(images))]
        recalls.append(improved_recall(mixed[:few], mixed[few:], NEIGHBOURS))
    return float(np.mean(recalls))


def _nearest(real: Embeddings, others: Mapping[str, Embeddings]) -> str | None:
    """By the means, because the KID to each of many classes would take long."""
    centre = real.mean(axis=0)
    return min(
        others, key=lambda name: float(np.linalg.norm(others[name].mean(axis=0) - centre)), default=None
    )
