"""Measure heads, which are fitted on a few labelled images, beside the words of the embedded verifier.

It knows no word for Fashion-MNIST: 70,000 photographs of clothes in ten classes (MIT licence; Debian package
`dataset-fashion-mnist`). The kinds of features and the priors of heads were picked on its training images,
without those that are drawn here; its test images had no part in it. Handwritten digits, from scikit-learn,
had one: a first measurement of them led to the heavy tails of the temperature's prior. The words of the
sample dataset it knows well: no head should replace them. Prints one JSON object; `--keep` replaces
`benchmarks/heads.json`.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from actors.models.verifier import Verifier
from balancer.cells import CLASS_PROPERTY, Cell
from balancer.config.load import load_config
from balancer.config.schema import Config, CopiesConfig
from balancer.dataset.audit import audit_dataset, audit_holdout
from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates
from balancer.dataset.sample import Picture
from balancer.verification.calibration import Examples, calibration_error, one_vs_rest_auc, reliability
from balancer.verification.head_fitting import FittedHead, candidates, fit_head, no_head
from balancer.verification.heads import KINDS, MARGIN, Integers, better, log_softmax
from balancer.verification.verdict import ImageFlags
from benchmarking.record import keep_option, save
from embedded_training import data
from embedded_training.data import CELLS, Renders

PROJECT = Path(__file__).resolve().parent.parent
FASHION = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = {
    "t-shirt": "a t-shirt",
    "trousers": "a pair of trousers",
    "pullover": "a pullover",
    "dress": "a dress",
    "coat": "a coat",
    "sandal": "a sandal",
    "shirt": "a shirt",
    "sneaker": "a sneaker",
    "bag": "a bag",
    "ankle boot": "an ankle boot",
}
"""In the order of the labels. The embedded verifier knows the word `a`, and none of the others."""

DIGITS = "zero one two three four five six seven eight nine".split()

RENDERS_PER_CELL = 64
BURNT_RENDERS_PER_CELL = 168
BURNT_CELLS = tuple(cell for cell in CELLS if cell.burn_level is not None)
MIN_EXAMPLES = 5
SIDE = 28
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Seen:
    """Images as the verifier sees them; `words` are log-probabilities by property."""

    features: dict[str, np.ndarray]
    words: dict[str, np.ndarray]
    known: list[KnownImage]

    @classmethod
    def of(cls, verifier: Verifier, pictures: Picture) -> Seen:
        parts = [
            cls._of_some(verifier, pictures[start : start + AT_ONCE])
            for start in range(0, len(pictures), AT_ONCE)
        ]
        return cls(
            {kind: np.concatenate([part.features[kind] for part in parts]) for kind in parts[0].features},
            {name: np.concatenate([part.words[name] for part in parts]) for name in parts[0].words},
            [image for part in parts for image in part.known],
        )

    @classmethod
    def _of_some(cls, verifier: Verifier, pictures: Picture) -> Seen:
        _, features = verifier.look(pictures, KINDS)
        cells = [Cell("any")] * len(pictures)  # for a second judge, which there is not
        measured = verifier.measure(pictures, [ImageFlags()] * len(pictures), cells)
        words = {
            name: np.log(np.maximum([[*one.probabilities[name].values()] for one in measured], 1e-300))
            for name in measured[0].probabilities
        }
        used = {kind for kinds in candidates(features) for kind in kinds}
        return cls(
            {kind: features[kind].astype(np.float32) for kind in sorted(used)},
            words,
            [KnownImage("", one.phash, one.pixel_sha256, one.embedding) for one in measured],
        )

    def take(self, rows: np.ndarray) -> Seen:
        return Seen(
            {kind: numbers[rows].astype(np.float64) for kind, numbers in self.features.items()},
            {name: words[rows] for name, words in self.words.items()},
            [self.known[row] for row in rows],
        )

    def groups(self) -> Integers:
        """One number for all near-duplicates of an image."""
        named = [
            KnownImage(str(number), one.phash, one.pixel_sha256, one.embedding)
            for number, one in enumerate(self.known)
        ]
        nearest = find_near_duplicates(named, CopiesConfig())
        return np.array(
            [int(nearest[one.id].id) if one.id in nearest else int(one.id) for one in named], np.intp
        )


@click.command()
@keep_option
@click.option("--fashion", type=click.Path(path_type=Path), default=FASHION, show_default=True)
@click.option("--draws", default=5, show_default=True)
@click.option("--per-class", default=20, show_default=True)
@click.option("--test-images", default=10_000, show_default=True)
def main(fashion: Path, draws: int, per_class: int, test_images: int) -> None:
    torch.set_num_threads(1)
    save(
        "heads",
        {
            "margin": MARGIN,
            "fashion_mnist": measure_foreign(Foreign.fashion(fashion, test_images), draws, per_class),
            "digits": measure_foreign(Foreign.digits(), draws, per_class),
            "sample": measure_sample(load_config(PROJECT / "configs/demo.yaml")),
        },
    )


# ---- words that the verifier does not know -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Foreign:
    """Pictures with words that the verifier does not know; `test` may not be drawn for examples."""

    words: Mapping[str, str]
    pictures: Picture
    labels: Integers
    test: Picture
    test_labels: Integers

    @classmethod
    def fashion(cls, folder: Path, test_images: int) -> Foreign:
        test, labels = read_fashion(folder, "t10k")
        return cls(CLOTHES, *read_fashion(folder, "train"), test[:test_images], labels[:test_images])

    @classmethod
    def digits(cls) -> Foreign:
        """The first half is drawn from, the second, by other writers, is judged."""
        loaded = load_digits()
        grey = (loaded.images[..., None] * (255.0 / 16.0)).round().astype(np.uint8).repeat(3, axis=3)
        labels, half = loaded.target.astype(np.intp), len(grey) // 2
        words = {str(digit): f"the digit {word}" for digit, word in enumerate(DIGITS)}
        return cls(words, grey[:half], labels[:half], grey[half:], labels[half:])


def measure_foreign(images: Foreign, draws: int, per_class: int) -> dict[str, Any]:
    values = tuple(images.words)
    properties = {CLASS_PROPERTY: {value: [words] for value, words in images.words.items()}}
    verifier = Verifier("embedded", None, properties, "cpu", 1)
    test, measured = Seen.of(verifier, images.test), []
    for seed in range(draws):
        rows = draw(images.labels, per_class, seed)
        labelled = Seen.of(verifier, images.pictures[rows])
        figures = _measure_draw(values, labelled, images.labels[rows], test, images.test_labels)
        measured.append({"seed": seed, **figures})
    return {"labelled": per_class * len(values), "test_images": len(images.test), **_summary(measured)}


def read_fashion(folder: Path, part: str) -> tuple[Picture, Integers]:
    """Pictures in three equal channels, and labels."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        grey = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIDE, SIDE, 1)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.intp)
    return grey.repeat(3, axis=3), labels


