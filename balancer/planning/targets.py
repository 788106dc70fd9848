"""Compute how many images each class should have, and how many of them may be generated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from balancer.planning.rounding import as_written

if TYPE_CHECKING:
    from balancer.config.schema import TargetConfig


def compute_targets(target: TargetConfig, counts: Mapping[str, int]) -> dict[str, int]:
    """Target of each class, real and generated images together. `counts` are the real images, which may
    exceed the target."""
    own = {
        name: counts[name] if wanted == "keep" else wanted
        for name, wanted in target.classes.items()
        if name in counts
    }
    if len(own) == len(counts):
        return {name: own[name] for name in counts}
    return _common_targets(target, counts, own) | own


def _common_targets(
    target: TargetConfig, counts: Mapping[str, int], own: Mapping[str, int]
) -> dict[str, int]:
    """The targets of all classes but for those that have their `own`."""
    largest = max(counts.values())
    if target.per_class is not None:
        return dict.fromkeys(counts, target.per_class)
    if target.ratio_to_largest is not None:
        return dict.fromkeys(counts, math.ceil(as_written(target.ratio_to_largest) * largest))
    if target.rule == "sqrt":
        return {name: square_root_target(count, largest) for name, count in counts.items()}
    if target.beta is not None:
        return {name: effective_target(count, largest, target.beta) for name, count in counts.items()}
    assert target.total is not None
    others = {name: count for name, count in counts.items() if name not in own}
    rest = target.total - sum(max(wanted, counts[name]) for name, wanted in own.items())
    levelled = _levelled(rest, others)
    return {name: levelled.get(name, 0) for name in counts}  # in the order of the classes


def square_root_target(count: int, largest: int) -> int:
    """Square-root sampling: classes in proportion to the square roots of their real images, the largest as
    it is. The square root of `count * largest`, rounded up.

    Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", NeurIPS
    2013; Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining", ECCV 2018.
    """
    square = max(count, 1) * largest
    return max(count, math.isqrt(square - 1) + 1 if square else 0)


def effective_target(count: int, largest: int, beta: float) -> int:
    """Classes in proportion to their weights in the class-balanced loss, the largest as it is.

    Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    weigh each image of a class of n by 1/E(n), where E(n) = (1 - beta^n) / (1 - beta) is the effective number
    of samples. All images of the class together then weigh n/E(n). The target is the number of images with
    that weight if each weighs as much as one of the largest class, E(largest) * n / E(n), rounded up. It
    rises with n, since E is concave, and with beta: from n at 0 towards `largest` near 1.
    """
    at_least_one = max(count, 1)
    if beta == 0 or largest == 0:
        return min(at_least_one, largest)
    exact = at_least_one * _missing_power(beta, largest) / _missing_power(beta, at_least_one)
    return max(count, math.ceil(round(exact, 6)))  # 100.0000001 images are 100


def _missing_power(beta: float, exponent: int) -> float:
    """1 - beta^exponent, also for a beta near 1."""
    return -math.expm1(exponent * math.log(beta))


def max_generated(target: TargetConfig, count: int) -> int | None:
    """The most images that may be generated for a class with `count` real ones; None if there is no limit."""
    if target.max_synthetic_share is None:
        return None
    share = as_written(target.max_synthetic_share)
    return math.floor(count * share / (1 - share))


def values_to_add(
    deficit: int, shares: tuple[Fraction, ...], present: tuple[int, ...]
) -> tuple[Fraction, ...]:
    """Exact numbers of images to generate per value, summing to `deficit`, that together with those present
    come closest to the shares.

    Values that already have too many images get none. The others are filled to one level, in proportion to
    their shares.
    """
    filled = [index for index, share in enumerate(shares) if share > 0]
    filled.sort(key=lambda index: present[index] / shares[index])
    level = Fraction(0)
    for size in range(len(filled), 0, -1):
        lowest = filled[:size]
        level = Fraction(deficit + sum(present[index] for index in lowest)) / sum(
            (shares[index] for index in lowest), Fraction(0)
        )
        if level * shares[lowest[-1]] >= present[lowest[-1]]:
            break
    return tuple(
        max(Fraction(0), level * share - there) if share > 0 else Fraction(0)
        for share, there in zip(shares, present, strict=True)
    )


def _levelled(total: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Raise every class to one level; a class above it keeps its images. The remainder goes to the raised
    classes, one image each, in the order of their names."""
    missing = max(0, total - sum(counts.values()))
    below = sorted(counts, key=lambda name: (counts[name], name))
    level, left = 0, 0
    for size in range(len(below), 0, -1):
        lowest = below[:size]
        level, left = divmod(missing + sum(counts[name] for name in lowest), size)
        if level >= counts[lowest[-1]]:
            break
    raised = set(sorted(lowest)[:left])
    return {name: max(count, level + (name in raised)) for name, count in counts.items()}
