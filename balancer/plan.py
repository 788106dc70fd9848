"""Counts and a target into a quota for every cell, and what it may cost to fill them."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from balancer.cells import Cell, cells_of
from balancer.rounding import joint_quotas

if TYPE_CHECKING:
    from balancer.config import Config

Assumed = TypeVar("Assumed", float, float | None)

HIGH_BELOW = Fraction(6, 10)
"""A class with less than this part of its target comes before the others."""


class Priority(enum.StrEnum):
    """Order of generation. A class is critical if it has no image at all."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"


@dataclass(frozen=True, slots=True)
class CellQuota:
    cell: Cell
    quota: int
    priority: Priority

    def as_dict(self, facets: Iterable[str]) -> dict[str, str | int | None]:
        """For JSON: class, each of `facets` (None where it does not apply), quota and priority."""
        values = {facet: self.cell.value(facet) for facet in facets}
        priority = self.priority.value
        return {"class": self.cell.class_name, **values, "quota": self.quota, "priority": priority}


@dataclass(frozen=True, slots=True)
class Plan:
    """`cells` are those that lack images, in order of generation; `counts` are the real images."""

    cells: tuple[CellQuota, ...]
    counts: Mapping[str, int]
    target: int

    @property
    def total(self) -> int:
        return sum(wanted.quota for wanted in self.cells)


def make_plan(config: Config, counts: Mapping[str, int]) -> Plan:
    """Plan for images per class as `counts` has them; a class that is not in it has none."""
    target = config.target.per_class
    have = {name: counts.get(name, 0) for name in config.classes}
    deficits = {name: max(0, target - count) for name, count in have.items()}
    facets = config.facet_axes()
    quotas = joint_quotas(deficits, facets)
    priorities = {name: _priority(count, target) for name, count in have.items()}
    wanted = [
        CellQuota(cell, quotas[cell], priorities[name])
        for name in config.classes
        for cell in cells_of(name, facets)
        if quotas[cell] > 0
    ]
    wanted.sort(key=lambda quota: list(Priority).index(quota.priority))  # stable: then as in the config
    return Plan(tuple(wanted), have, target)


def _priority(count: int, target: int) -> Priority:
    if count == 0:
        return Priority.CRITICAL
    return Priority.HIGH if Fraction(count, target) < HIGH_BELOW else Priority.MEDIUM


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run has measured, instead of the config's assumptions; `source` names it in the basis."""

    source: str
    acceptance: float | None = None
    seconds_per_candidate: float | None = None
    bytes_per_image: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a plan. Each basis says in words where its figure comes from."""

    candidates: int
    candidates_basis: str
    hours: float | None
    hours_basis: str
    bytes: int
    bytes_basis: str


def estimate(
    plan: Plan, config: Config, measured: Measured | None = None, *, real_bytes: int = 0
) -> Estimate:
    """`real_bytes` is the size of the real images, counted if they are copied into the run folder."""
    measured = measured or Measured("")
    candidates, candidates_basis = _candidates(plan, config, measured)
    hours, hours_basis = _hours(candidates, config, measured)
    size, size_basis = _size(plan, config, measured, real_bytes)
    return Estimate(candidates, candidates_basis, hours, hours_basis, size, size_basis)


def expected_attempts(acceptance: float, attempts: int) -> float:
    """Attempts a slot takes on average if each passes with this probability and `attempts` are allowed."""
    if acceptance == 0:
        return float(attempts)
    return float((1 - (1 - acceptance) ** attempts) / acceptance)


def _candidates(plan: Plan, config: Config, measured: Measured) -> tuple[int, str]:
    attempts = config.attempts.max + (config.attempts.fallback is not None)
    acceptance, source = _figure(
        measured.acceptance, config.planning.acceptance, "planning.acceptance", measured.source
    )
    expected = math.ceil(plan.total * expected_attempts(acceptance, attempts))
    basis = f"{plan.total} images, {acceptance:.0%} of candidates pass ({source}), up to {attempts} attempts"
    limit = config.budget.max_candidates
    if limit is not None and limit < expected:
        return limit, f"{basis}; held at {limit} by budget.max_candidates"
    return expected, basis


def _hours(candidates: int, config: Config, measured: Measured) -> tuple[float | None, str]:
    seconds, source = _figure(
        measured.seconds_per_candidate,
        config.planning.seconds_per_candidate,
        "planning.seconds_per_candidate",
        measured.source,
    )
    if seconds is None:
        return None, "unknown until measured; set planning.seconds_per_candidate for an estimate"
    given = config.actors.generators
    generators, number = (1, "one generator") if given == "auto" else (given, f"{given} generators")
    basis = f"{candidates} candidates of {seconds:g} s each ({source}), {number} (actors.generators)"
    hours = candidates * seconds / generators / 3600
    limit = config.budget.max_hours
    if limit is not None and limit < hours:
        return limit, f"{basis}; held at {limit:g} h by budget.max_hours"
    return hours, basis


def _size(plan: Plan, config: Config, measured: Measured, real_bytes: int) -> tuple[int, str]:
    raw = config.generation.width * config.generation.height * 3
    per_image, source = _figure(
        measured.bytes_per_image, config.planning.bytes_per_image, "planning.bytes_per_image", measured.source
    )
    if per_image is None:
        per_image, source = 0.6 * raw, "60 % of raw pixels; planning.bytes_per_image"
    basis = f"{plan.total} images of {per_image / 1000:.0f} kB ({source})"
    copied = real_bytes if config.output.real_images == "copy" else 0
    if copied:
        basis += f" and {copied / 1e6:.1f} MB of real images (output.real_images: copy)"
    return round(plan.total * per_image) + copied, basis


def _figure(measured: float | None, assumed: Assumed, key: str, source: str) -> tuple[float | Assumed, str]:
    return (assumed, key) if measured is None else (measured, f"measured by {source}")