def draw(labels: Integers, per_class: int, seed: int) -> Integers:
    random = np.random.default_rng(seed)
    chosen = [random.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in range(10)]
    return np.concatenate(chosen)


def _measure_draw(
    values: tuple[str, ...], labelled: Seen, labels: Integers, judged: Seen, test_labels: Integers
) -> dict[str, Any]:
    labelled = labelled.take(np.arange(len(labels)))
    words, groups = labelled.words[CLASS_PROPERTY], labelled.groups()
    started = time.perf_counter()
    fitted = fit_head(labelled.features, labels, groups, words, values, MIN_EXAMPLES)
    seconds = time.perf_counter() - started
    single = {
        kind: fit_head({kind: numbers}, labels, groups, words, values, MIN_EXAMPLES)
        for kind, numbers in labelled.features.items()
    }
    test_words = judged.words[CLASS_PROPERTY]
    calibrated = log_softmax(test_words / fitted.head.words_temperature)
    return {
        "fit_s": round(seconds, 2),
        **_describe(fitted),
        "test": {
            "words": _figures(values, calibrated, test_labels),
            "head": _figures(values, _judge(fitted, judged, test_words), test_labels),
        },
        "single_kinds": {
            kind: {
                "out_of_fold": round(own.proof.mean_auc, 4),
                "test": _figures(values, _judge(own, judged, test_words), test_labels)["mean_auc"],
            }
            for kind, own in single.items()
        },
    }


def _judge(fitted: FittedHead, judged: Seen, words: np.ndarray) -> np.ndarray:
    features = {kind: judged.features[kind].astype(np.float64) for kind in fitted.head.kinds}
    return fitted.head.log_probabilities(features, words)


def _describe(fitted: FittedHead) -> dict[str, Any]:
    head, proof = fitted.head, fitted.proof
    return {
        "kinds": list(head.kinds),
        "strength": head.strength,
        "temperature": round(head.temperature, 3),
        "words_temperature": round(head.words_temperature, 3),
        "taken": better(proof),
        "out_of_fold": {
            "words": _rounded(proof.values, proof.words_auc, proof.words_loss, proof.words_error),
            "head": _rounded(proof.values, proof.auc, proof.loss, proof.error),
            "gain_error": round(proof.gain_error, 4),
        },
    }


