"""What each family of generators takes: measured on small pipelines with random weights."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from actors.models.families import table
from actors.models.families.checks import Asked, find_problems
from actors.models.families.table import sizes_that_work
from actors.models.generator import Generator
from balancer.config.loras import LoraConfig
from balancer.errors import WeightsError
from balancer.scheduling.prompts import Request
from benchmarking.record import keep_option, save
from tiny_loras import save_lora
from tiny_pipelines import PIPELINES, save_pipeline

SIDE, STEPS, BATCH = 64, 2, 4
WIDTHS = (64, 72, 80, 96)
HIDREAM_SIDE = 8
"""Of the latents, so that HiDream makes 64 x 64 pixels instead of 1024 x 1024."""

LEAST_LEVELS = 2
ONE = Request("a burnt pizza", "", 1)
OTHERS = tuple(
    Request(prompt, "", seed)
    for seed, prompt in enumerate(("a cat", "a very long prompt of a basic pizza with olives", "a dog"), 2)
)


@click.command("families")
@keep_option
@click.option("--family", "chosen", multiple=True, help="Only these.")
def command(chosen: tuple[str, ...]) -> None:
    """Every family: does it load, do guidance and negative prompts act, do neighbours and sizes matter, and a
    LoRA?"""
    warnings.simplefilter("ignore")
    table.HIDREAM_SIDE = HIDREAM_SIDE
    with tempfile.TemporaryDirectory() as folder:
        figures = [_family(name, Path(folder) / str(place)) for place, name in enumerate(chosen or PIPELINES)]
    save("families", {"side": SIDE, "steps": STEPS, "batch_size": BATCH, "families": figures})


def _family(name: str, folder: Path) -> dict[str, Any]:
    save_pipeline(name, folder)
    began = time.process_time()
    generator = _load(folder)
    image = _make(generator, [ONE], 5.0)[0]
    family = generator.family
    guidance = _apart(image, _make(generator, [ONE], 8.0)[0])
    off = {scale: _make(generator, [ONE], scale)[0] for scale in (0.0, 1.0)}
    return {
        "family": name,
        "class": generator._loaded.recognised.class_name,
        "seconds": round(time.process_time() - began, 2),
        "guidance": {
            "argument": family.guidance,
            "levels": guidance,
            "levels_from_0_to_1": _apart(off[0.0], off[1.0]),
            "refused": _is_refused(generator, guidance=(("generation.guidance", 5.0),)),
        },
        "negative": {
            "levels": _apart(image, _make(generator, [Request(ONE.prompt, "a dark table", 1)], 5.0)[0]),
            "refused": _is_refused(generator, negatives=("generation.negative_prompt",)),
        },
        "neighbours": {
            "levels": _apart(image, _make(generator, [*OTHERS, ONE], 5.0)[-1]),
            "alone": bool(family.alone),
            "levels_in_a_batch": {kind: _neighbours(folder, kind) for kind in ("float32", "bfloat16")},
        },
        "sizes": {str(width): _size(folder, width) for width in WIDTHS},
        "lora": _lora(name, folder, image),
    }


def _lora(name: str, folder: Path, plain: np.ndarray) -> dict[str, Any]:
    """Levels between an image with a LoRA of the denoiser and one without, and between weights 1 and 0.5; the
    error where it is refused."""
    pipeline = PIPELINES[name]()
    if not hasattr(pipeline, "save_lora_weights"):  # one of another family then
        pipeline = PIPELINES["SDXL"]()
    path = str(save_lora(pipeline, folder.with_name(f"{folder.name}-lora")))
    try:
        whole = _make(_load(folder, loras=(LoraConfig(model=path),)), [ONE], 5.0)[0]
    except WeightsError as error:
        return {"refused": error.message.removeprefix(f"{path}: ")}
    half = _make(_load(folder, loras=(LoraConfig(model=path, weight=0.5),)), [ONE], 5.0)[0]
    return {"levels": _apart(plain, whole), "levels_from_1_to_half": _apart(whole, half), "refused": None}


def _load(
    folder: Path,
    width: int = SIDE,
    height: int = SIDE,
    dtype: str = "float32",
    loras: tuple[LoraConfig, ...] = (),
) -> Generator:
    generator = Generator(
        str(folder),
        None,
        None,
        width,
        height,
        STEPS,
        BATCH,
        device="cpu",
        dtype=dtype,
        threads=1,
        loras=loras,
    )
    if generator.family.fixed_pixels:
        generator._pipeline.default_sample_size = HIDREAM_SIDE
    return generator


def _make(generator: Generator, requests: Sequence[Request], guidance: float) -> np.ndarray:
    return generator.generate(requests, guidance)[0]


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def _is_refused(generator: Generator, **asked: Any) -> bool:
    usual: dict[str, Any] = {
        "guidance": (),
        "every_guidance": (5.0,),
        "negatives": (),
        "width": SIDE,
        "height": SIDE,
    }
    multiple = generator._loaded.recognised.multiple
    return bool(find_problems(generator.family, multiple, Asked(**usual | {"offload": "auto"} | asked)))


def _neighbours(folder: Path, dtype: str) -> int:
    """How far an image is from itself with other neighbours, in batches as the pipeline makes them."""
    generator = _load(folder, dtype=dtype)
    generator.batch_size = BATCH
    copies = _make(generator, [ONE] * BATCH, 5.0)[-1]
    return _apart(copies, _make(generator, [*OTHERS, ONE], 5.0)[-1])


def _size(folder: Path, width: int) -> str:
    """`made`, or the nearest sizes that the refusal names, which are then made."""
    generator = _load(folder, width)
    sizes = sizes_that_work(generator.family, generator._loaded.recognised.multiple, width, SIDE)
    for nearest in sizes:  # a WeightsError if it is not made
        _make(_load(folder, *nearest), [ONE], 5.0)
    if (width, SIDE) in sizes:
        return "made"
    return "refused: " + ", ".join(f"{side} x {height}" for side, height in sizes)
