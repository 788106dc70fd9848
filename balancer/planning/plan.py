"""Plan a quota for every cell, and estimate the cost of filling them."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from balancer.cells import Cell, Facet
from balancer.planning.rounding import round_quotas
from balancer.planning.targets import compute_targets, max_generated, values_to_add
from balancer.process.collection import gc_paused
from balancer.scheduling.adaptive import Tally
from balancer.scheduling.order import cells_in_turn
from balancer.text.quantities import counted, percent, size

if TYPE_CHECKING:
    from balancer.config.schema import Config, PlanningConfig

Assumed = TypeVar("Assumed", float, float | None)

RATE_KEY = "planning.cost_per_generator_hour"
UNKNOWN_PACE = "unknown until measured; set planning.seconds_per_candidate for an estimate"
UNKNOWN_RATE = f"set {RATE_KEY} for an estimate"

HIGH_BELOW = Fraction(6, 10)
"""A class with less than this fraction of its target has high priority."""


class Priority(enum.StrEnum):
    """How much a class lacks; one without any image is critical. Of classes that are filled to the same share
    of what they lack, the one of higher priority comes first (`balancer.scheduling.order`)."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"


@dataclass(frozen=True, slots=True)
class CellQuota:
    cell: Cell
    quota: int
    priority: Priority

    def as_dict(self, facets: Iterable[str]) -> dict[str, str | int | None]:
        """For JSON: class, each of `facets` (None if it does not apply), quota and priority."""
        values = {facet: self.cell.value(facet) for facet in facets}
        priority = self.priority.value
        return {"class": self.cell.class_name, **values, "quota": self.quota, "priority": priority}


RealFacets = Mapping[str, Sequence[Mapping[str, str]]]
"""For each class, the known facet values of its real images."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`cells` are the cells that lack images, by priority and then as in the config. By class: `counts` are
    the real images, `targets` the wanted total, `held_back` the images that `target.max_synthetic_share`
    forbids to generate."""

    cells: tuple[CellQuota, ...]
    counts: Mapping[str, int]
    targets: Mapping[str, int]
    held_back: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(wanted.quota for wanted in self.cells)

    def in_turn(self) -> list[CellQuota]:
        """The cells in the order in which a run begins them."""
        ranks = {priority: rank for rank, priority in enumerate(Priority)}
        with gc_paused():
            quotas = [(wanted.cell, wanted.quota, ranks[wanted.priority]) for wanted in self.cells]
            return [self.cells[place] for place in cells_in_turn(quotas)]


@gc_paused()
def make_plan(config: Config, counts: Mapping[str, int], real_facets: RealFacets | None = None) -> Plan:
    """Plan from the images per class in `counts`; a missing class has none.

    `real_facets` credits the facet values of real images (`target.count_real_facets`).
    """
    have = {name: counts.get(name, 0) for name in config.classes}
    targets = compute_targets(config.target, have)
    lacking = {name: max(0, targets[name] - count) for name, count in have.items()}
    deficits = {name: _allowed(lacking[name], have[name], config) for name in have}
    facets = config.facet_axes()
    quotas = round_quotas(deficits, facets, _shares_lacking(deficits, facets, real_facets or {}))
    lacking_cells: dict[str, list[tuple[Cell, int]]] = {name: [] for name in have}
    for cell, quota in quotas.items():  # of each class, in the order of `enumerate_cells`
        if quota > 0:
            lacking_cells[cell.class_name].append((cell, quota))
    priorities = {name: _priority(count, targets[name]) for name, count in have.items()}
    wanted = [
        CellQuota(cell, quota, priority)
        for priority in Priority
        for name, cells in lacking_cells.items()
        if priorities[name] is priority
        for cell, quota in cells
    ]
    held_back = {name: lacking[name] - deficits[name] for name in have if lacking[name] > deficits[name]}
    return Plan(tuple(wanted), have, targets, held_back)


def held_back(plan: Plan) -> list[str]:
    """A line for each class that `target.max_synthetic_share` keeps below its target."""
    return below_target(plan.targets, plan.held_back)


def below_target(targets: Mapping[str, int], lacking: Mapping[str, int]) -> list[str]:
    return [
        f"{name} reaches {targets[name] - count} of {counted(targets[name], 'image')}:"
        " target.max_synthetic_share allows no more generated ones"
        for name, count in lacking.items()
    ]


def _allowed(lacking: int, count: int, config: Config) -> int:
    most = max_generated(config.target, count)
    return lacking if most is None else min(lacking, most)


def _shares_lacking(
    deficits: Mapping[str, int], facets: Sequence[Facet], real_facets: RealFacets
) -> dict[tuple[str, str], tuple[Fraction, ...]]:
    """Shares of the images to generate, by class and facet, after crediting the values of real images."""
    shares = {}
    for name, images in real_facets.items():
        for facet in facets:
            there = Counter(values.get(facet.name) for values in images)
            present = tuple(there[value] for value in facet.values)
            if facet.applies_to(name) and deficits[name] and any(present):
                wanted = values_to_add(deficits[name], facet.shares, present)
                shares[name, facet.name] = tuple(number / deficits[name] for number in wanted)
    return shares


