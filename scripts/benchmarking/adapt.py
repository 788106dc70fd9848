"""What adapters are worth where a generator does not know the domain: KID to real images, and acceptance.

Two domains that the embedded generator was not trained for: the sample renderer in another look, and clothes
(Fashion-MNIST, MIT licence; Debian package `dataset-fashion-mnist`). Adapters are trained by `balancer adapt`
on 16 images a class. Before and after, the same candidates are made: first attempts in every cell, with the
same seeds. A candidate is accepted as a run accepts it: words and heads, typicality, near-duplicates of real
images.

KID (Binkowski et al. 2018, "Demystifying MMD GANs"): the unbiased estimate of the squared maximum mean
discrepancy with the kernel (x·y / d + 1)^3, here on features of length sqrt(d), so that x·y / d is a cosine.
The images it is measured to were not trained on. Features: a VGG16 with random weights, as Naeem et al. 2020
("Reliable Fidelity and Diversity Metrics") advise for what is far from photographs; and embeddings of the
embedded verifier, which has a part in what is accepted, but not in KID, which is over all candidates.
"""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from actors.adapt import adapt
from actors.domain import study
from actors.heads import study_heads
from actors.labelled import Looking, call_here
from actors.real_images import list_references, measure_here, verifier_here
from actors.run import Reporter
from actors.specs import generator_spec
from balancer.cells import Candidate, Slot, enumerate_cells
from balancer.config.load import load_config
from balancer.config.loras import LoraConfig
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.dataset.sample import BURN_LEVELS, CLASSES, LIGHTINGS, Picture, render
from balancer.evaluation.diversity import kid, unit
from balancer.scheduling.prompts import ladder, request_for
from balancer.scheduling.schedule import in_batches
from balancer.verification.typicality import from_bytes
from balancer.verification.verdict import criteria_for, judge
from benchmarking.record import RESULTS, keep_option, save
from measure_heads import FASHION, read_fashion

DEMO = RESULTS.parent / "configs" / "demo.yaml"
SIDE = 128
PER_CLASS = 16
SEED = 2**46
"""Of renders, far from all others."""

VGG_SIDE = 64
BATCH = 50

CLOTHES = {
    "t-shirt": ("basil", "a t-shirt"),
    "trousers": ("olives", "a pair of trousers"),
    "pullover": ("mushrooms", "a pullover"),
    "dress": ("pepperoni", "a dress"),
    "coat": ("marble", "a coat"),
    "sandal": ("slate", "a sandal"),
    "shirt": ("wooden", "a shirt"),
    "sneaker": ("triangular", "a sneaker"),
    "bag": ("supreme", "a bag"),
    "ankle-boot": ("half", "an ankle boot"),
}
"""In the order of the labels. The embedded text encoders know no clothes, so each class has one of their
words as identifier, as a subject of DreamBooth has; the second wording is the verifier's, which does not know
it either: heads judge."""

ADAPTATION = {"layers": "all", "learning_rate": 1e-3, "rank": 16}
"""The embedded UNet has little attention: a few thousand weights in three of its blocks."""


@dataclass(frozen=True, slots=True)
class Shifted:
    """A dataset on disk with its config, and real images that nothing is trained on."""

    config: Config
    test: Picture


@click.command("adapt")
@keep_option
@click.option("--fashion", type=click.Path(path_type=Path), default=FASHION, show_default=True)
@click.option("--only", type=click.Choice(["renders", "clothes"]), help="The other domain keeps its figures.")
@click.option("--steps", default=500, show_default=True, help="Of training.")
@click.option("--candidates", default=160, show_default=True)
@click.option("--test-images", default=300, show_default=True)
def command(fashion: Path, only: str | None, steps: int, candidates: int, test_images: int) -> None:
    """Train an adapter on two domains; KID and acceptance before and after."""
    torch.set_num_threads(1)
    made: dict[str, Callable[[Path], Shifted]] = {
        "renders": lambda folder: _renders(folder, test_images, steps),
        "clothes": lambda folder: _clothes(folder, fashion, test_images, steps),
    }
    kept = RESULTS / "adapt.json"
    figures = json.loads(kept.read_text())["domains"] if only and kept.exists() else {}
    for name, make in made.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                figures[name] = _measure(make(Path(folder)), Path(folder), candidates)
    save("adapt", {"per_class": PER_CLASS, "adaptation": ADAPTATION, "domains": figures})


