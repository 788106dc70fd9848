"""Measure how often the diversity alarm fires on constructed collapses, and on none.

Prints one JSON object; `--keep` replaces `benchmarks/diversity.json` by it. A class has 12 modes in 256
dimensions, whose variances fall as they do in embeddings; six classes share a run, and each has 200 generated
images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from balancer.evaluation.diversity import Diversity, Embeddings, Pictures, measure_diversity
from benchmarking.record import keep_option, save

DIMENSIONS, MODES, CLASSES, GENERATED = 256, 12, 6, 200
REAL = (20, 50)


@dataclass(frozen=True, slots=True)
class Geometry:
    """`decay` is the exponent of the variances: 0 for equal ones. `modes`, `common` and `apart` are the
    deviations of modes, of what all classes have in common, and of classes, each in those within a mode."""

    decay: float
    modes: float
    common: float
    apart: float
    shift: float


EMBEDDINGS = Geometry(decay=1.5, modes=0.55, common=1.0, apart=0.5, shift=0.7)
"""Here each measure alone has, at 5 % false alarms, about the power that is known of it."""

EQUAL = Geometry(decay=0.0, modes=0.3, common=1.0, apart=0.5, shift=0.3)
"""All directions alike, where neighbours are far apart and recall is low without any collapse."""

COLLAPSES: dict[str, dict[str, Any]] = {
    "none": {},
    "half_the_spread": {"spread": 0.5},
    "3_of_12_modes": {"modes": 3},
    "6_of_12_modes": {"modes": 6},
    "shifted": {"shifted": True},
}


GEOMETRIES = {
    "as_embeddings": (EMBEDDINGS, [*COLLAPSES]),
    "equal_variances": (EQUAL, ["none", "3_of_12_modes"]),
}
"""And the collapses that are tried in each."""


@click.command()
@keep_option
@click.option(
    "--runs", default=20, show_default=True, help="Of six classes each; half as many of equal ones."
)
def main(runs: int) -> None:
    number = {"as_embeddings": runs, "equal_variances": runs // 2}
    figures = {
        name: {
            collapse: {str(real): measure_alarm(geometry, collapse, real, number[name]) for real in REAL}
            for collapse in collapses
        }
        for name, (geometry, collapses) in GEOMETRIES.items()
    }
    save_figures(number, figures)


def save_figures(number: dict[str, int], figures: dict[str, Any]) -> None:
    settings = {"generated": GENERATED, "classes": CLASSES, "runs": number, "modes": MODES}
    save("diversity", {**settings, "dimensions": DIMENSIONS, "fired": figures})


def measure_alarm(geometry: Geometry, collapse: str, real: int, runs: int) -> dict[str, float]:
    """The share of classes with an alarm, and with a red one."""
    levels: Counter[str] = Counter()
    for seed in range(runs):
        levels.update(each.level for each in alarms(geometry, collapse, real, seed))
    total = levels.total()
    return {"alarm": round(1 - levels["green"] / total, 4), "red": round(levels["red"] / total, 4)}


def alarms(geometry: Geometry, collapse: str, real: int, seed: int) -> list[Diversity]:
    """What is said of each class of one run."""
    rng = np.random.default_rng(seed)
    deviations = np.arange(1, DIMENSIONS + 1) ** (-geometry.decay / 2)
    deviations /= np.sqrt((deviations**2).mean())
    common = geometry.common * rng.standard_normal(DIMENSIONS)

    def draw(of: int, spread: float = 1.0, modes: int = MODES, shifted: bool = False) -> Embeddings:
        within = rng.standard_normal((of, DIMENSIONS)) * deviations
        drawn: Embeddings = spread * (centres[rng.integers(0, modes, of)] + within) + place
        return drawn + shift if shifted else drawn

    classes = {}
    for name in map(str, range(CLASSES)):
        centres = geometry.modes * rng.standard_normal((MODES, DIMENSIONS)) * deviations
        place = common + geometry.apart * rng.standard_normal(DIMENSIONS) * deviations
        shift = geometry.shift * rng.standard_normal(DIMENSIONS) * deviations
        classes[name] = Pictures(draw(real), draw(GENERATED, **COLLAPSES[collapse]))
    return [*measure_diversity(classes).values()]


if __name__ == "__main__":
    main()