def _priority(count: int, target: int) -> Priority:
    if count == 0:
        return Priority.CRITICAL
    return Priority.HIGH if count < HIGH_BELOW * target else Priority.MEDIUM


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a run that replace the config's assumptions; `source` names it in the basis.

    `by_attempt` has one tally per attempt, in order. `seconds_per_candidate` is the time of one generator.
    """

    source: str
    acceptance: float | None = None
    seconds_per_candidate: float | None = None
    bytes_per_image: float | None = None
    by_attempt: tuple[Tally, ...] = ()


@dataclass(frozen=True, slots=True)
class PerImage:
    """Cost of one accepted image, including its rejected candidates; None if unknown.

    `seconds_per_image` is the time of one generator. Each basis explains its figure in words.
    """

    candidates_per_image: float | None
    candidates_per_image_basis: str
    seconds_per_image: float | None
    seconds_per_image_basis: str
    cost_per_image: float | None
    cost_per_image_basis: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a plan, and how many of its images a run is expected not to get. Each basis explains
    its figure in words."""

    candidates: int
    candidates_basis: str
    missing: int
    missing_basis: str
    hours: float | None
    hours_basis: str
    cost: float | None
    cost_basis: str
    bytes: int
    bytes_basis: str
    per_image: PerImage

    def as_dict(self) -> dict[str, float | str | None]:
        """For JSON: all figures with their bases, flat."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "per_image"}
        return own | asdict(self.per_image)


def estimate(
    plan: Plan, config: Config, measured: Measured | None = None, *, real_bytes: int = 0
) -> Estimate:
    """`real_bytes` is the size of the real images; it counts if they are copied into the run folder."""
    measured = measured or Measured("")
    candidates, candidates_basis = _candidates(plan, config, measured)
    missing, missing_basis = _missing(plan, config, measured)
    hours, hours_basis = _hours(candidates, config, measured)
    cost, cost_basis = _cost(candidates, config, measured)
    size, size_basis = _size(plan, config, measured, real_bytes)
    return Estimate(
        candidates=candidates,
        candidates_basis=candidates_basis,
        missing=missing,
        missing_basis=missing_basis,
        hours=hours,
        hours_basis=hours_basis,
        cost=cost,
        cost_basis=cost_basis,
        bytes=size,
        bytes_basis=size_basis,
        per_image=per_image(config.planning, measured),
    )


def per_image(planning: PlanningConfig, measured: Measured) -> PerImage:
    """Cost of one accepted image, as measured or else as assumed."""
    acceptance, source = _acceptance(planning, measured)
    # Independent of the number of attempts: slots that end short take candidates, too.
    candidates = 1 / acceptance if acceptance else None
    passing = f"{_acceptance_text(acceptance)} of candidates pass" if acceptance else "none passed"
    basis = f"{passing} ({source})"
    seconds, pace = _seconds(planning, measured)
    if seconds is None:
        return PerImage(candidates, basis, None, UNKNOWN_PACE, None, UNKNOWN_PACE)
    if candidates is None:
        return PerImage(None, basis, None, basis, None, basis)
    seconds_basis = f"{candidates:.3g} candidates of {seconds:.3g} s each ({pace}) on one generator"
    rate = planning.cost_per_generator_hour
    cost = None if rate is None else candidates * seconds * rate / 3600
    cost_basis = UNKNOWN_RATE if rate is None else f"{seconds_basis} at {rate:g} an hour ({RATE_KEY})"
    return PerImage(candidates, basis, candidates * seconds, seconds_basis, cost, cost_basis)


def expected_attempts(passes: Iterable[float]) -> float:
    """Average attempts per slot, given the probability that each attempt passes once it is made."""
    expected, made = 0.0, 1.0
    for chance in passes:
        expected += made
        made *= 1 - chance
    return expected


def _candidates(plan: Plan, config: Config, measured: Measured) -> tuple[int, str]:
    passes, source = _passes(config, measured)
    expected = math.ceil(round(plan.total * expected_attempts(passes), 6))  # 1.0000000001 image is one
    acceptance = _acceptance_text(_acceptance(config.planning, measured)[0])
    passing = f"{acceptance} of candidates pass ({source})"
    basis = f"{counted(plan.total, 'image')}, {passing}, up to {counted(len(passes), 'attempt')}"
    limit = config.budget.max_candidates
    if limit is not None and limit < expected:
        return limit, f"{basis}; held at {limit} by budget.max_candidates"
    return expected, basis


def _passes(config: Config, measured: Measured) -> tuple[list[float], str]:
    """The probability that each attempt passes once it is made, and what says so."""
    attempts = config.attempts.max + (config.attempts.fallback is not None)
    acceptance, source = _acceptance(config.planning, measured)
    # Attempts differ, so each has its own rate; a rare attempt leans on the overall rate.
    seen = [(tally.accepted, tally.candidates) for tally in measured.by_attempt[:attempts]]
    seen += [(0, 0)] * (attempts - len(seen))
    return [(accepted + acceptance) / (candidates + 1) for accepted, candidates in seen], source


def _missing(plan: Plan, config: Config, measured: Measured) -> tuple[int, str]:
    """The images that are expected to be missing at the end: their slots fail every attempt, or are not begun
    within the budget."""
    passes, source = _passes(config, measured)
    failing = math.prod(1 - chance for chance in passes)
    rates = " and ".join(_acceptance_text(rate) for rate in dict.fromkeys([max(passes), min(passes)]))
    basis = (
        f"{percent(failing, 1, 1)} of slots fail all {counted(len(passes), 'attempt')}, which pass at"
        f" {'between ' if len(set(passes)) > 1 else ''}{rates} ({source}), if all cells pass alike"
    )
    begun = float(plan.total)
    candidates, budget = _allowed_candidates(config, measured)
    if candidates / expected_attempts(passes) < begun:
        begun = candidates / expected_attempts(passes)
        share = percent(begun * (1 - failing), plan.total)
        basis += (
            f"; {budget} allows for {candidates:.0f} candidates: each class gets {share} of what it lacks"
        )
    return plan.total - round(begun * (1 - failing)), basis


def _allowed_candidates(config: Config, measured: Measured) -> tuple[float, str]:
    """How many candidates the budget allows, and which setting says so. Hours count if it is known what is
    made in them."""
    seconds, generators = _seconds(config.planning, measured)[0], config.actors.generators
    limits = [(math.inf, ""), (config.budget.max_candidates or math.inf, "budget.max_candidates")]
    if config.budget.max_hours is not None and seconds is not None and generators != "auto":
        limits.append((config.budget.max_hours * 3600 * generators / seconds, "budget.max_hours"))
    return min(limits)


def _hours(candidates: int, config: Config, measured: Measured) -> tuple[float | None, str]:
    seconds, source = _seconds(config.planning, measured)
    if seconds is None:
        return None, UNKNOWN_PACE
    given = config.actors.generators
    generators = 1 if given == "auto" else given
    number = (
        "for one generator (actors.generators: auto starts one per GPU or CPU core, which share the time)"
        if given == "auto"
        else f"{counted(given, 'generator')} (actors.generators)"
    )
    basis = f"{counted(candidates, 'candidate')} of {seconds:.3g} s each ({source}), {number}"
    hours = candidates * seconds / generators / 3600
    limit = config.budget.max_hours
    if limit is not None and limit < hours:
        return limit, f"{basis}; held at {limit:g} h by budget.max_hours"
    return hours, basis


def _cost(candidates: int, config: Config, measured: Measured) -> tuple[float | None, str]:
    seconds, source = _seconds(config.planning, measured)
    rate = config.planning.cost_per_generator_hour
    if seconds is None or rate is None:
        return None, UNKNOWN_PACE if seconds is None else UNKNOWN_RATE
    hours = candidates * seconds / 3600
    limit, generators = config.budget.max_hours, config.actors.generators
    if limit is not None and generators != "auto":  # the number of generators matters only at the limit
        hours = min(hours, limit * generators)
    return hours * rate, f"{hours:.3g} hours of one generator ({source}) at {rate:g} each ({RATE_KEY})"


def _size(plan: Plan, config: Config, measured: Measured, real_bytes: int) -> tuple[int, str]:
    raw = config.generation.width * config.generation.height * 3
    each, source = _figure(
        measured.bytes_per_image, config.planning.bytes_per_image, "planning.bytes_per_image", measured.source
    )
    if each is None:
        each, source = 0.6 * raw, "60 % of raw pixels; planning.bytes_per_image"
    basis = f"{counted(plan.total, 'image')} of {size(each)} ({source})"
    copied = real_bytes if config.output.real_images == "copy" else 0
    if copied:
        basis += f" and {size(copied)} of real images (output.real_images: copy)"
    return round(plan.total * each) + copied, basis


def _acceptance(planning: PlanningConfig, measured: Measured) -> tuple[float, str]:
    return _figure(measured.acceptance, planning.acceptance, "planning.acceptance", measured.source)


def _acceptance_text(acceptance: float) -> str:
    return f"{100 * acceptance:.3g}%" if 100 * acceptance < 99.95 else percent(acceptance, 1, 1)


def _seconds(planning: PlanningConfig, measured: Measured) -> tuple[float | None, str]:
    key = "planning.seconds_per_candidate"
    return _figure(measured.seconds_per_candidate, planning.seconds_per_candidate, key, measured.source)


def _figure(measured: float | None, assumed: Assumed, key: str, source: str) -> tuple[float | Assumed, str]:
    return (assumed, key) if measured is None else (measured, f"measured by {source}")
