"""Is the gate of `balancer evaluate` right? Scenarios with a known answer, on Fashion-MNIST (MIT licence).

Every repetition draws a long-tailed subset of the training images, adds images to it, and lets the gate
decide with a draw of the official test images. The true gain of a trial is the difference of the same two
arms, of the same trainings, on all 10,000 official test images.

A repetition is written to the work folder as it ends. The same command goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.stats import binomtest

from actors.evaluation import evaluate
from actors.evaluation.recipe import Recipe, recipe_of
from actors.evaluation.training import prepare
from balancer.config.evaluation import EncoderConfig, EvaluationConfig
from benchmarking import gate_scenarios as scenarios
from benchmarking.gate_images import (
    COPY_LIGHT,
    COPY_NOISE,
    DIMENSIONS,
    DRAWN_FROM,
    ENCODER_IMAGES,
    Images,
    fashion,
)
from benchmarking.gate_scenarios import Add
from benchmarking.gate_trial import HeldOut, Trial
from benchmarking.record import RESULTS, keep_option, save
from measure_heads import FASHION

VERSION = 1
"""Of what a repetition measures: results of another version are not gone on with."""

WORK = RESULTS.parent / "build" / "gate"

IMBALANCES = (100, 10)
FEWEST = 7
"""Images of the rarest class: too few for a curve over their number, which would take most of the time."""

FILLED = 180
"""Images that a class is filled up to: there are about as many of each digit."""

HELD_OUT = 100
"""Official test images a class that the gate is given: a quarter choose, the others test."""

STEPS = 100

POISONED = "one_poisoned"

SCENARIOS: dict[str, Add] = {
    "held_back": scenarios.held_back(1.0),
    "held_back_few": scenarios.held_back(0.1),
    "wrong_labels": scenarios.wrong_labels,
    "confused_labels": scenarios.confused_labels,
    "near_copies": scenarios.near_copies,
    "something_else": scenarios.something_else,
    "nothing": scenarios.nothing,
    POISONED: scenarios.one_poisoned,
}

POWER_AT, POWER_WITHIN = 0.05, 0.01
"""Power is of trials with real images whose true gain is as near to five points."""

LOSSES = (5, 10)
"""Points of recall by which repetitions with a poisoned class are told apart."""

REAL_ONES = ("held_back", "held_back_few")

Result = dict[str, Any]


@click.command("gate")
@keep_option
@click.option("--fashion", "folder", type=click.Path(path_type=Path), default=FASHION, show_default=True)
@click.option("--repetitions", default=40, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=WORK, help="Keeps what has ended.")
def command(folder: Path, repetitions: int, work: Path) -> None:
    """Trials of the gate: what it decides, where the answer is known."""
    settings = EvaluationConfig(encoder=EncoderConfig(model="principal components"), steps=STEPS)
    work.mkdir(parents=True, exist_ok=True)
    images = fashion(folder, work)
    recipe = recipe_of(settings, images.classes, None)
    prepare(recipe)
    results = measure(images, settings, recipe, repetitions, work, lambda line: click.echo(line, err=True))
    save(
        "gate",
        {"settings": _shown(settings), "repetitions": repetitions, **figures(results, settings.margin)},
    )


def measure(
    images: Images,
    settings: EvaluationConfig,
    recipe: Recipe,
    repetitions: int,
    work: Path,
    report: Callable[[str], None] = lambda line: None,
    chosen: Mapping[str, Add] = SCENARIOS,
    imbalances: Sequence[int] = IMBALANCES,
) -> dict[int, list[Result]]:
    """By imbalance, what each repetition gave in each scenario."""
    key = hashlib.sha256(
        json.dumps([VERSION, evaluate.VERSION, _shown(settings), [*chosen]]).encode()
    ).hexdigest()[:12]
    results: dict[int, list[Result]] = {imbalance: [] for imbalance in imbalances}
    for repetition in range(repetitions):
        for imbalance in imbalances:
            kept = work / key / f"{imbalance}-{repetition}.json"
            if not kept.exists():
                began = time.process_time()
                result = _repeat(images, settings, recipe, imbalance, repetition, chosen)
                result["cpu_s"] = round(time.process_time() - began, 1)
                kept.parent.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(".part")
                part.write_text(json.dumps(result))
                part.rename(kept)
                said = ", ".join(f"{name} {result['trials'][name]['decision']}" for name in chosen)
                report(f"imbalance {imbalance}, repetition {repetition + 1}: {said} ({result['cpu_s']} s)")
            results[imbalance].append(json.loads(kept.read_text()))
    return results


def _repeat(
    images: Images,
    settings: EvaluationConfig,
    recipe: Recipe,
    imbalance: int,
    repetition: int,
    chosen: Mapping[str, Add],
) -> Result:
    random = np.random.default_rng([imbalance, repetition])
    own = scenarios.subset(images, FEWEST, imbalance, FILLED, random)
    held_out = HeldOut.drawn(images.test_labels, HELD_OUT, random)
    trial = Trial(images, own, held_out, settings, recipe)
    trials = {
        name: trial.run(
            add(images, own, np.random.default_rng([imbalance, repetition, 1])), many=name == POISONED
        )
        for name, add in chosen.items()
    }
    return {"poisoned": images.classes[own.poisoned], "trials": trials}


def _shown(settings: EvaluationConfig) -> dict[str, Any]:
    return {
        "seeds": settings.seeds,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "real_shares": settings.real_shares,
        "margin": settings.margin,
        "fewest": FEWEST,
        "filled": FILLED,
        "held_out": HELD_OUT,
        "encoder_images": ENCODER_IMAGES,
        "dimensions": DIMENSIONS,
        "drawn_from": DRAWN_FROM,
        "wrong": scenarios.WRONG,
        "copy_noise": COPY_NOISE,
        "copy_light": COPY_LIGHT,
    }


# ---- what the page shows -----------------------------------------------------------------------


def figures(results: Mapping[int, Sequence[Result]], margin: float) -> dict[str, Any]:
    trials = [
        (name, trial)
        for each in results.values()
        for result in each
        for name, trial in result["trials"].items()
    ]
    near = [
        trial
        for name, trial in trials
        if name in REAL_ONES and abs(trial["true_gain"] - POWER_AT) <= POWER_WITHIN
    ]
    return {
        "cpu_minutes": round(sum(result["cpu_s"] for each in results.values() for result in each) / 60, 1),
        "imbalances": {str(imbalance): _imbalance(each, margin) for imbalance, each in results.items()},
        "false_add": {
            "nothing": _adds([trial for name, trial in trials if name == "nothing"]),
            "no_gain": _adds([trial for _, trial in trials if trial["true_gain"] <= 0]),
            "below_margin": _adds([trial for _, trial in trials if trial["true_gain"] < margin]),
        },
        "power": {
            "within": [POWER_AT - POWER_WITHIN, POWER_AT + POWER_WITHIN],
            **_adds(near),
            **_gains(near),
        },
        "power_curve": _curve([trial for name, trial in trials if name in REAL_ONES]),
    }


def _imbalance(results: Sequence[Result], margin: float) -> dict[str, Any]:
    names = results[0]["trials"]
    return {
        "baselines": dict(
            Counter(result["trials"][next(iter(names))]["baseline"] for result in results).most_common()
        ),
        "scenarios": {
            name: _scenario([result["trials"][name] for result in results], margin) for name in names
        },
        **({"poisoned": _poisoned(results)} if POISONED in names else {}),
    }


def _scenario(trials: Sequence[Result], margin: float) -> dict[str, Any]:
    decided = Counter(trial["decision"] for trial in trials)
    inside = [
        trial["difference"]["low"] <= trial["true_gain"] <= trial["difference"]["high"] for trial in trials
    ]
    return {
        "repetitions": len(trials),
        "decisions": {name: decided[name] for name in ("add", "do_not_add", "cannot_tell")},
        **_gains(trials),
        "wrong": {
            "add": sum(trial["decision"] == "add" and trial["true_gain"] <= 0 for trial in trials),
            "do_not_add": sum(
                trial["decision"] == "do_not_add" and trial["true_gain"] >= margin for trial in trials
            ),
        },
        "reaches_margin": _adds([trial for trial in trials if trial["true_gain"] >= margin]),
        "true_gain_inside_interval": round(float(np.mean(inside)), 4),
    }


def _gains(trials: Sequence[Result]) -> dict[str, float]:
    """In points, of all official test images."""
    gains = 100 * np.array([trial["true_gain"] for trial in trials])
    if not len(gains):
        return {}
    return {
        "true_gain": round(float(gains.mean()), 2),
        "true_gain_deviation": round(float(gains.std(ddof=1)) if len(gains) > 1 else 0.0, 2),
    }


def _adds(trials: Sequence[Result]) -> dict[str, Any]:
    """How many are `add`, with the exact 95 % interval of the share (Clopper-Pearson)."""
    added = sum(trial["decision"] == "add" for trial in trials)
    if not trials:
        return {"trials": 0, "add": 0}
    bounds = binomtest(added, len(trials)).proportion_ci()
    return {
        "trials": len(trials),
        "add": added,
        "share": round(added / len(trials), 4),
        "low": round(float(bounds.low), 4),
        "high": round(float(bounds.high), 4),
    }


def _curve(trials: Sequence[Result]) -> list[dict[str, Any]]:
    """Shares of `add` by the true gain, in steps of two points."""
    by_step: dict[int, list[Result]] = {}
    for trial in trials:
        by_step.setdefault(int(np.floor(50 * trial["true_gain"])), []).append(trial)
    return [{"from": 2 * step, "to": 2 * step + 2, **_adds(each)} for step, each in sorted(by_step.items())]


def _poisoned(results: Sequence[Result]) -> dict[str, Any]:
    """How often the poisoned class was named as harmed, in all and by what its recall truly lost."""
    losses = [
        -100 * result["trials"][POISONED]["true_gain_of_classes"][result["poisoned"]] for result in results
    ]
    steps = itertools.pairwise((-np.inf, *LOSSES, np.inf))
    left_out = [
        result["poisoned"] in result["trials"][POISONED]["recommended"]["classes"] for result in results
    ]
    return {
        "loss": round(float(np.mean(losses)), 2),
        "left_out": sum(left_out),
        **_named(results),
        "losses": LOSSES,
        "by_loss": [
            _named([result for result, loss in zip(results, losses, strict=True) if least <= loss < most])
            for least, most in steps
        ],
    }


def _named(results: Sequence[Result]) -> dict[str, Any]:
    """With the test images that the gate is given, and with all official ones."""
    found: dict[str, Any] = {"repetitions": len(results)}
    for size, verdicts in (("held_out", "classes"), ("all_test_images", "classes_with_many")):
        harmed = [
            {name for name, said in result["trials"][POISONED][verdicts].items() if said == "harm"}
            for result in results
        ]
        own = [result["poisoned"] for result in results]
        found[size] = {
            "named": sum(one in names for one, names in zip(own, harmed, strict=True)),
            "another": sum(bool(names - {one}) for one, names in zip(own, harmed, strict=True)),
        }
    return found
