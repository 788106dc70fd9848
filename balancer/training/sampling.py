"""How often a training loop should draw each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.errors import UsageError
from balancer.manifest.rows import REAL
from balancer.training.labels import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray


REAL_SHARE = 0.5
"""The part of the draws of a class that goes to its real images, at least. A classifier that hardly sees them
learns what the generator makes of a class."""

MAX_WEIGHT = 1_000_000

LOW_SHARE = 0.1
"""Real images that are drawn less often are hardly seen."""


def sample_weights(
    rows: pa.Table,
    by: Sequence[str],
    *,
    real_share: float | None = None,
    real_weight: float | None = None,
    by_size: bool = False,
) -> NDArray[np.float64]:
    """One weight a row; they sum to 1. Each combination of values of `by` that occurs has the same weight in
    all, or with `by_size` one that grows with its images.

    Within one that has real and generated images, real ones have `real_share` of the weight (by default
    REAL_SHARE), or their share of the images if that is more. With `real_weight` instead, a real image has
    that many times the weight of a generated one; with 0, combinations without a generated image have none.
    UsageError for values out of range, for both at once, or if no row would have a weight.
    """
    _check(real_share, real_weight)
    is_real, groups = np.asarray(pc.equal(rows["source"], REAL)), _groups(rows, by)
    if real_weight is not None:
        weights = np.where(is_real, real_weight, 1.0)
    else:
        share = REAL_SHARE if real_share is None else real_share
        weights = _shared_weights(is_real, groups, share)
    totals = np.bincount(groups, weights=weights)
    if not totals.any():
        raise UsageError("no image would ever be drawn", hint="give a real_weight above 0")
    drawn = totals[groups] > 0
    shares = np.divide(weights, totals[groups], out=np.zeros(len(weights)), where=drawn)
    every: NDArray[np.float64] = (
        shares * np.bincount(groups)[groups] / drawn.sum() if by_size else shares / np.count_nonzero(totals)
    )
    return every


def _check(real_share: float | None, real_weight: float | None) -> None:
    if real_share is not None and real_weight is not None:
        raise UsageError(
            "real_share and real_weight both say how often real images are drawn", hint="give one"
        )
    if real_weight is not None and not 0 <= real_weight <= MAX_WEIGHT:
        raise UsageError(f"real_weight is {real_weight:g}; it is 0 to {MAX_WEIGHT:,}, 1 for no difference")
    if real_share is not None and not 0 <= real_share <= 1:
        raise UsageError(f"real_share is {real_share:g}; it is 0 to 1, such as 0.5 for half of the draws")


def _shared_weights(
    is_real: NDArray[np.bool_], groups: NDArray[np.intp], share: float
) -> NDArray[np.float64]:
    real, all_ = np.bincount(groups, weights=is_real), np.bincount(groups)
    weights = np.ones(len(groups))
    raised = (real > 0) & (real < share * all_)
    real_each = np.divide(share, real, out=np.ones(len(real)), where=raised)
    made_each = np.divide(1 - share, all_ - real, out=np.ones(len(real)), where=raised)
    weights[is_real], weights[~is_real] = real_each[groups[is_real]], made_each[groups[~is_real]]
    return weights


def exposures(rows: pa.Table, weights: NDArray[np.float64], draws: int) -> pa.Table:
    """How often `draws` draws are expected to show the images of each class and source: `images`, `draws` of
    them in all, and `draws_per_image`."""
    table = pa.table({"class": plain(rows["class"]), "source": plain(rows["source"]), "weight": weights})
    summed = table.group_by(["class", "source"], use_threads=False).aggregate(
        [("weight", "count"), ("weight", "sum")]
    )
    drawn = pc.multiply(summed["weight_sum"], draws)
    return pa.table(
        {
            "class": summed["class"],
            "source": summed["source"],
            "images": summed["weight_count"],
            "draws": drawn,
            "draws_per_image": pc.divide(drawn, summed["weight_count"]),
        }
    ).sort_by([("class", "ascending"), ("source", "ascending")])


def rarely_seen(shown: pa.Table) -> dict[str, float]:
    """The classes whose real images get less than LOW_SHARE of the draws, and the share that they get."""
    by_class: dict[str, dict[str, float]] = {}
    for row in shown.to_pylist():
        by_class.setdefault(row["class"], {})[row["source"]] = row["draws"]
    shares = {name: draws[REAL] / sum(draws.values()) for name, draws in by_class.items() if draws.get(REAL)}
    return {name: share for name, share in shares.items() if share < LOW_SHARE}


def draws_per_image(real: int, generated: int, draws: float) -> tuple[float | None, float | None]:
    """How often a real and a generated image of a class are drawn, where `draws` go to the class and nothing
    else is asked for; None for a kind without images."""
    if not real or not generated:
        each = draws / (real + generated) if real or generated else None
        return (each if real else None), (each if generated else None)
    share = max(REAL_SHARE, real / (real + generated))
    return draws * share / real, draws * (1 - share) / generated


def _groups(rows: pa.Table, by: Sequence[str]) -> NDArray[np.intp]:
    """The number of its combination for each row; null is a value like others."""
    numbers = np.zeros(rows.num_rows, np.intp)
    for name in by:
        try:
            values = plain(rows[name]).combine_chunks()
            codes = np.asarray(pc.dictionary_encode(values, null_encoding="encode").indices)
        except pa.ArrowNotImplementedError as error:
            raise UsageError(f"images cannot be balanced by {name}, which is no single value") from error
        _, numbers = np.unique(numbers * (codes.max() + 1) + codes, return_inverse=True)
    return numbers
