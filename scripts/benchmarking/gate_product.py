"""The whole product on a long-tailed subset of Fashion-MNIST (MIT licence), before the gate.

`balancer run` fills the rarer classes of the subset with images of a small pipeline of SDXL's architecture,
judged by the embedded verifier with heads; then the gate decides about what was accepted, as it does in its
other scenarios, and so does `balancer evaluate`. Two pipelines: one trained on clothes that the subset does
not have, a stand-in for what a pretrained model knows; and one trained on the subset alone, which can know
nothing new.

Pipelines, runs and figures are kept in the work folder: the same command goes on with what is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

import balancer
from actors.evaluation.evaluate import CHANGED_COPIES, evaluate
from actors.evaluation.recipe import recipe_of
from actors.evaluation.training import prepare
from actors.run import Reporter
from balancer.config.evaluation import EncoderConfig, EvaluationConfig
from balancer.config.load import load_config
from balancer.dataset.sample import Picture
from benchmarking import gate, gate_pipeline
from benchmarking.gate_images import DRAWN_FROM, ENCODER_IMAGES, Images, Principal, fashion
from benchmarking.gate_pipeline import SIDE, enlarged, train_pipeline
from benchmarking.gate_scenarios import Added, Subset, subset
from benchmarking.gate_trial import HeldOut, Trial
from benchmarking.record import keep_option, save
from measure_heads import CLOTHES, FASHION, read_fashion
from measure_heads import SIDE as SMALL

KNOWS, ALONE = "knows_clothes", "knows_the_subset"

IMBALANCE = 100

CHALLENGED = 0.15
"""The verifier may accept so many of the challenge images here: it knows nothing of clothes, so the usual
2 % would refuse it. What it accepts is among the figures."""

CAPTION = "a photo of {}"

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clothes:
    """`images` as the gate's own encoder sees them; `pictures` are all training images, `test` all others."""

    images: Images
    encoder: Principal
    pictures: Picture
    labels: NDArray[np.int64]
    test: Picture


@dataclass(frozen=True, slots=True)
class Experiment:
    clothes: Clothes
    own: Subset
    held_out: HeldOut
    work: Path


@click.command("gate_product")
@keep_option
@click.option("--fashion", "folder", type=click.Path(path_type=Path), default=FASHION, show_default=True)
@click.option("--repetitions", default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=gate.WORK, help="Keeps what has ended.")
def command(folder: Path, repetitions: int, work: Path) -> None:
    """A run of a small pipeline on a long-tailed subset, and what the gate says of its images."""
    work.mkdir(parents=True, exist_ok=True)
    clothes = read_clothes(folder, work)
    results = [
        repeat(clothes, repetition, name, work)
        for repetition in range(repetitions)
        for name in (KNOWS, ALONE)
    ]
    save(
        "gate_product",
        {
            "imbalance": IMBALANCE,
            "fewest": gate.FEWEST,
            "filled": gate.FILLED,
            "held_out": gate.HELD_OUT,
            "side": SIDE,
            "known_images": len(clothes.labels) - ENCODER_IMAGES - DRAWN_FROM,
            "steps": {
                "autoencoder": gate_pipeline.AUTOENCODER_STEPS,
                "denoiser": gate_pipeline.DENOISER_STEPS,
            },
            "results": results,
        },
    )


def read_clothes(folder: Path, work: Path) -> Clothes:
    pictures, labels = read_fashion(folder, "train")
    channels_first = pictures[:ENCODER_IMAGES].transpose(0, 3, 1, 2)
    test, _ = read_fashion(folder, "t10k")
    return Clothes(fashion(folder, work), Principal.of(channels_first), pictures, labels, test)


def repeat(clothes: Clothes, repetition: int, name: str, work: Path) -> Result:
    """The subset and the hold-out are those of the gate's repetition of the same number."""
    random = np.random.default_rng([IMBALANCE, repetition])
    own = subset(clothes.images, gate.FEWEST, IMBALANCE, gate.FILLED, random)
    held_out = HeldOut.drawn(clothes.images.test_labels, gate.HELD_OUT, random)
    folder = work / f"product-{repetition}"
    kept = folder / f"{name}.json"
    if not kept.exists():
        result = _measure(Experiment(clothes, own, held_out, folder), name)
        kept.write_text(json.dumps({"pipeline": name, "repetition": repetition, **result}))
    found: Result = json.loads(kept.read_text())
    return found


