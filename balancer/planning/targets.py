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
    if target.per_class is not None:
        return dict.fromkeys(counts, target.per_class)
    if target.ratio_to_largest is not None:
        return dict.fromkeys(counts, math.ceil(as_written(target.ratio_to_largest) * max(counts.values())))
    assert target.total is not None
    return _levelled(target.total, counts)


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
