"""Images for the trial of the gate: Fashion-MNIST and digits, seen by an encoder that is made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from actors.evaluation.evaluate import CHANGED_COPIES
from actors.evaluation.training import rand_augment
from measure_heads import CLOTHES, SIDE, read_fashion

Embedded = NDArray[np.float32]
"""(images, changes + 1, dim): of the image itself and of copies that RandAugment has changed."""

Pixels = NDArray[np.uint8]
"""(images, channels, side, side)."""

Labels = NDArray[np.int64]

ENCODER_IMAGES = 5_000
"""The first training images make the encoder, and are used for nothing else."""

DRAWN_FROM = 20_000
"""The next training images: subsets and what is added to them are drawn from these."""

DIMENSIONS = 64

COPY_NOISE, COPY_LIGHT = 4.0, 0.05
"""Of a near-copy: deviation of the noise in grey levels of 255, and the most that it is lighter or darker."""


@dataclass(frozen=True, slots=True)
class Images:
    """`foreign` are images of something else, each with the class that it claims to show. `copy` makes a
    near-copy of each of the images of `real` at some places."""

    classes: tuple[str, ...]
    real: Embedded
    labels: Labels
    foreign: Embedded
    foreign_labels: Labels
    test: Embedded
    test_labels: Labels
    copy: Callable[[NDArray[np.intp], np.random.Generator], Embedded]


@dataclass(frozen=True, slots=True)
class Principal:
    """The first principal components of pixels, scaled to length 1. It has seen no label."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @classmethod
    def of(cls, pixels: Pixels) -> Principal:
        flat = _flat(pixels)
        mean = flat.mean(0)
        _, _, components = np.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean, components[:DIMENSIONS].T)

    def embed(self, pixels: Pixels, changes: int = 0, seed: int = 0) -> Embedded:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            each = [self._one(pixels), *(self._one(_changed(pixels)) for _ in range(changes))]
        return np.stack(each, axis=1)

    def _one(self, pixels: Pixels) -> NDArray[np.float32]:
        seen = (_flat(pixels) - self.mean) @ self.components
        return (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)


def _flat(pixels: Pixels) -> NDArray[np.float32]:
    return pixels.mean(1).reshape(len(pixels), -1).astype(np.float32) / 255


def _changed(pixels: Pixels) -> Pixels:
    return np.stack([rand_augment()(torch.from_numpy(each.copy())).numpy() for each in pixels])


def fashion(folder: Path, work: Path) -> Images:
    """Embeddings are kept in `work`: RandAugment takes a minute."""
    pixels, labels = _read(folder, "train")
    encoder = Principal.of(pixels[:ENCODER_IMAGES])
    drawn_from = slice(ENCODER_IMAGES, ENCODER_IMAGES + DRAWN_FROM)
    pixels, labels = pixels[drawn_from], labels[drawn_from]
    test, test_labels = _read(folder, "t10k")
    kept = work / f"embedded-{ENCODER_IMAGES}-{DRAWN_FROM}-{DIMENSIONS}-{CHANGED_COPIES}.npz"
    if not kept.exists():
        digits, shown = _digits()
        part = kept.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                real=encoder.embed(pixels, CHANGED_COPIES),
                foreign=encoder.embed(digits, CHANGED_COPIES),
                foreign_labels=shown,
            )
        part.rename(kept)
    with np.load(kept) as found:
        real, foreign, foreign_labels = found["real"], found["foreign"], found["foreign_labels"]

    def copy(places: NDArray[np.intp], random: np.random.Generator) -> Embedded:
        made = near_copies(pixels[places], random)
        return encoder.embed(made, CHANGED_COPIES, int(random.integers(2**31)))

    return Images(
        tuple(CLOTHES), real, labels, foreign, foreign_labels, encoder.embed(test), test_labels, copy
    )


def near_copies(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """A little lighter or darker, with a little noise."""
    light = 1 + random.uniform(-COPY_LIGHT, COPY_LIGHT, (len(pixels), 1, 1, 1))
    noise = COPY_NOISE * random.standard_normal((len(pixels), 1, *pixels.shape[2:]))
    return (pixels * light + noise).round().clip(0, 255).astype(np.uint8)


def _read(folder: Path, part: str) -> tuple[Pixels, Labels]:
    pictures, labels = read_fashion(folder, part)
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), labels


def _digits() -> tuple[Pixels, Labels]:
    """Handwritten digits as large as the clothes: each claims to be the class of its number."""
    loaded = load_digits()
    small = (loaded.images * (255.0 / 16.0)).round().astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for each in small
    ]
    return np.stack(large)[:, None].repeat(3, axis=1), loaded.target.astype(np.int64)
