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


def sample_weights(rows: pa.Table, by: Sequence[str], real_weight: float) -> NDArray[np.float64]:
    """One weight a row; they sum to 1. Each combination of values of `by` that occurs has the same weight in
    all, and within one a real image has `real_weight` times that of a generated one.

    With a `real_weight` of 0, combinations without a generated image have no weight. UsageError if
    `real_weight` is negative or not a number, or if no row would have a weight.
    """
    if not 0 <= real_weight < float("inf"):
        raise UsageError(f"real_weight is {real_weight:g}; it is 0 or more, 1 for no difference")
    weights = np.where(np.asarray(pc.equal(rows["source"], REAL)), real_weight, 1.0)
    groups = _groups(rows, by)
    totals = np.bincount(groups, weights=weights)
    if not totals.any():
        raise UsageError("no image would ever be drawn", hint="give a real_weight above 0")
    drawn = totals[groups] > 0
    shares = np.divide(weights, totals[groups], out=np.zeros(len(weights)), where=drawn)
    return shares / np.count_nonzero(totals)


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
