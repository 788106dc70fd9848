"""Measure on the embedded models when two pictures are copies of each other, and how bright pictures are.

Independent pictures must not count as copies: candidates of different seeds, renders of the sample dataset.
Pictures that were saved again, resized, brightened, disturbed or shifted must. Prints one JSON object; the
defaults of `verification.copies` and the brightness ranges of configs/demo.yaml follow from its figures.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actors.models.generator import Generator
from actors.models.verifier import Verifier
from balancer.cells import Candidate, Cell, Slot, enumerate_cells
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.sample import write_dataset
from balancer.images import Pixels
from balancer.scheduling.prompts import ladder, request_for
from balancer.verification.verdict import ImageFlags

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
DISTANCES = (4, 6, 8, 10)
SIMILARITIES = (0.9, 0.95, 0.98)

Pictures = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


@click.command()
@click.option("--per-cell", default=20, show_default=True, help="Candidates generated per cell.")
@click.option("--threads", default=1, show_default=True, help="Threads of the models.")
def main(per_cell: int, threads: int) -> None:
    """False alarms and recall of the copy check, and luminance by lighting."""
    config = load_config(DEMO)
    cells = [cell for name in config.classes for cell in enumerate_cells(name, config.facet_axes())]
    candidates = [Candidate(Slot(cell, index), 1) for cell in cells for index in range(per_cell)]
    made = generate(candidates, config, threads)
    renders, classes = sample_renders()
    see = Eyes(config, threads)
    seen_made, seen_renders = see(made), see(renders)
    of_cell = np.array([candidate.slot.cell.key for candidate in candidates])
    originals = np.concatenate([renders, made[::2]])
    click.echo(
        json.dumps(
            {
                "candidates": len(made),
                "renders": len(renders),
                "independent_pairs_taken_for_copies": {
                    "candidates_of_one_cell": within(seen_made, of_cell[:, None] == of_cell),
                    "candidates_of_different_cells": within(seen_made, of_cell[:, None] != of_cell),
                    "candidate_and_render": taken_for_copies(*seen_made.against(seen_renders)),
                    "renders_of_one_class": within(seen_renders, classes[:, None] == classes),
                    "renders_of_different_classes": within(seen_renders, classes[:, None] != classes),
                },
                "copies_found": {name: recall(originals, change, see) for name, change in changes().items()},
                "luminance": luminance(seen_made, [candidate.slot.cell for candidate in candidates]),
            },
            indent=2,
        )
    )


class Eyes:
    """The verifier of the demo, for hashes and embeddings."""

    def __init__(self, config: Config, threads: int) -> None:
        model = config.verification.model
        self._verifier = Verifier(model, None, config.properties(), "cpu", threads)
        self._cell = Cell(next(iter(config.classes)))

    def __call__(self, pictures: Pictures) -> Seen:
        count = len(pictures)
        measured = self._verifier.measure(pictures, [ImageFlags()] * count, [self._cell] * count)
        embeddings = np.stack([np.frombuffer(one.embedding, "<f2").astype(np.float32) for one in measured])
        return Seen(
            np.array([int(one.phash, 16) for one in measured], np.uint64),
            embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
            np.array([one.brightness for one in measured]),
        )


class Seen:
    """Hashes, unit embeddings and luminance of pictures."""

    def __init__(self, hashes: NDArray[Any], embeddings: NDArray[Any], brightness: NDArray[Any]) -> None:
        self.hashes, self.embeddings, self.brightness = hashes, embeddings, brightness

    def against(self, other: Seen) -> tuple[NDArray[Any], NDArray[Any]]:
        """Distance and similarity of every pair of pictures."""
        return np.bitwise_count(self.hashes[:, None] ^ other.hashes), self.embeddings @ other.embeddings.T

    def beside(self, other: Seen) -> tuple[NDArray[Any], NDArray[Any]]:
        """Distance and similarity of each picture and the one that stands in its place in `other`."""
        return np.bitwise_count(self.hashes ^ other.hashes), (self.embeddings * other.embeddings).sum(1)


def generate(candidates: Sequence[Candidate], config: Config, threads: int) -> Pictures:
    """First attempts of a demo run."""
    asked = config.generation
    generator = Generator(
        asked.model,
        None,
        None,
        asked.width,
        asked.height,
        asked.steps,
        asked.batch_size,
        "auto",
        "cpu",
        threads,
    )
    rung = ladder(config)[0]
    requests = [request_for(candidate, rung, config) for candidate in candidates]
    pictures: Pictures = generator.generate(requests, asked.guidance)[0]
    return pictures


def sample_renders() -> tuple[Pictures, NDArray[Any]]:
    """The sample dataset, training and hold-out images, with their classes."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "sample", seed=0)
        paths = sorted(Path(folder).rglob("*.png"))
        pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return pictures, np.array([path.parent.name for path in paths])


