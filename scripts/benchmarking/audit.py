"""The cost of the audit's decoding in child processes, compared with threads of one process."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from balancer.dataset.audit import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, audit, find_dataset
from balancer.dataset.decoding.image_info import DecodeLimits, read_image_info
from benchmarking.record import save

SIDE = 512
PICTURES = 40


@click.command("audit")
@click.option("--images", default=2000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def command(images: int, repeats: int) -> None:
    """Audit the sample dataset, and JPEGs of 512 x 512 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        many = Path(folder) / "many"
        _write(many, images)
        cases = {"sample": find_dataset("sample"), "jpeg_512": many}
        save("audit", {"cases": {name: _compare(root, repeats) for name, root in cases.items()}})


def _write(root: Path, count: int) -> None:
    (root / "class").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for number in range(PICTURES):
        small = Image.fromarray(chance.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
            root / "class" / f"{number:05}.jpg", quality=90
        )
    for number in range(PICTURES, count):
        shutil.copy(root / "class" / f"{number % PICTURES:05}.jpg", root / "class" / f"{number:05}.jpg")


def _compare(root: Path, repeats: int) -> dict[str, Any]:
    names = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".jpg"))
    limits = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS)

    def in_threads() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(lambda path: read_image_info(path, limits), names))

    in_threads()  # reads the files once, and imports what is needed
    pairs = [(_timed(in_threads), _timed(lambda: audit(root))) for _ in range(repeats)]
    pairs.sort(key=lambda pair: pair[1]["seconds"] / pair[0]["seconds"])
    threads, processes = pairs[len(pairs) // 2]
    return {"images": len(names), "in_threads": threads, "audit_in_processes": processes}


def _timed(work: Callable[[], object]) -> dict[str, float]:
    before, began = _cpu_s(), time.perf_counter()
    work()
    return {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(_cpu_s() - before, 2)}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