# ---- the domains -------------------------------------------------------------------------------


def _renders(folder: Path, test_images: int, steps: int) -> Shifted:
    """Graded in blue and grey, as a film is."""
    cells = [(name, light) for light in LIGHTINGS for name in CLASSES]

    def one(number: int, first: int) -> tuple[Picture, dict[str, str]]:
        name, light = cells[number % len(cells)]
        level = BURN_LEVELS[number // len(cells) % len(BURN_LEVELS)] if name == "burnt" else None
        row = {"class": name, "lighting": light, "burn_level": level or ""}
        return _graded(render(name, light, level, first + number, SIDE)), row

    training = [one(number, SEED) for number in range(PER_CLASS * len(CLASSES))]
    test = [one(number, 2 * SEED)[0] for number in range(test_images)]
    document = yaml.safe_load(DEMO.read_text())
    document["generation"]["guidance"] = 2.0
    return Shifted(_written(folder, training, document, steps), np.stack(test))


def _graded(picture: Picture) -> Picture:
    colour = picture.astype(np.float32) / 255
    grey = (colour @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    mixed = 0.55 * colour + 0.45 * grey * np.array([0.75, 1.0, 1.25], np.float32)
    graded: Picture = (np.clip(0.08 + 0.9 * mixed, 0, 1) * 255).round().astype(np.uint8)
    return graded


def _clothes(folder: Path, source: Path, test_images: int, steps: int) -> Shifted:
    names = [*CLOTHES]
    pictures, labels = read_fashion(source, "train")
    chosen = np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in range(len(names))])
    training = [(_enlarged(pictures[row]), {"class": names[labels[row]]}) for row in chosen]
    test = [_enlarged(picture) for picture in read_fashion(source, "t10k")[0][:test_images]]
    document = yaml.safe_load(DEMO.read_text())
    document |= {
        "name": "clothes",
        "facets": {},
        "classes": {
            name: {"prompts": [identifier], "labels": [words]}
            for name, (identifier, words) in CLOTHES.items()
        },
    }
    document["generation"]["guidance"] = 2.0
    return Shifted(_written(folder, training, document, steps), np.stack(test))


def _enlarged(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _written(
    folder: Path, images: list[tuple[Picture, dict[str, str]]], document: dict[str, Any], steps: int
) -> Config:
    data = folder / "data"
    rows = []
    for number, (picture, row) in enumerate(images):
        file = data / row["class"] / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        rows.append({"file_name": file.relative_to(data).as_posix(), **row})
    with (data / "metadata.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    document["dataset"] = {"path": str(data)}
    document["adaptation"] = {**ADAPTATION, "steps": steps, "checkpoint_every": 50}
    document["actors"] = {"device": "cpu", "call_timeout_s": 3600}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_config(path)


# ---- measuring ---------------------------------------------------------------------------------


def _measure(domain: Shifted, folder: Path, candidates: int) -> dict[str, Any]:
    features = _Features(domain.config)
    judging = _Judging.of(domain.config)
    training = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "data").rglob("*.png"))])
    before = judging.figures(domain.config, candidates, features, domain.test)
    began = time.perf_counter()
    adapted = adapt(domain.config, folder / "adapters", reporter=Reporter(note=click.echo))
    seconds = time.perf_counter() - began
    [adapter] = adapted.adapters
    lora = LoraConfig(model=str(folder / "adapters" / adapter.file))
    with_adapter = domain.config.generation.model_copy(update={"loras": (lora,)})
    config = domain.config.model_copy(update={"generation": with_adapter})
    after = judging.figures(config, candidates, features, domain.test)
    return {
        "training_images": sum(adapter.images.values()),
        "test_images": len(domain.test),
        "steps": adapter.steps,
        "adapt_s": round(seconds),
        "loss": {
            "first_50": round(float(np.mean(adapter.losses[:50])), 4),
            "last_50": round(float(np.mean(adapter.losses[-50:])), 4),
        },
        "judged_by_heads": sorted(judging.heads),
        "kid_of_training_images": features.kids(training, domain.test),
        "before": before,
        "after": after,
        "kid_after_over_before": {
            kind: round(after["kid"][kind] / before["kid"][kind], 3) for kind in before["kid"]
        },
    }