def _measure(experiment: Experiment, name: str) -> Result:
    model = _pipeline(experiment, name)
    config = load_config(_write_config(experiment, model, name))
    out = experiment.work / name
    result = balancer.run(config, out, reporter=Reporter(note=lambda line: click.echo(line, err=True)))
    manifest = balancer.open_manifest(out)
    rows = manifest.to_table(["class", "file_name"], "source = 'synthetic'").to_pylist()
    classes = [*CLOTHES]
    labels = np.array([classes.index(row["class"]) for row in rows], np.int64)
    small = np.stack([_shrunk(out / row["file_name"]) for row in rows])
    added = Added(experiment.clothes.encoder.embed(small, CHANGED_COPIES, 0), labels)
    outcome = evaluate(out)
    return {
        "state": result.state,
        "wanted": result.wanted,
        "accepted": result.accepted,
        "candidates": result.candidates,
        "rejected": dict(result.rejected_by_reason),
        "by_class": dict(Counter(row["class"] for row in rows)),
        "challenge": _challenge(manifest.run.challenge),
        "label_accuracy": _label_accuracy(experiment.clothes.images, added),
        "gate": _gate(experiment, added),
        "evaluate": {
            key: outcome[key]
            for key in ("decision", "sentence", "baseline", "arms", "difference", "recommended")
        },
    }


def _pipeline(experiment: Experiment, name: str) -> Path:
    clothes, places = experiment.clothes, experiment.own.places + ENCODER_IMAGES
    if name == KNOWS:  # the same in every repetition
        folder = experiment.work.parent / KNOWS
        places = np.arange(ENCODER_IMAGES + DRAWN_FROM, len(clothes.labels))
    else:
        folder = experiment.work / "pipeline"
    captions = [CAPTION.format(words) for words in CLOTHES.values()]
    return train_pipeline(clothes.pictures[places], clothes.labels[places], captions, folder)


def _write_config(experiment: Experiment, model: Path, name: str) -> Path:
    clothes, held_out = experiment.clothes, experiment.held_out
    data = experiment.work / "data"
    own = experiment.own.places + ENCODER_IMAGES
    test_labels = clothes.images.test_labels
    _write(data / "train", clothes.pictures, clothes.labels, own)
    _write(data / "validation", clothes.test, test_labels, held_out.validation)
    _write(data / "test", clothes.test, test_labels, held_out.test)
    document = {
        "name": "clothes",
        "dataset": {"path": str(data)},
        "target": {"per_class": gate.FILLED},
        "classes": {
            name: {"prompts": [CAPTION.format(words)], "labels": [words]} for name, words in CLOTHES.items()
        },
        "generation": {
            "model": str(model),
            "width": SIDE,
            "height": SIDE,
            "steps": 12,
            "guidance": 2.0,
            "batch_size": 16,
        },
        "verification": {"model": "embedded", "heads": "auto", "max_challenge_accepted": CHALLENGED},
        "attempts": {"max": 4},
        "actors": {"device": "cpu", "call_timeout_s": 3600},
    }
    path = experiment.work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _write(folder: Path, pictures: Picture, labels: NDArray[np.int64], places: NDArray[np.intp]) -> None:
    names = [*CLOTHES]
    for place in places:
        file = folder / names[labels[place]] / f"{place:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(enlarged(pictures[place])).save(file)


def _shrunk(path: Path) -> Picture:
    """As small as the real images were, with the channels first."""
    small = Image.open(path).convert("L").resize((SMALL, SMALL), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(small)[None], 3, axis=0)


def _challenge(proof: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: proof[key] for key in ("accepted_share", "true_lost", "features")} if proof else {}


def _label_accuracy(images: Images, added: Added) -> dict[str, float]:
    """Share of images that a classifier sees as what they are called: of those that were added, and of the
    official test images. It has learned from all 20,000 real images that subsets are drawn from."""
    judge = LogisticRegression(max_iter=500, C=10).fit(images.real[:, 0], images.labels)
    return {
        "added": round(float(judge.score(added.embedded[:, 0], added.labels)), 4),
        "real": round(float(judge.score(images.test[:, 0], images.test_labels)), 4),
    }


def _gate(experiment: Experiment, added: Added) -> Result:
    settings = EvaluationConfig(encoder=EncoderConfig(model="principal components"), steps=gate.STEPS)
    images = experiment.clothes.images
    recipe = recipe_of(settings, images.classes, None)
    prepare(recipe)
    trial = Trial(images, experiment.own, experiment.held_out, settings, recipe)
    found = trial.run(added)
    return {
        key: found[key]
        for key in ("decision", "difference", "true_gain", "true_gain_of_classes", "baseline", "recommended")
    }
