"""Measure the calibration of the embedded verifier's probabilities, before and after fitting.

Temperatures are fitted on the labelled images of a config, as by `balancer calibrate`; the expected
calibration error is measured on renders that neither training nor calibration saw. Prints one JSON object,
whose figures are in the model card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from actors.models.verifier import Verifier
from actors.real_images import collect_examples, measure_here
from actors.specs import verifier_spec
from balancer.cells import Cell
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.verification.calibration import (
    Examples,
    calibrated,
    calibration_error,
    fit_property,
    reliability,
)
from balancer.verification.verdict import ImageFlags
from embedded_training import data
from embedded_training.data import CELLS, Renders

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
RENDERS_PER_CELL = 64
BURNT_RENDERS_PER_CELL = 168
BURNT_CELLS = tuple(cell for cell in CELLS if cell.burn_level is not None)


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=DEMO, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(config_path: Path, threads: int) -> None:
    """Expected calibration error per property on more than 2,000 fresh renders each."""
    torch.set_num_threads(threads)
    config = load_config(config_path)
    labelled = collect_examples(measure_here(config, audit_dataset(config), audit_holdout(config)), config)
    every = data.render_set(data.MEASUREMENT_SEEDS, RENDERS_PER_CELL * len(CELLS))
    burnt = data.render_set(
        data.MEASUREMENT_SEEDS + len(every.pictures), BURNT_RENDERS_PER_CELL * len(BURNT_CELLS), BURNT_CELLS
    )
    verifier = verifier_spec(config).load()
    fresh = {
        name: _examples(verifier, burnt if name == "burn_level" else every, name, config) for name in labelled
    }
    figures = {name: _errors(labelled[name], fresh[name], config) for name in labelled}
    click.echo(json.dumps(figures, indent=2))


def _examples(verifier: Verifier, renders: Renders, name: str, config: Config) -> Examples:
    cells = [_cell(renders, index) for index in range(len(renders.pictures))]
    measurements = verifier.measure(renders.pictures, [ImageFlags()] * len(cells), cells)
    values = tuple(config.properties()[name])
    probabilities = np.array([[*one.probabilities[name].values()] for one in measurements])
    labels = np.array([values.index(dict(cell.properties)[name]) for cell in cells])
    return Examples(values, np.log(np.maximum(probabilities, 1e-300)), labels)


def _cell(renders: Renders, index: int) -> Cell:
    drawn = renders.cell(index)
    facets = [("lighting", drawn.lighting), ("burn_level", drawn.burn_level)]
    return Cell(drawn.class_name, tuple((name, value) for name, value in facets if value is not None))


def _errors(labelled: Examples, fresh: Examples, config: Config) -> dict[str, Any]:
    fitted = fit_property(labelled, config.verification.min_examples)
    return {
        "labelled": len(labelled.labels),
        "temperature": round(fitted.temperature, 4),
        "renders": len(fresh.labels),
        "top_1": round(float((fresh.log_probabilities.argmax(axis=1) == fresh.labels).mean()), 4),
        "error_before": _error(fresh, 1.0),
        "error_after": _error(fresh, fitted.temperature),
    }


def _error(fresh: Examples, temperature: float) -> float:
    return round(
        calibration_error(reliability(calibrated(fresh.log_probabilities, temperature), fresh.labels)), 4
    )


if __name__ == "__main__":
    main()