def _figures(values: Sequence[str], scores: np.ndarray, labels: Integers) -> dict[str, Any]:
    likely, rows = np.exp(scores), np.arange(len(labels))
    aucs = one_vs_rest_auc(Examples(tuple(values), scores, labels), likely)
    error = calibration_error(reliability(likely, labels))
    top_1 = round(float((scores.argmax(axis=1) == labels).mean()), 4)
    return {**_rounded(values, aucs, -float(scores[rows, labels].mean()), error), "top_1": top_1}


def _rounded(
    values: Sequence[str], aucs: Sequence[float | None], loss: float, error: float
) -> dict[str, Any]:
    known = [auc for auc in aucs if auc is not None]
    return {
        "auc": {
            value: None if auc is None else round(auc, 4) for value, auc in zip(values, aucs, strict=True)
        },
        "mean_auc": round(float(np.mean(known)), 4),
        "log_loss": round(loss, 4),
        "calibration_error": round(error, 4),
    }


def _summary(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the draws: means and the worst."""
    heads = [one["test"]["head"] for one in measured]
    gaps = [abs(one["out_of_fold"]["head"]["mean_auc"] - one["test"]["head"]["mean_auc"]) for one in measured]
    ahead = [
        one["test"]["head"]["mean_auc"] - max(kind["test"] for kind in one["single_kinds"].values())
        for one in measured
    ]
    aucs = [one["mean_auc"] for one in heads]
    errors = [one["calibration_error"] for one in heads]
    return {
        "mean_auc": {"mean": round(float(np.mean(aucs)), 4), "least": min(aucs)},
        "ahead_of_the_best_single_kind": {
            "mean": round(float(np.mean(ahead)), 4),
            "least": round(min(ahead), 4),
        },
        "out_of_fold_to_test": {"mean": round(float(np.mean(gaps)), 4), "most": round(max(gaps), 4)},
        "calibration_error": {"mean": round(float(np.mean(errors)), 4), "most": max(errors)},
        "draws": list(measured),
    }


# ---- words that it knows -----------------------------------------------------------------------


def measure_sample(config: Config) -> dict[str, Any]:
    """The labelled images of the sample dataset, all and those of the training split, and fresh renders."""
    verifier = Verifier("embedded", None, config.properties(), "cpu", 1)
    training, holdout = audit_dataset(config), audit_holdout(config)
    assert holdout is not None
    pictures: list[Picture] = []
    labels: dict[str, list[int]] = {name: [] for name in config.properties()}
    for audit in (training, holdout):
        for image in audit.images:
            pictures.append(np.asarray(Image.open(audit.path / image.file_name).convert("RGB")))
            for name, own in labels.items():
                value = image.class_name if name == CLASS_PROPERTY else image.facets.get(name)
                own.append(_position(config, name, value))
    labelled = Seen.of(verifier, np.stack(pictures))
    every = data.render_set(data.MEASUREMENT_SEEDS, RENDERS_PER_CELL * len(CELLS))
    burnt = data.render_set(
        data.MEASUREMENT_SEEDS + len(every.pictures), BURNT_RENDERS_PER_CELL * len(BURNT_CELLS), BURNT_CELLS
    )
    fresh = {"burn_level": (burnt, Seen.of(verifier, burnt.pictures))}
    seen_every = Seen.of(verifier, every.pictures)
    return {
        name: {
            split: _measure_property(
                config, name, labelled, np.array(own), rows, *fresh.get(name, (every, seen_every))
            )
            for split, rows in (("all", len(own)), ("training", len(training.images)))
        }
        for name, own in labels.items()
    }


def _position(config: Config, name: str, value: str | None) -> int:
    values = list(config.properties()[name])
    return values.index(value) if value in values else -1


def _measure_property(
    config: Config, name: str, labelled: Seen, labels: Integers, first: int, renders: Renders, fresh: Seen
) -> dict[str, Any]:
    values = tuple(config.properties()[name])
    rows = np.flatnonzero(labels[:first] >= 0)
    seen, labels = labelled.take(rows), labels[rows]
    if problem := no_head(labels, seen.groups(), values, MIN_EXAMPLES):
        return {"labelled": len(rows), "no_head": problem}
    fitted = fit_head(seen.features, labels, seen.groups(), seen.words[name], values, MIN_EXAMPLES)
    cells = [renders.cell(number) for number in range(len(renders.pictures))]
    shown = np.array([values.index(_shown(cell, name)) for cell in cells])
    words = log_softmax(fresh.words[name] / fitted.head.words_temperature)
    return {
        "labelled": len(rows),
        **_describe(fitted),
        "renders": {
            "words": _figures(values, words, shown),
            "head": _figures(values, _judge(fitted, fresh, fresh.words[name]), shown),
        },
    }


def _shown(cell: data.Cell, name: str) -> str:
    return cell.class_name if name == CLASS_PROPERTY else getattr(cell, name)


if __name__ == "__main__":
    main()
