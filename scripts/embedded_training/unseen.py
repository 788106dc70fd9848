"""Pictures of none of the classes that nothing is trained, tuned or chosen on: for measuring only."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits, load_sample_images

from balancer.dataset.sample import Picture
from balancer.images import Pixels
from embedded_training.data import SIZE


def unseen_pictures(count: int, clothes: Path | None) -> dict[str, Picture]:
    """`count` pictures of each kind; `clothes` is t10k-images-idx3-ubyte.gz of Fashion-MNIST."""
    rng = np.random.default_rng(1)
    kinds = {"photographs": _photographs(count, rng), "textile": _textile(count, rng)}
    if clothes is not None:
        with gzip.open(clothes) as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        picked = images[rng.choice(len(images), count, replace=False)]
        kinds["clothes"] = np.stack([_enlarged(Image.fromarray(image)) for image in picked])
    kinds["digits"] = _digits(count, rng)
    kinds["charts"] = np.stack([_chart(rng) for _ in range(count)])
    kinds["scribbles"] = np.stack([_scribble(rng) for _ in range(count)])
    return kinds


def _enlarged(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _photographs(count: int, rng: np.random.Generator) -> Picture:
    """Squares cut from the two photographs, of a temple and of a flower, that scikit-learn ships."""
    pictures, images = [], load_sample_images().images
    for number in range(count):
        image, side = images[number % 2], int(rng.integers(100, 420))
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        pictures.append(_enlarged(Image.fromarray(image[top : top + side, left : left + side])))
    return np.stack(pictures)


def _textile(count: int, rng: np.random.Generator) -> Picture:
    """Grey cloth, thread by thread over and under."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    pictures = []
    for _ in range(count):
        thread = int(rng.integers(3, 9))
        over = (x // thread + y // thread) % 2 == 0
        bent = np.sin(np.pi * (np.where(over, x, y) % thread + 0.5) / thread)
        warp, weft = rng.normal(0.0, 0.06, (2, SIZE))
        grey = (
            rng.uniform(0.3, 0.7) + 0.25 * (bent - 0.6) + np.where(over, warp[x // thread], weft[y // thread])
        )
        grey += rng.normal(0.0, 0.04, grey.shape)
        picture = Image.fromarray((np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8))
        turned = picture.rotate(rng.uniform(-8.0, 8.0), Image.Resampling.BICUBIC, fillcolor=128)
        pictures.append(_enlarged(turned))
    return np.stack(pictures)


def _digits(count: int, rng: np.random.Generator) -> Picture:
    """Handwritten digits of 8 x 8 pixels, enlarged, dark on light or light on dark."""
    images = (load_digits().images / 16.0 * 255.0).astype(np.uint8)
    picked = images[rng.choice(len(images), count, replace=False)]
    picked[::2] = 255 - picked[::2]
    return np.stack([_enlarged(Image.fromarray(image)) for image in picked])


def _chart(rng: np.random.Generator) -> Pixels:
    """Bars or lines with axes."""
    picture = Image.new("RGB", (4 * SIZE, 4 * SIZE), _colour(rng, 200))
    draw, side = ImageDraw.Draw(picture), 4 * SIZE
    draw.line([(0.1 * side, 0.05 * side), (0.1 * side, 0.9 * side), (0.95 * side, 0.9 * side)], "black", 6)
    values = rng.uniform(0.1, 0.85, (int(rng.integers(1, 4)), int(rng.integers(4, 12))))
    places = np.linspace(0.15, 0.9, values.shape[1]) * side
    bars = rng.uniform() < 0.5
    for row in values[: 1 if bars else None]:
        colour = _colour(rng, 0)
        if bars:
            for place, value in zip(places, row, strict=True):
                draw.rectangle((place - 14, (0.9 - value) * side, place + 14, 0.9 * side), colour)
        else:
            draw.line(
                [
                    (float(place), float((0.9 - value) * side))
                    for place, value in zip(places, row, strict=True)
                ],
                colour,
                8,
            )
    return _enlarged(picture)


def _scribble(rng: np.random.Generator) -> Pixels:
    """Loose strokes on a plain ground."""
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), _colour(rng, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 6)):
        steps = rng.normal(0.0, 12.0, (int(rng.integers(20, 80)), 2)).cumsum(axis=0)
        smooth = np.stack([np.convolve(axis, np.ones(5) / 5.0, "valid") for axis in steps.T], axis=1)
        points = rng.uniform(0.2, 0.8, 2) * 2 * SIZE + smooth
        draw.line([(float(x), float(y)) for x, y in points], _colour(rng, 0), int(rng.integers(2, 9)))
    return _enlarged(picture)


def _colour(rng: np.random.Generator, least: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(least, 256, 3).tolist()
    return red, green, blue
