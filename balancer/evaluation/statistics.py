"""Paired comparison of two arms, over seeds and test images at once.

Both arms are trained with the same seeds and tested on the same images, so what is compared are differences
of one seed on one image. Seeds and images are both samples, and neither may be taken for the whole: the
bootstrap draws both. All randomness is seeded, and all bounds are differences in 0..1, not in points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Differences = NDArray[np.float64]
    """(seeds, images): 1 where only the new arm is right, -1 where only the other one is, 0 else."""

RESAMPLES = 9999
CONFIDENCE = 0.95
ALPHA = 0.05

MOST_FLIPS = 1 << 14
"""Up to 14 seeds all assignments of signs are tried; of more seeds, so many are drawn."""

DISCORDANT = 0.1
"""Share of images on which two arms disagree, where too few were tested to know."""

POWER = 0.8

_AT_ONCE = 2_000_000
"""Numbers drawn at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its bounds at CONFIDENCE, and two p-values: that there is no difference, and that the
    difference is as large as the margin either way."""

    mean: float
    low: float
    high: float
    p_none: float
    p_margin: float

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Images:
    """What the metric is of: for each test image the number of its group, and of each group its weight. A
    metric is the weighted mean of the groups' means: the groups are classes for balanced accuracy."""

    groups: NDArray[np.intp]
    weights: NDArray[np.float64]

    @property
    def sizes(self) -> NDArray[np.intp]:
        return np.bincount(self.groups, minlength=len(self.weights))

    def each(self) -> NDArray[np.float64]:
        """The weight of each image; they sum to 1."""
        shares: NDArray[np.float64] = (self.weights / self.sizes)[self.groups]
        return shares


def images_of(labels: NDArray[np.intp], metric: str) -> Images:
    """Of test images with these labels: each class weighs the same in `balanced_accuracy`, each image in
    `accuracy`. Images are drawn within their class either way."""
    classes, groups = np.unique(labels, return_inverse=True)
    sizes = np.bincount(groups)
    weights = np.ones(len(classes)) if metric == "balanced_accuracy" else sizes.astype(float)
    return Images(groups.astype(np.intp), weights / weights.sum())


def compare(differences: Differences, images: Images, margin: float, seed: int = 0) -> Interval:
    """The mean difference with its BCa interval over seeds and images: Efron and Tibshirani 1993, 14.3, for
    several samples as in scipy.stats.bootstrap, where the seeds are one sample and each group of images is
    another.

    No bound is nearer to the mean than a test of so few images can tell: if none of n images differs, up to
    1 - (1 - CONFIDENCE) ** (1 / n) of them may (a bootstrap would say that none does).
    """
    each = images.each()
    mean = float(np.clip(differences.mean(0) @ each, -1, 1))  # weights sum to 1 but for rounding
    drawn = _bootstrap(differences, images, np.random.default_rng(seed))
    low, high = _bca(drawn, mean, _jackknife(differences, images))
    floor = least_half_width(images)
    low, high = max(-1.0, min(low, mean - floor)), min(1.0, max(high, mean + floor))
    return Interval(mean, low, high, _p_none(drawn), _p_margin(drawn, margin, floor))


def least_half_width(images: Images) -> float:
    """Of the group in which one image weighs most."""
    return float(np.max(images.weights * (1 - (1 - CONFIDENCE) ** (1 / images.sizes))))


def images_for_half_width(images: Images, wanted: float) -> int:
    """Test images, in the same proportions, for a `least_half_width` of `wanted` at most."""
    each = np.minimum(wanted / images.weights, 0.999)
    sizes = math.log(1 - CONFIDENCE) / np.log1p(-each)
    return math.ceil(len(images.groups) * float(np.max(sizes / images.sizes)))


def estimate(values: Differences, images: Images, seed: int = 0) -> Interval:
    """The metric of one arm, from (seeds, images) that are 1 where it is right."""
    each = images.each()
    mean = float(np.clip(values.mean(0) @ each, 0, 1))
    drawn = _bootstrap(values, images, np.random.default_rng(seed))
    low, high = _bca(drawn, mean, _jackknife(values, images))
    low, high = np.clip((low, high), 0, 1).tolist()
    return Interval(mean, low, high, _p_none(drawn), 1.0)


def _bootstrap(values: Differences, images: Images, random: np.random.Generator) -> NDArray[np.float64]:
    """The statistic of RESAMPLES draws of seeds, and of images within each group."""
    seeds, count = values.shape
    members = [np.flatnonzero(images.groups == group) for group in range(len(images.weights))]
    drawn = []
    step = max(1, _AT_ONCE // max(seeds, count))
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        by_image = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) @ (values / seeds)
        sums = np.zeros(size)
        for places, weight in zip(members, images.weights, strict=True):
            chosen = random.integers(0, len(places), (size, len(places)))
            sums += weight * np.take_along_axis(by_image[:, places], chosen, axis=1).mean(1)
        drawn.append(sums)
    return np.concatenate(drawn)


