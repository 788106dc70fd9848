"""Small runs to evaluate, and trainers that work in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from balancer import open_manifest
from balancer.config.schema import Config
from balancer.evaluation.files import write_outcome
from balancer.evaluation.staleness import hash_images
from balancer.images import perceptual_hash, pixel_sha256
from balancer.manifest.query.rows import open_rows
from balancer.storage import open_storage
from tests.manifest_samples import CONFIG, real, rejected, row, start

CLASSES = ("basic", "burnt")
SIZE = 32


def picture(label, seed, clear=1.0, size=SIZE):
    """Noise over a soft pattern of the class, as strong as `clear`: no two are alike."""
    random = np.random.default_rng([label, seed])
    coarse = random.random((8, 8, 3))
    noise = np.kron(coarse, np.ones((size // 8, size // 8, 1)))
    slope = np.linspace(0, 1, size)
    pattern = slope[:, None] if label else slope[None, :]
    mixed = 0.7 * noise + 0.3 * clear * pattern[..., None] * np.ones((size, size, 3))
    return (255 * mixed / mixed.max()).astype(np.uint8)


@dataclass
class Trainers:
    """Trains in this process; `before` is called before each job and may raise."""

    before: Callable[[object], None] = lambda job: None
    jobs: list[Any] = field(default_factory=list)

    def check(self, recipe):
        pass

    def train_all(self, recipe, pool, training, held_out, jobs):
        import torch

        from actors.evaluation.training import train

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as a task of Ray has them
        try:
            for job in jobs:
                self.before(job)
                self.jobs.append((job, training, held_out))
                yield job, train(recipe, pool, training, held_out, job)
        finally:
            torch.set_num_threads(threads)

    def embed(self, recipe, encoder, weights, pixels, copies):
        from actors.evaluation.encoding import embed_all

        return embed_all(encoder, weights, pixels, copies, False)


def settings(**changes):
    """A config with an evaluation that takes seconds."""
    usual = {"seeds": 5, "steps": 20, "batch_size": 16, "real_shares": [0.5], "image_size": 16}
    return Config.model_validate(CONFIG | {"evaluation": usual | changes})


@dataclass(frozen=True)
class Made:
    """How many images a run has of each class, by what they are; `clear` says how plain its pattern is."""

    train: int = 10
    validation: int = 4
    test: int = 12
    accepted: int = 12
    clear: Mapping[str, float] = field(default_factory=dict)


def make_run(folder: Path, made: Made = Made(), extra: Callable[[], list[Any]] = list, config=None) -> Path:
    """A run with images in which each class has its own pattern. `extra` are more rows with their pixels."""
    rows = []
    for label, name in enumerate(CLASSES):
        seed = 0
        for split in ("train", "validation", "test"):
            for number in range(getattr(made, split)):
                seed += 1
                pixels = picture(label, seed, made.clear.get("real", 1.0))
                rows.append((real(f"{name}-{split}-{number}.png", name, split=split), pixels))
        for number in range(made.accepted):
            pixels = picture(label, 1000 + number, made.clear.get("accepted", 1.0))
            rows.append((row(slot_of(name, number), split="train"), pixels))
    storage = open_storage(folder, create=True)
    whole = [with_file(folder, each, pixels) for each, pixels in [*rows, *extra()]]
    changes = {} if config is None else {"config": config.model_dump(mode="json")}
    start(storage, **changes).commit(whole)
    return folder


def slot_of(name, number):
    return f"{name}/dim/{number:04d}" if name == "basic" else f"{name}/dim/severe/{number:04d}"


def with_file(folder, each, pixels):
    """The row as a run would have it of these pixels, its image written if it names one."""
    looks = {"phash": perceptual_hash(pixels), "pixel_sha256": pixel_sha256(pixels)}
    looks |= {"height": pixels.shape[0], "width": pixels.shape[1]}
    if each["file_name"] is not None:
        path = folder / each["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "PNG")
        data = path.read_bytes()
        looks |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    return each | looks


def rejected_row(name, number):
    return rejected(slot_of(name, number), split="train")


ESTIMATE = {"mean": 0.1, "low": 0.05, "high": 0.15}


def outcome(decision="add", classes=("burnt",), baseline="real_balanced"):
    return {
        "fingerprint": "a" * 64,
        "run_images": "b" * 64,
        "decision": decision,
        "sentence": "Add the generated images.",
        "margin": 0.02,
        "metric": "balanced_accuracy",
        "seeds": 5,
        "arms": {"real": ESTIMATE, "accepted": ESTIMATE},
        "difference": ESTIMATE,
        "baseline": baseline,
        "classes": {
            "basic": {"decision": "help", "difference": 0.1, "low": 0.05, "high": 0.15, "test_images": 40},
            "burnt": {"decision": "cannot_tell", "test_images": 2},
        },
        "recommended": {"real_share": 0.8, "classes": list(classes)},
    }


def evaluated(run, **changes):
    manifest = open_manifest(run)
    images = hash_images(open_rows(open_storage(run, create=False)))
    write_outcome(open_storage(run, create=False), outcome(**changes) | {"run_images": images})
    return manifest