@dataclass(frozen=True, slots=True)
class _Judging:
    """What judges candidates in a run of this dataset."""

    verifier: Any
    typicality: Any
    heads: Mapping[str, Any]
    limits: Any
    known: NearDuplicateIndex

    @classmethod
    def of(cls, config: Config) -> _Judging:
        audit, load = audit_dataset(config), verifier_here(config)
        measured = measure_here(config, audit, None, load)
        looking = Looking(config, audit, None, measured, call_here(config, load))
        heads = study_heads(looking)
        domain = study(looking, heads)
        typicality = None if domain.typicality is None else from_bytes(domain.typicality)
        known = NearDuplicateIndex(list_references(measured), config.verification.copies)
        return cls(load(), typicality, heads.load(config.properties()), domain.proof.limits, known)

    def figures(self, config: Config, count: int, features: _Features, test: Picture) -> dict[str, Any]:
        generator = generator_spec(config).load()
        pictures: list[Picture] = []
        reasons: dict[str, int] = {}
        rung = ladder(config)[0]
        for batch in in_batches(_candidates(config, count), lambda _: 0, config.generation.usual_batch):
            requests = [request_for(candidate, rung, config) for candidate in batch]
            pixels, flags = generator.generate(requests, config.generation.guidance)
            pictures.extend(pixels)
            cells = [candidate.slot.cell for candidate in batch]
            measured = self.verifier.measure(pixels, flags, cells, self.typicality, self.heads)
            for one, cell in zip(measured, cells, strict=True):
                nearest = self.known.nearest(one)
                criteria = criteria_for(cell, rung.threshold, config, self.limits)
                verdict = judge(one, cell, criteria, nearest)
                reason = verdict.reason or "accepted"
                reasons[reason] = reasons.get(reason, 0) + 1
        accepted = reasons.pop("accepted", 0)
        return {
            "candidates": count,
            "accepted": accepted,
            "rejected": dict(sorted(reasons.items(), key=lambda each: -each[1])),
            "kid": features.kids(np.stack(pictures), test),
        }


def _candidates(config: Config, count: int) -> Iterator[Candidate]:
    cells = [cell for name in config.classes for cell in enumerate_cells(name, config.facet_axes())]
    every = (Candidate(Slot(cell, index), 1) for index in itertools.count() for cell in cells)
    return itertools.islice(every, count)


class _Features:
    def __init__(self, config: Config) -> None:
        from torchvision.models import vgg16

        torch.manual_seed(0)
        self._vgg = vgg16(weights=None).features.eval()
        self._verifier = verifier_here(config)

    def kids(self, made: Picture, real: Picture) -> dict[str, float]:
        return {
            kind: round(kid(unit(of(made)), unit(of(real))), 5)
            for kind, of in (("random_vgg16", self._by_vgg), ("verifier", self._by_verifier))
        }

    @torch.no_grad()
    def _by_vgg(self, pictures: Picture) -> NDArray[np.float64]:
        parts = []
        for start in range(0, len(pictures), BATCH):
            values = torch.from_numpy(pictures[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            small = torch.nn.functional.interpolate(values, (VGG_SIDE, VGG_SIDE), mode="area")
            parts.append(self._vgg(small).mean((2, 3)).double().numpy())
        return np.concatenate(parts)

    def _by_verifier(self, pictures: Picture) -> NDArray[np.float64]:
        from balancer.cells import Cell
        from balancer.verification.verdict import ImageFlags

        parts = []
        for start in range(0, len(pictures), BATCH):
            part = pictures[start : start + BATCH]
            measured = self._verifier().measure(part, [ImageFlags()] * len(part), [Cell("any")] * len(part))
            parts += [np.frombuffer(one.embedding, "<f2").astype(np.float64) for one in measured]
        return np.stack(parts)