def _jackknife(values: Differences, images: Images) -> list[NDArray[np.float64]]:
    """For each sample, the statistic without one of its members."""
    seeds, each = len(values), images.each()
    by_seed, by_image = values @ each, values.mean(0)
    without = [(by_seed.sum() - by_seed) / (seeds - 1)] if seeds > 1 else []
    whole = float(by_image @ each)
    for group, weight in enumerate(images.weights):
        ones = by_image[images.groups == group]
        if len(ones) > 1:
            rest = (ones.sum() - ones) / (len(ones) - 1)
            without.append(whole + weight * (rest - ones.mean()))
    return without


def _bca(drawn: NDArray[np.float64], mean: float, without: list[NDArray[np.float64]]) -> tuple[float, float]:
    if np.ptp(drawn) < 1e-12:
        return mean, mean
    below = (np.mean(drawn < mean) + np.mean(drawn <= mean)) / 2
    bias = float(ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    influence = [(len(each) - 1) * (each.mean() - each) for each in without]
    square = sum(float((each**2).sum()) / len(each) ** 2 for each in influence)
    cube = sum(float((each**3).sum()) / len(each) ** 3 for each in influence)
    bend = cube / (6 * square**1.5) if square > 0 else 0.0
    at = [float(ndtri(tail)) + bias for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)]
    low, high = np.quantile(drawn, [float(ndtr(bias + each / (1 - bend * each))) for each in at])
    return float(low), float(high)


def _p_none(drawn: NDArray[np.float64]) -> float:
    """Two-sided, from where 0 lies among the draws."""
    tail = min(np.sum(drawn <= 1e-12), np.sum(drawn >= -1e-12))
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def _p_margin(drawn: NDArray[np.float64], margin: float, floor: float) -> float:
    """The larger of two one-sided ones; 1 where so few images could not tell."""
    if floor >= margin:
        return 1.0
    tail = max(np.sum(drawn <= -margin), np.sum(drawn >= margin))
    return float((tail + 1) / (len(drawn) + 1))


def sign_flip(by_seed: Sequence[float], seed: int = 0) -> float:
    """One-sided p-value that the mean over seeds is above 0: how often it is as large when each seed's
    difference may as well have had the other sign."""
    values = np.asarray(by_seed, float)
    if 1 << len(values) <= MOST_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float(np.mean(signs @ values >= values.sum() - 1e-12))
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(MOST_FLIPS, len(values)))
    return float((np.sum(signs @ values >= values.sum() - 1e-12) + 1) / (MOST_FLIPS + 1))


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which hypotheses are rejected at a family-wise error of `alpha` (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] > alpha / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected


def spread(differences: Differences, images: Images) -> tuple[float, float]:
    """Variances of the mean difference: what each seed, and what each image of all, adds to it.

    Divided by the numbers of seeds and of images they sum to about the variance of the mean.
    """
    each = images.each()
    by_seed, by_image = differences @ each, differences.mean(0)
    of_seeds = float(by_seed.var(ddof=1)) if len(by_seed) > 1 else 0.0
    of_images = sum(
        weight**2 * float(np.var(by_image[images.groups == group])) / size
        for group, (weight, size) in enumerate(zip(images.weights, images.sizes, strict=True))
    )
    return of_seeds, of_images * len(images.groups)


@dataclass(frozen=True, slots=True)
class Needed:
    """What would be enough to tell, if the difference stays as it is: test images with the seeds there are,
    or seeds with the images there are; None where that alone never suffices. If neither does, `together` are
    as many times more images and seeds as would."""

    test_images: int | None
    seeds: int | None
    together: tuple[int, int] | None = None


def needed(differences: Differences, images: Images, wanted: float) -> Needed:
    """For an interval that reaches `wanted` to either side, from the spread over seeds and over images."""
    seeds, count = differences.shape
    of_seeds, of_images = spread(differences, images)
    z = float(ndtri((1 + CONFIDENCE) / 2))
    variance = (max(wanted, 1e-6) / z) ** 2
    # Rounded up, and never less than there is: what there is was not enough.
    rest = variance - of_seeds / seeds
    least = images_for_half_width(images, wanted)
    more_images = max(count + 1, least, math.ceil(of_images / rest)) if rest > 0 else None
    if of_images == 0 and least <= count:
        more_images = None
    rest = variance - of_images / count
    more_seeds = max(seeds + 1, math.ceil(of_seeds / rest)) if rest > 0 and of_seeds > 0 else None
    if least > count:
        more_seeds = None
    if more_images or more_seeds:
        return Needed(more_images, more_seeds)
    times = (of_seeds / seeds + of_images / count) / variance
    return Needed(None, None, (max(least, math.ceil(times * count)), math.ceil(times * seeds)))


def images_to_detect(change: float, discordant: float = DISCORDANT) -> int:
    """Test images of a class for a change of its recall to be seen with POWER, where two classifiers differ
    on a share of them (McNemar's test, normal approximation)."""
    z = float(ndtri(1 - ALPHA / 2) + ndtri(POWER))
    share = max(discordant, change)
    return max(1, math.ceil(share * (z / change) ** 2))
