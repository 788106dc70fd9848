"""What an audit costs: beside decoding the same files with Pillow in as many processes, in memory, and the
second time. Each figure is that of a process of its own; the runs of both ways alternate."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from balancer.dataset.decoding.file_keys import SETTLED_NS
from benchmarking.record import keep_option, save

MIXED = (16, 32, 64, 128, 224, 320)
"""Sides of images, each as often as the others."""

FORMATS = ("JPEG", "JPEG", "JPEG", "PNG")
SUFFIXES = {"JPEG": "jpg", "PNG": "png"}
ALIKE = {"png_16": (16, "PNG"), "jpeg_512": (512, "JPEG"), "png_512": (512, "PNG")}
"""Datasets of one size and format, to see what the ratio depends on."""

IMAGES_PER_CLASS = 40
AT_ONCE = 256
PART = 10
"""The images of the mixed dataset divided by those of the one that memory is compared with."""


@click.command("audit")
@keep_option
@click.option("--images", default=200_000, show_default=True, help="Of mixed sizes.")
@click.option("--alike", default=4000, show_default=True, help="Of one size and format, for each.")
@click.option("--repeats", default=3, show_default=True, help="Of the cases with one size.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the datasets here, and use them again.")
def command(images: int, alike: int, repeats: int, folder: Path | None) -> None:
    """Audit datasets of mixed sizes and of one size, twice each, beside decoding them."""
    with tempfile.TemporaryDirectory() as temporary:
        caches = Path(temporary)
        top = folder or caches
        _write(top / "mixed", images, MIXED, FORMATS)
        _write(top / "part", images // PART, MIXED, FORMATS)
        for name, (side, form) in ALIKE.items():
            _write(top / name, alike, (side,), (form,))
        time.sleep(SETTLED_NS / 1e9)
        cases = {name: _compare(top / name, caches, alike, repeats) for name in ALIKE}
        cases["mixed"] = _compare(top / "mixed", caches, images, 1)
        part = _audit(top / "part", caches / "part")
        more = cases["mixed"]["first"]["driver_mb"] - part["driver_mb"]
        cases["mixed"]["driver_bytes_per_image"] = round(1e6 * more / (images - images // PART))
        sides = {"sides": MIXED, "formats": FORMATS}
        save("audit", {"mixed": sides, "processes": os.cpu_count(), "cases": cases})


def _write(root: Path, count: int, sides: Sequence[int], formats: Sequence[str]) -> None:
    """Images that all differ, in classes of IMAGES_PER_CLASS."""
    if root.exists():
        return
    jobs = ((root, number, sides, formats) for number in range(count))
    with ProcessPoolExecutor() as processes:
        list(processes.map(_draw, jobs, chunksize=AT_ONCE))


def _draw(job: tuple[Path, int, Sequence[int], Sequence[str]]) -> None:
    root, number, sides, formats = job
    side, form = sides[number % len(sides)], formats[number // len(sides) % len(formats)]
    shapes = ((side, side), (side * 3 // 4, side), (side, side * 3 // 4))
    height, width = shapes[number % 3]
    chance = np.random.default_rng(number)
    coarse = chance.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    folder = root / f"class_{number // IMAGES_PER_CLASS:05}"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{number:06}.{SUFFIXES[form]}", form)


def _compare(root: Path, caches: Path, images: int, repeats: int) -> dict[str, Any]:
    """The run in the middle, of those sorted by their ratio of CPU time: others may work on the machine."""
    _decode(root)  # fills the page cache
    runs, load = [], os.getloadavg()[0]
    for repeat in range(repeats):
        cache = caches / f"{root.name}-{repeat}"
        runs.append((_decode(root), _audit(root, cache), _audit(root, cache)))
    runs.sort(key=lambda run: run[1]["cpu_seconds"] / run[0]["cpu_seconds"])
    decoded, first, second = runs[len(runs) // 2]
    ratios = {key: round(first[key] / decoded[key], 2) for key in ("seconds", "cpu_seconds")}
    return {
        "images": images,
        "load_average": round((load + os.getloadavg()[0]) / 2, 1),
        "decoded": decoded,
        "first": first,
        "second": second,
        "first_over_decoded": ratios,
    }


def _decode(root: Path) -> dict[str, float]:
    return _measured("decode", root, os.environ)


def _audit(root: Path, cache: Path) -> dict[str, float]:
    return _measured("read", root, {**os.environ, "BALANCER_CACHE": str(cache)})


def _measured(work: str, root: Path, environment: Any) -> dict[str, float]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from benchmarking import audit; "
    code += f"audit.measure({work!r}, {str(root)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(work: str, root: str) -> None:
    """In a process of its own: print what `decode` or `read` takes."""
    began = time.perf_counter()
    globals()[work](root)
    seconds = time.perf_counter() - began
    mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(used.ru_utime + used.ru_stime for used in (mine, others))
    memory = {"driver_mb": round(mine.ru_maxrss / 1e3, 1), "child_mb": round(others.ru_maxrss / 1e3, 1)}
    print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), **memory}))


def decode(root: str) -> None:
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    with ProcessPoolExecutor() as processes:
        for _ in processes.map(_decode_one, paths, chunksize=AT_ONCE):
            pass


def _decode_one(path: str) -> None:
    with Image.open(path) as image:
        image.convert("RGB").load()


def read(root: str) -> None:
    from balancer.dataset.audit import audit

    audit(root)
