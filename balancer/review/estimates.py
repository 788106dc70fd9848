"""How many labels are wrong, by what people said of a sample.

Each image of the sample stands for a number of images of the run, its weight. The rate of errors is that of
the weights (Hajek's estimator). Its interval is that of Clopper and Pearson (1934) at the effective size of
the sample: n_eff = (sum of weights)^2 / (sum of squared weights), as Kish (1965) has it, put into the
quantiles of the beta distribution as Korn and Graubard (1998) do, who have n_eff from an estimated variance,
for which small strata are too few. With equal weights it is the interval of Clopper and Pearson itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of `decided` images `errors` were wrong; `rate` is what follows for the images that they stand for,
    `low` and `high` the limits of its interval of 95 % confidence. Without any, nothing is known."""

    decided: int
    errors: int
    rate: float | None
    low: float
    high: float


def estimate(answers: Mapping[str, bool], weights: Mapping[str, float]) -> Estimate:
    """`answers` say of each item of a sample whether it is an error; each has a weight above 0."""
    used = [(weights[item], wrong) for item, wrong in answers.items()]
    if not used:
        return Estimate(0, 0, None, 0.0, 1.0)
    total = math.fsum(weight for weight, _ in used)
    rate = math.fsum(weight for weight, wrong in used if wrong) / total
    effective = total**2 / math.fsum(weight**2 for weight, _ in used)
    low, high = clopper_pearson(rate * effective, effective)
    errors = sum(wrong for _, wrong in used)
    return Estimate(len(used), errors, rate, low, high)


def estimates_by(
    answers: Mapping[str, bool], weights: Mapping[str, float], group: Callable[[str], Iterable[str]]
) -> dict[str, Estimate]:
    """One for each group that an item belongs to; an item can belong to several, or to none."""
    groups: dict[str, dict[str, bool]] = defaultdict(dict)
    for item, wrong in answers.items():
        for name in group(item):
            groups[name][item] = wrong
    return {name: estimate(of_group, weights) for name, of_group in sorted(groups.items())}


def clopper_pearson(errors: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The limits of the rate behind `errors` of `count`, which need not be whole numbers."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if errors <= 0 else float(betaincinv(errors, count - errors + 1, tail))
    high = 1.0 if errors >= count else float(betaincinv(errors + 1, count - errors, 1 - tail))
    return low, high


def bound_without_errors(count: int) -> float:
    """The greatest rate that `count` images without an error still allow."""
    return clopper_pearson(0, count)[1] if count else 1.0


def images_for_bound(bound: float) -> int:
    """The least number of images that, without an error, keep the rate below `bound`."""
    return max(1, math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log1p(-bound) - 1e-9))
