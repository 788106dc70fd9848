"""Draws docs/accepted.png, the picture in the README, from a run: `python docs/accepted.py runs/demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

import balancer

SIDE, GAP, PER_CLASS = 80, 4, 10
PICTURE = Path(__file__).with_name("accepted.png")


def main(run: str) -> None:
    manifest = balancer.open_manifest(run)
    rows = manifest.to_table(["id", "class", "file_name"], "source = 'synthetic'").sort_by("id").to_pylist()
    classes = [row["class"] for row in manifest.count_by("class").to_pylist()]
    step = SIDE + GAP
    picture = Image.new("RGB", (PER_CLASS * step - GAP, len(classes) * step - GAP), "white")
    for line, class_name in enumerate(classes):
        for column, row in enumerate(_spread([row for row in rows if row["class"] == class_name])):
            with Image.open(Path(run) / row["file_name"]) as image:
                tile = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(tile, (column * step, line * step))
    picture.quantize(256, kmeans=4).save(PICTURE, optimize=True)


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`PER_CLASS` of them at even distances: ids sort by cell, so every lighting is there."""
    count = min(PER_CLASS, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


if __name__ == "__main__":
    main(sys.argv[1])
