"""The renders to train and to measure on, kept as one array file per set."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from balancer.dataset.sample import BURN_LEVELS, CLASSES, LIGHTINGS, Picture, render, table

SIZE = 128

# Far apart, and far from the small seeds of the sample dataset: no two sets share a picture.
TRAINING_SEEDS = 2**40
CALIBRATION_SEEDS = 2**41
MEASUREMENT_SEEDS = 2**42
JUDGE_TRAINING_SEEDS = 2**44
JUDGE_TEST_SEEDS = 2**45


@dataclass(frozen=True, slots=True)
class Cell:
    class_name: str
    lighting: str
    burn_level: str | None


CELLS: tuple[Cell, ...] = tuple(
    Cell(class_name, lighting, burn_level)
    for class_name in CLASSES
    for lighting in LIGHTINGS
    for burn_level in (BURN_LEVELS if class_name == "burnt" else (None,))
)


@dataclass(frozen=True, slots=True)
class Renders:
    """Picture i shows `cells[i % len(cells)]`, drawn with seed `first_seed + i`."""

    pictures: Picture
    first_seed: int
    cells: tuple[Cell, ...] = CELLS

    def cell(self, index: int) -> Cell:
        return self.cells[index % len(self.cells)]

    def table(self, index: int) -> str:
        return table(self.first_seed + index)


def render_set(first_seed: int, count: int, cells: tuple[Cell, ...] = CELLS) -> Renders:
    """New renders, spread evenly over the cells, on all processors."""
    chosen = [cells[index % len(cells)] for index in range(count)]
    seeds = range(first_seed, first_seed + count)
    with ProcessPoolExecutor() as pool:
        pictures = np.stack(list(pool.map(_render_one, chosen, seeds, chunksize=32)))
    return Renders(pictures, first_seed, cells)


def load_or_render(path: Path, first_seed: int, count: int) -> Renders:
    """Renders of every cell, kept in a file for the next time."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, render_set(first_seed, count).pictures)
        os.replace(partial, path)
    pictures = np.load(path, mmap_mode="r")
    if pictures.shape != (count, SIZE, SIZE, 3):
        raise ValueError(f"{path} holds {pictures.shape[0]} pictures, not {count}: remove it")
    return Renders(pictures, first_seed)


def _render_one(cell: Cell, seed: int) -> Picture:
    return render(cell.class_name, cell.lighting, cell.burn_level, seed, SIZE)
