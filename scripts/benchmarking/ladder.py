"""Savings by strengthening and learning: candidates per accepted image, with simulated actors whose
acceptance of every wording is known."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from actors.run import run
from actors.specs import SimulatedVerifierSpec, Workers
from balancer.config.schema import Config
from benchmarking.record import keep_option, save

PASS_RATES = (0.15, 0.35, 0.75)
"""Of the three wordings of every class."""

STRENGTHENED_GAIN = 0.2
"""By which a request passes more often when it strengthens the property that was too weak."""

MODES: Mapping[str, Mapping[str, Any]] = {
    "next wording at each attempt": {},
    "and the weakest property strengthened": {"rungs": [{}, {"strengthen": True}]},
    "adaptive: wordings that pass most often": {"adaptive": True},
    "adaptive, and strengthened": {"adaptive": True, "rungs": [{}, {"strengthen": True}]},
}
ATTEMPTS = 20
CLASSES, VALUES, IMAGES = 4, 2, 100


@click.command("ladder")
@keep_option
@click.option("--repeats", default=5, show_default=True, help="Runs of each mode, with seeds of their own.")
def command(repeats: int) -> None:
    """Compare the plain ladder with strengthening and with adaptive wordings, on real Ray."""
    modes = {mode: [_measure(settings, seed) for seed in range(repeats)] for mode, settings in MODES.items()}
    plain = statistics.mean(modes[next(iter(MODES))])
    save(
        "ladder",
        {
            "pass_rates": PASS_RATES,
            "strengthened_gain": STRENGTHENED_GAIN,
            "images": CLASSES * IMAGES,
            "cells": CLASSES * VALUES,
            "repeats": repeats,
            "modes": [
                {
                    "mode": mode,
                    "candidates_per_image": round(statistics.mean(ratios), 3),
                    "lowest": round(min(ratios), 3),
                    "highest": round(max(ratios), 3),
                    "of_plain": round(statistics.mean(ratios) / plain, 3),
                }
                for mode, ratios in modes.items()
            ],
        },
    )


def _let_wordings_pass(usual: Workers) -> Workers:
    assert isinstance(usual.verifier, SimulatedVerifierSpec)
    rates = dict(enumerate(PASS_RATES))
    verifier = dataclasses.replace(usual.verifier, pass_rates=rates, strengthened_gain=STRENGTHENED_GAIN)
    return dataclasses.replace(usual, verifier=verifier)


def _measure(attempts: Mapping[str, Any], seed: int) -> float:
    """Candidates per accepted image of one run, in which every image is accepted in the end."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        (dataset / "class0").mkdir(parents=True)
        config = _config(attempts, seed, dataset)
        result = run(config, Path(folder) / "run", change_workers=_let_wordings_pass)
    if result.accepted != CLASSES * IMAGES:
        raise click.ClickException(f"{result.short} slots ended short: raise ATTEMPTS")
    return result.candidates / result.accepted


def _config(attempts: Mapping[str, Any], seed: int, dataset: Path) -> Config:
    wordings = [f"wording {number}" for number in range(len(PASS_RATES))]
    return Config.model_validate(
        {
            "seed": seed,
            "dataset": {"path": str(dataset)},
            "classes": {f"class{number}": {"prompts": wordings} for number in range(CLASSES)},
            "facets": {
                "light": {
                    "values": {f"light{number}": {"prompts": ["so", "or so"]} for number in range(VALUES)}
                }
            },
            "target": {"per_class": IMAGES},
            "generation": {"width": 64, "height": 64, "batch_size": 4},
            "actors": {"kind": "simulated", "generators": 2},
            "attempts": {"max": ATTEMPTS, "give_up_below": 0, **attempts},
        }
    )
