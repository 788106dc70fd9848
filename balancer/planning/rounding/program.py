"""Solve linear programs over sums with scipy's HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SumConstraint:
    """The sum of the unknowns numbered `plus` minus those numbered `minus` is from `low` to `high`."""

    plus: Sequence[int] | Ints
    low: int
    high: int
    minus: Sequence[int] = ()


def solve(
    costs: Sequence[float] | Floats,
    limits: Sequence[float] | Ints,
    sums: Sequence[SumConstraint],
    *,
    whole: bool,
    max_nodes: int = 0,
) -> Floats | None:
    """The unknowns, from 0 to `limits` each, that meet the sums at the least cost; None if there are none, or
    if an integer solution takes more than `max_nodes` branches."""
    numbers = [number for sum_ in sums for number in (*sum_.plus, *sum_.minus)]
    signs = [sign for sum_ in sums for sign in (*[1] * len(sum_.plus), *[-1] * len(sum_.minus))]
    starts = np.cumsum([0, *(len(sum_.plus) + len(sum_.minus) for sum_ in sums)])
    matrix = csr_array((np.array(signs, float), numbers, starts), shape=(len(sums), len(costs)))
    solution = milp(
        costs,
        integrality=np.full(len(costs), int(whole)),
        bounds=Bounds(0, limits),
        constraints=LinearConstraint(matrix, [sum_.low for sum_ in sums], [sum_.high for sum_ in sums]),
        options={"mip_rel_gap": 0, "node_limit": max_nodes} if whole else None,
    )
    return solution.x if solution.status == 0 else None
