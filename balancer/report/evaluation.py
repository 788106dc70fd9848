"""The evaluation in a report: its decision, the arms with their intervals as a picture, and each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.errors import ManifestError
from balancer.evaluation.files import Estimate, Outcome, read_outcome
from balancer.evaluation.sentence import class_needs
from balancer.evaluation.staleness import staleness

if TYPE_CHECKING:
    from balancer.manifest.query.rows import ManifestRows
    from balancer.storage import Storage

WIDTH, MARGIN = 300.0, 6.0
"""Of a picture of intervals, in its own units."""


@dataclass(frozen=True, slots=True)
class Line:
    """An interval as a picture has it: `low`, `mean` and `high` are places on its axis."""

    name: str
    low: float
    mean: float
    high: float
    text: str
    verdict: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`zero` is the place of no difference on the axis of the classes, and `stale` says so if the run has
    changed since."""

    outcome: Outcome
    stale: str
    arms: tuple[Line, ...]
    classes: tuple[Line, ...]
    zero: float


def read_evaluation(storage: Storage, manifest: ManifestRows) -> tuple[Evaluated | None, str]:
    """What a report shows; or None, and what is wrong if the outcome is damaged."""
    try:
        outcome = read_outcome(storage)
    except ManifestError as error:
        return None, f"{error.message} ({error.hint})"
    if outcome is None:
        return None, ""
    low, high = _range(outcome.arms)
    arms = [
        _line(name, each, low, high, f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})")
        for name, each in outcome.arms.items()
    ]
    classes, zero = _classes(outcome)
    return Evaluated(outcome, staleness(outcome, manifest), tuple(arms), classes, zero), ""


def _range(estimates: Mapping[str, Estimate]) -> tuple[float, float]:
    low, high = min(each.low for each in estimates.values()), max(each.high for each in estimates.values())
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def _line(
    name: str, each: Estimate, low: float, high: float, text: str, verdict: str = "", detail: str = ""
) -> Line:
    def place(value: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low), 2)

    return Line(name, place(each.low), place(each.mean), place(each.high), text, verdict, detail)


def _classes(outcome: Outcome) -> tuple[tuple[Line, ...], float]:
    """Differences of recall in points; a class without one has no interval."""
    told = {
        name: Estimate(mean=each.difference, low=each.low, high=each.high)
        for name, each in outcome.classes.items()
        if each.difference is not None and each.low is not None and each.high is not None
    }
    nothing = Estimate(mean=0, low=0, high=0)
    low, high = _range({**told, "": nothing})
    lines = []
    for name, each in outcome.classes.items():
        images = f"{each.test_images} test images"
        if needs := class_needs(each.needed, each.needed_seeds, each.needed_together):
            images += f", needs {needs}"
        verdict = each.decision.replace("_", " ")
        if (found := told.get(name)) is None:
            lines.append(Line(name, 0, 0, 0, "", verdict, images))
            continue
        text = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
        lines.append(_line(name, found, low, high, text, verdict, images))
    return tuple(lines), _line("", nothing, low, high, "").mean
