"""Image formats for generated images: encoding time on one core, and size."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from PIL import Image

from balancer.dataset.sample import CLASSES, LIGHTINGS, render
from balancer.images import ENCODINGS, encode_image
from benchmarking.record import keep_option, save

MARK = {"prompt": "a pizza", "model": "a model", "id": "basic/dim_ambient/0001-1"}


@click.command("encode")
@keep_option
@click.option("--side", default=512, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def command(side: int, repeats: int) -> None:
    """Every format of the config, and Pillow's defaults, on rendered pictures with camera noise."""
    pictures = [_noisy(render(name, light, None, 7, side), i) for i, (name, light) in enumerate(_cells())]
    ways: dict[str, Callable[[Any], bytes]] = {name: _as_in_a_run(name) for name in ENCODINGS}
    ways |= {f"{name}, Pillow's defaults": _plain(name) for name in ("png", "webp", "jpeg")}
    save(
        "encode",
        {
            "side": side,
            "pictures": len(pictures),
            "formats": [_measure(way, ways[way], pictures, repeats) for way in ways],
        },
    )


def _cells() -> list[tuple[str, str]]:
    return [(name, light) for name in CLASSES if name != "burnt" for light in LIGHTINGS]


def _noisy(picture: Any, seed: int) -> Any:
    """Renders are smoother than photographs, and compress too well."""
    noise = np.random.default_rng(seed).normal(0, 4, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def _as_in_a_run(name: str) -> Callable[[Any], bytes]:
    return lambda picture: encode_image(picture, MARK, name)


def _plain(name: str) -> Callable[[Any], bytes]:
    def encode(picture: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, name)
        return buffer.getvalue()

    return encode


def _measure(name: str, encode: Callable[[Any], bytes], pictures: list[Any], repeats: int) -> dict[str, Any]:
    began = time.process_time()
    for _ in range(repeats):
        sizes = [len(encode(picture)) for picture in pictures]
    seconds = (time.process_time() - began) / repeats / len(pictures)
    return {
        "format": name,
        "cpu_ms": round(1000 * seconds, 2),
        "kilobytes": round(sum(sizes) / len(sizes) / 1000),
    }