def within(seen: Seen, wanted: NDArray[np.bool_]) -> dict[str, Any]:
    """Each wanted pair of one set, once."""
    distances, similarities = seen.against(seen)
    once = np.triu(wanted, 1)
    return taken_for_copies(distances[once], similarities[once])


def taken_for_copies(distances: NDArray[Any], similarities: NDArray[Any]) -> dict[str, Any]:
    return {
        "pairs": distances.size,
        "least_distance": int(distances.min()),
        "greatest_similarity": round(float(similarities.max()), 4),
        "within_limits": {name: int(both.sum()) for name, both in by_limits(distances, similarities)},
    }


def recall(originals: Pictures, change: Change, see: Eyes) -> dict[str, float]:
    """The share of changed pictures that count as copies of their originals."""
    changed = see(np.stack([change(picture) for picture in originals]))
    return {name: round(float(both.mean()), 4) for name, both in by_limits(*changed.beside(see(originals)))}


def by_limits(distances: NDArray[Any], similarities: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
    return [
        (f"{distance}, {similarity}", (distances <= distance) & (similarities >= similarity))
        for distance in DISTANCES
        for similarity in SIMILARITIES
    ]


def luminance(seen: Seen, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    values = np.array([cell.value("lighting") for cell in cells])
    return {
        str(value): {
            name: round(float(np.quantile(seen.brightness[values == value], part)), 3)
            for name, part in (("least", 0), ("median", 0.5), ("greatest", 1))
        }
        for value in dict.fromkeys(values)
    }


def changes() -> dict[str, Change]:
    noise = np.random.default_rng(0)
    return {
        **{f"jpeg quality {quality}": jpeg(quality) for quality in (60, 80, 95)},
        **{f"resized to {scale:.0%} and back": resized(scale) for scale in (0.5, 0.9, 1.1)},
        **{f"luminance times {factor}": brightened(factor) for factor in (0.8, 0.95, 1.05, 1.2)},
        **{f"noise of {spread} / 255": disturbed(spread, noise) for spread in (2, 8)},
        **{f"shifted by {pixels} of 128 pixels": shifted(pixels) for pixels in (1, 2, 4)},
        "mirrored": lambda picture: picture[:, ::-1].copy(),
    }


def jpeg(quality: int) -> Change:
    def change(picture: Pixels) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return change


def resized(scale: float) -> Change:
    def change(picture: Pixels) -> Pixels:
        size = (picture.shape[1], picture.shape[0])
        other = (round(size[0] * scale), round(size[1] * scale))
        there = Image.fromarray(picture).resize(other, Image.Resampling.BICUBIC)
        return np.asarray(there.resize(size, Image.Resampling.BICUBIC))

    return change


def brightened(factor: float) -> Change:
    return lambda picture: _to_bytes(picture * factor)


def disturbed(spread: float, noise: np.random.Generator) -> Change:
    return lambda picture: _to_bytes(picture + noise.normal(0, spread, picture.shape))


def shifted(pixels: int) -> Change:
    """Down and to the right; the edge is repeated."""

    def change(picture: Pixels) -> Pixels:
        padded = np.pad(picture, ((pixels, 0), (pixels, 0), (0, 0)), mode="edge")
        return padded[: picture.shape[0], : picture.shape[1]]

    return change


def _to_bytes(values: NDArray[Any]) -> Pixels:
    return (values + 0.5).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
