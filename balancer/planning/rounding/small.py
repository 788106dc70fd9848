"""Find the cheapest rounding of few cells with an integer program."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from balancer.planning.rounding import costs
from balancer.planning.rounding.program import SumConstraint, solve
from balancer.planning.rounding.tables import Kind, Quotas

MAX_NODES = 1000
"""Branches after which the solver gives up."""


@dataclass(frozen=True, slots=True)
class _Number:
    """A number to round: its floor, plus 0 or 1 if its ceiling is higher (unknown `step`), plus its excess
    over the ceiling (`step + 1`), minus its shortfall below the floor (`step + 2`)."""

    exact: Fraction
    step: int

    @property
    def floor(self) -> int:
        return math.floor(self.exact)


class _Program:
    def __init__(self) -> None:
        self.costs: list[float] = []
        self.limits: list[float] = []
        self.sums: list[SumConstraint] = []

    def add(self, exact: Fraction, weight: float, outside: float, tie: float = 0) -> _Number:
        number = _Number(exact, len(self.costs))
        self.costs += weight * costs.rising(exact) + tie, outside + weight + tie, outside + weight - tie
        self.limits += math.ceil(exact) - number.floor, math.inf, number.floor
        return number

    def keep(self, numbers: Sequence[_Number], weight: float) -> None:
        """Require that the sum is the floor or the ceiling of its exact value."""
        exact = sum((number.exact for number in numbers), Fraction(0))
        floors = sum(number.floor for number in numbers)
        self._sum(numbers, math.floor(exact) - floors, math.ceil(exact) - floors)
        for number in numbers:
            for unknown, sign in ((number.step, 1), (number.step + 1, 1), (number.step + 2, -1)):
                self.costs[unknown] += sign * weight * costs.rising(exact)

    def count(self, numbers: Sequence[_Number], weight: float, outside: float) -> None:
        """Charge the sum for its distance to the exact value, and more outside floor and ceiling."""
        exact = sum((number.exact for number in numbers), Fraction(0))
        total = self.add(exact, weight, outside)
        base = total.floor - sum(number.floor for number in numbers)
        self._sum(numbers, base, base, total)

    def solve(self, wanted: Mapping[str, Sequence[_Number]]) -> dict[str, list[int]] | None:
        solution = solve(self.costs, self.limits, self.sums, whole=True, max_nodes=MAX_NODES)
        if solution is None:
            return None
        added = np.rint(solution).astype(int).tolist()
        return {
            name: [
                number.floor + added[number.step] + added[number.step + 1] - added[number.step + 2]
                for number in numbers
            ]
            for name, numbers in wanted.items()
        }

    def _sum(self, numbers: Sequence[_Number], low: int, high: int, less: _Number | None = None) -> None:
        plus = [unknown for number in numbers for unknown in (number.step, number.step + 1)]
        minus = [number.step + 2 for number in numbers]
        if less:
            plus.append(less.step + 2)
            minus += less.step, less.step + 1
        self.sums.append(SumConstraint(plus, low, high, minus))


def round_small(kinds: Sequence[Kind]) -> Quotas | None:
    """The cheapest rounding; None if the solver gives up."""
    program = _Program()
    quotas: dict[str, list[_Number]] = {}
    kept = defaultdict[tuple[float, tuple[object, ...]], list[_Number]](list)
    counted = defaultdict[tuple[object, ...], list[_Number]](list)
    for kind in kinds:
        for name in kind.names:
            over, under = kind.exact(name)
            quotas[name] = []
            for values, numerator in zip(kind.combinations, over, strict=True):
                tie = costs.tie(name, *values)
                number = program.add(Fraction(numerator, under), costs.CELL, costs.CELL_OUTSIDE, tie)
                quotas[name].append(number)
                counted[kind.names, values].append(number)
                kept[0.0, (name,)].append(number)
                for axis, value in zip(kind.axes, values, strict=True):
                    kept[costs.SUM, (name, axis.name, value)].append(number)
                    kept[costs.SUM, (kind.names, axis.name, value)].append(number)
                    kept[costs.TOTAL, (axis.name, value)].append(number)
    for (weight, _), numbers in kept.items():
        program.keep(numbers, weight)
    for numbers in counted.values():
        program.count(numbers, costs.SUM, costs.COMBINATION_OUTSIDE)
    return program.solve(quotas)
