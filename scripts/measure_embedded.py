"""Measure the models in balancer/embedded on pictures and seeds that training never saw.

Prints one JSON object, whose figures are in the model card.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image

from balancer.dataset.sample import Picture
from embedded_training import captions, data
from embedded_training.data import CELLS, Cell, Renders
from embedded_training.verifier import PROPERTIES, Property, text_embeddings

EMBEDDED = Path(__file__).resolve().parent.parent / "balancer" / "embedded"
RENDERS_PER_CELL = 64
BURNT_RENDERS_PER_CELL = 168
BURNT_CELLS = tuple(cell for cell in CELLS if cell.burn_level is not None)
CALIBRATION_BINS = 15
PASS_SCORE = 0.6


@click.command()
@click.option("--models", type=click.Path(path_type=Path), default=EMBEDDED, show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--guidance", default=3.0, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--per-cell", default=20, show_default=True, help="Candidates generated per cell.")
@click.option("--threads", type=int, help="Threads of the models; all processors if not given.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Save candidates as one picture.")
def main(
    models: Path,
    steps: int,
    guidance: float,
    batch: int,
    per_cell: int,
    threads: int | None,
    sheet: Path | None,
) -> None:
    """Accuracy and calibration of the verifier, pass rates and speed of the generator."""
    renders = data.render_set(data.MEASUREMENT_SEEDS, RENDERS_PER_CELL * len(CELLS))
    burnt = data.render_set(
        data.MEASUREMENT_SEEDS + len(renders.pictures),
        BURNT_RENDERS_PER_CELL * len(BURNT_CELLS),
        BURNT_CELLS,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    verifier = Verifier(models / "verifier")
    generator = Generator(models / "generator", steps, guidance)
    candidates = [cell for cell in CELLS for _ in range(per_cell)]
    started = time.perf_counter()
    pictures = np.concatenate(list(generator.pictures(candidates, batch)))
    seconds = time.perf_counter() - started
    if sheet is not None:
        save_sheet(pictures, per_cell, sheet)
    figures = {
        "verifier": {
            "class": judge_renders(verifier, renders, PROPERTIES[0]),
            "lighting": judge_renders(verifier, renders, PROPERTIES[1]),
            "burn_level": judge_renders(verifier, burnt, PROPERTIES[2]),
        },
        "generator": {
            "steps": steps,
            "guidance": guidance,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "seconds_per_candidate": round(seconds / len(candidates), 4),
            **judge_candidates(verifier, candidates, pictures),
        },
    }
    click.echo(json.dumps(figures, indent=2))


class Verifier:
    """Probabilities of each property's values, as the balancer's own verifier computes them."""

    def __init__(self, folder: Path) -> None:
        loaded = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        self._model, self._preprocess = loaded
        self._model.eval()

    @torch.no_grad()
    def probabilities(self, pictures: Picture) -> dict[str, torch.Tensor]:
        """For each property a tensor (pictures, values)."""
        parts = [self._embed(pictures[i : i + 64]) for i in range(0, len(pictures), 64)]
        images, scale = torch.cat(parts), self._model.logit_scale.exp()
        probabilities = {}
        for judged in PROPERTIES:
            texts = text_embeddings(self._model, list(judged.wordings.values()))
            probabilities[judged.name] = (scale * images @ texts.T).softmax(-1)
        return probabilities

    def _embed(self, pictures: Picture) -> torch.Tensor:
        batch = torch.stack([self._preprocess(Image.fromarray(picture)) for picture in pictures])
        embedded: torch.Tensor = self._model.encode_image(batch, normalize=True)
        return embedded


class Generator:
    """The pipeline, one random generator an image, batches of one size."""

    def __init__(self, folder: Path, steps: int, guidance: float) -> None:
        self._pipeline = AutoPipelineForText2Image.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._steps = steps
        self._guidance = guidance

    def pictures(self, cells: Sequence[Cell], batch: int) -> Iterator[Picture]:
        """Candidate i has seed i and a wording drawn with it."""
        for start in range(0, len(cells), batch):
            # The last batch is filled up: a picture's low bits depend on the batch's shape.
            numbers = [min(start + offset, len(cells) - 1) for offset in range(batch)]
            made = self._pipeline(
                prompt=[prompt(cells[number], random.Random(number)) for number in numbers],
                negative_prompt=[""] * batch,
                num_inference_steps=self._steps,
                guidance_scale=self._guidance,
                height=data.SIZE,
                width=data.SIZE,
                generator=[torch.Generator("cpu").manual_seed(number) for number in numbers],
                output_type="np",
            ).images
            yield (made[: len(cells) - start] * 255.0).round().astype(np.uint8)


def prompt(cell: Cell, rng: random.Random) -> str:
    """Every property in one of its wordings, then a variation."""
    wordings = captions.property_wordings(cell.class_name, cell.lighting, cell.burn_level)
    chosen = [rng.choice(values) for values in wordings]
    tables = [phrase for values in captions.TABLE_WORDINGS.values() for phrase in values]
    return ", ".join([*chosen, rng.choice([*tables, *captions.STYLE_WORDINGS])])


def judge_renders(verifier: Verifier, renders: Renders, judged: Property) -> dict[str, Any]:
    labels = torch.tensor([judged.label(renders.cell(i)) for i in range(len(renders.pictures))])
    probabilities = verifier.probabilities(renders.pictures)[judged.name]
    confidence, answer = probabilities.max(-1)
    right = answer == labels
    return {
        "renders": len(labels),
        "top_1": round(right.float().mean().item(), 4),
        "calibration_error": round(calibration_error(confidence, right), 4),
    }


def calibration_error(confidence: torch.Tensor, right: torch.Tensor) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over even bins."""
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = [
        (confidence[bins == number].mean() - right[bins == number].float().mean()).abs()
        * (bins == number).float().mean()
        for number in bins.unique()
    ]
    return float(torch.stack(gaps).sum())


def judge_candidates(verifier: Verifier, cells: Sequence[Cell], pictures: Picture) -> dict[str, Any]:
    probabilities = verifier.probabilities(pictures)
    score = torch.ones(len(cells))
    by_property = {}
    for judged in PROPERTIES:
        labels = torch.tensor([judged.label(cell) for cell in cells])
        known = (labels >= 0).nonzero().squeeze(-1)
        asked = probabilities[judged.name][known, labels[known]]
        score[known] = torch.minimum(score[known], asked)
        by_property[judged.name] = round((asked >= PASS_SCORE).float().mean().item(), 4)
    passed = score >= PASS_SCORE
    by_cell = {}
    for cell in CELLS:
        name = "/".join(filter(None, (cell.class_name, cell.lighting, cell.burn_level)))
        by_cell[name] = round(passed[[other == cell for other in cells]].float().mean().item(), 3)
    return {
        "candidates": len(cells),
        "pass_rate": round(passed.float().mean().item(), 4),
        "lowest_cell": min(by_cell.values()),
        "pass_rate_by_property": by_property,
        "pass_rate_by_cell": by_cell,
    }


def save_sheet(pictures: Picture, per_cell: int, path: Path) -> None:
    """One row a cell."""
    rows = pictures.reshape(len(CELLS), per_cell, *pictures.shape[1:])
    sheet = rows.transpose(0, 2, 1, 3, 4).reshape(len(CELLS) * data.SIZE, -1, 3)
    Image.fromarray(sheet).save(path)


if __name__ == "__main__":
    main()
