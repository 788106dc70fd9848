"""Rubbish for stage 2: pictures of none of the classes, with the negatives that are true of them.

Blends of two classes are no rubbish. Never made here, so that they can be measured unseen: text, clothes,
photographs, textile, charts, digits, scribbles, and what the generator shows after too few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from balancer.dataset.sample import Picture
from balancer.images import Pixels
from balancer.verification.challenges import make_challenges
from embedded_training.checkpoints import load_checkpoint, save_checkpoint
from embedded_training.data import SIZE, Renders
from embedded_training.loop import pixels, step_generator

SEED = 2**48
SOURCES = 768
PER_SHARE = 192
DECODED = 0.4
"""Of the pictures drawn, the share that goes through the autoencoder: what it leaves in a picture must not be
what makes the picture real."""


@dataclass(frozen=True, slots=True)
class Kind:
    share: int
    true: tuple[str, ...]
    """Of NEGATIVES, those that describe it."""


KINDS: Mapping[str, Kind] = {
    "white_noise": Kind(1, ("white noise", "television static")),
    "pink_noise": Kind(1, ("white noise", "television static", "cloudy noise")),
    "brown_noise": Kind(1, ("cloudy noise",)),
    "gradient": Kind(1, ("a smooth colour gradient", "an empty background")),
    "flat": Kind(1, ("a flat colour", "an empty background")),
    "blobs": Kind(1, ("abstract blobs of colour",)),
    "weave": Kind(2, ("stripes and checks", "a repeating pattern")),
    "shuffled": Kind(3, ("scrambled tiles", "a puzzle in the wrong order")),
    "blurred": Kind(2, ("a blurred picture without any detail",)),
    "inverted": Kind(2, ("a photographic negative with inverted colours",)),
    "cut_and_mixed": Kind(3, ("a collage of cut pieces", "scrambled tiles")),
    "shapes": Kind(6, ()),
    "scrambled_phases": Kind(2, ("cloudy noise",)),
    "enlarged": Kind(2, ("a tiny detail hugely enlarged",)),
    "false_colours": Kind(2, ("a picture in false colours",)),
    "pixelated": Kind(1, ("a coarse pixelated mosaic",)),
    "edges": Kind(1, ("a line drawing",)),
    "noised_latents": Kind(4, ("a picture drowned in noise", "an unfinished smudge")),
    "random_latents": Kind(2, ("a corrupted image file",)),
    "strong_latents": Kind(2, ("garish oversaturated colours",)),
    "weak_latents": Kind(3, ("a faint unfinished picture",)),
    "shuffled_latents": Kind(1, ("scrambled tiles", "a corrupted image file")),
    "mean_latents": Kind(1, ("an unfinished smudge",)),
}

FRESH: Mapping[str, int] = {"shuffled": 8, "cut_and_mixed": 2, "blurred": 1, "inverted": 1}
"""How many of these are made anew from the true pictures of each batch: too varied for a kept set."""

OTHER_ORDERS = ((2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1))

Colours = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rubbish:
    """Picture i, uint8 (3, H, W), is of kind `kinds[i]`."""

    pictures: torch.Tensor
    kinds: tuple[str, ...]

    def draw(
        self, count: int, true_pictures: torch.Tensor, step: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, list[str]]:
        """`count` kept pictures, -1 .. 1, and FRESH ones from `true_pictures`, with their kinds."""
        picked = torch.randint(len(self.kinds), (count,), generator=generator)
        parts = [self.pictures[picked].float() / 127.5 - 1.0]
        kinds = [self.kinds[index] for index in picked.tolist()]
        sources = list(_as_pixels(true_pictures))
        for kind, number in FRESH.items():
            made = make_challenges(kind, number, SEED + 1 + step, (SIZE, SIZE), sources)
            parts.append(pixels(made, torch.device("cpu")))
            kinds += [kind] * number
        return torch.cat(parts), kinds


def load_or_make(
    path: Path, renders: Renders, autoencoder: AutoencoderTiny, latents: torch.Tensor
) -> Rubbish:
    """The same rubbish for the same renders and autoencoder, kept in a file for the next time."""
    kinds = tuple(name for name, kind in KINDS.items() for _ in range(kind.share * PER_SHARE))
    if (state := load_checkpoint(path)) is None:
        sources = [np.asarray(picture) for picture in renders.pictures[:SOURCES]]
        labels = [renders.cell(index).class_name for index in range(len(sources))]
        parts = [
            _make(name, kind.share * PER_SHARE, sources, labels, autoencoder, latents)
            for name, kind in KINDS.items()
        ]
        state = {"pictures": torch.cat(parts)}
        save_checkpoint(path, state)
    return Rubbish(state["pictures"], kinds)


def _make(
    kind: str,
    count: int,
    sources: Sequence[Pixels],
    labels: Sequence[str],
    autoencoder: AutoencoderTiny,
    latents: torch.Tensor,
) -> torch.Tensor:
    if kind in FROM_LATENTS:
        generator = step_generator(f"rubbish {kind}", 0)
        return _decode(autoencoder, FROM_LATENTS[kind](latents, count, generator))
    if kind in FROM_SOURCES:
        random = np.random.default_rng([SEED, list(KINDS).index(kind)])
        picked = random.integers(len(sources), size=count)
        made = np.stack([FROM_SOURCES[kind](random, sources[index]) for index in picked])
    else:
        made = make_challenges(kind, count, SEED, (SIZE, SIZE), sources, labels)
    pictures = torch.from_numpy(made).permute(0, 3, 1, 2)
    decoded = round(DECODED * count)
    return torch.cat([_decode(autoencoder, _encode(autoencoder, made[:decoded])), pictures[decoded:]])


@torch.no_grad()
def _encode(autoencoder: AutoencoderTiny, pictures: Picture) -> torch.Tensor:
    parts = [pictures[start : start + 64] for start in range(0, len(pictures), 64)]
    return torch.cat([autoencoder.encode(pixels(part, autoencoder.device)).latents for part in parts])


@torch.no_grad()
def _decode(autoencoder: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    decoded = [autoencoder.decode(part.to(autoencoder.device)).sample for part in latents.split(64)]
    return ((torch.cat(decoded).clamp(-1.0, 1.0) + 1.0) * 127.5).to(torch.uint8).cpu()


def _as_pixels(pictures: torch.Tensor) -> Picture:
    shown = ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1).contiguous().numpy()


# ---- drawn -------------------------------------------------------------------------------------


def _shapes(random: np.random.Generator, source: Pixels) -> Pixels:
    """Textured shapes on a textured ground, in colours of a render, in any colours, or in greys."""
    colours = _colours(random, source)
    ground = np.zeros((SIZE, SIZE, 3)) if random.uniform() < 0.15 else _texture(random, colours)
    few = random.uniform() < 0.5
    largest = random.uniform(0.25, 0.5) if few else random.uniform(0.05, 0.3)
    for _ in range(random.integers(1, 4) if few else random.integers(4, 40)):
        mask = _outline(random, largest)
        ground = ground + (_texture(random, colours) - ground) * mask[:, :, None]
    return (np.clip(ground, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def _colours(random: np.random.Generator, source: Pixels) -> Colours:
    flat = source.reshape(-1, 3)
    colours = flat[random.integers(len(flat), size=12)] / 255.0
    choice = random.uniform()
    if choice < 0.3:
        colours = random.uniform(0.0, 1.0, (12, 3))
    elif choice < 0.6:
        colours = random.uniform(0.0, 1.0, (12, 1)).repeat(3, axis=1)
    return colours


def _texture(random: np.random.Generator, colours: Colours) -> Colours:
    """Flat, or two colours mixed by noise of any coarseness, stretched one way or not."""
    first, second = colours[random.choice(len(colours), 2, replace=False)]
    if random.uniform() < 0.3:
        return np.broadcast_to(first, (SIZE, SIZE, 3))
    rows, columns = random.integers(2, 1 + 2 ** random.integers(2, 7, 2))
    noise = Image.fromarray(random.uniform(0.0, 1.0, (rows, columns)).astype(np.float32))
    share = np.clip(np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC)), 0.0, 1.0)
    strength: float = random.uniform(0.2, 1.0)
    return first + (second - first) * strength * share[:, :, None].astype(np.float64)


def _outline(random: np.random.Generator, largest: float) -> Colours:
    """A polygon, an ellipse or a bar at any place, also with its mirror image; 0 outside, 1 inside."""
    side = 2 * SIZE
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    x, y = random.uniform(0.1, 0.9, 2) * side
    wide, tall = random.uniform(0.3, 1.0, 2) * largest * side
    match random.integers(3):
        case 0:
            draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=255)
        case 1:
            draw.rectangle((x - wide, y - tall, x + wide, y + tall), fill=255)
        case _:
            angles = np.sort(random.uniform(0.0, 2.0 * np.pi, random.integers(3, 10)))
            reach = random.uniform(0.3, 1.0, len(angles))
            corners = zip(x + wide * reach * np.cos(angles), y + tall * reach * np.sin(angles), strict=True)
            draw.polygon([(float(a), float(b)) for a, b in corners], fill=255)
    turned = picture.rotate(random.uniform(0.0, 180.0), center=(float(x), float(y)))
    mask = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255.0
    return np.maximum(mask, mask[:, ::-1]) if random.uniform() < 0.3 else mask


def _scrambled_phases(random: np.random.Generator, source: Pixels) -> Pixels:
    """Noise with the spectrum and the colours of a render."""
    phases = np.angle(np.fft.fft2(random.standard_normal((SIZE, SIZE))))
    phases[0, 0] = 0.0
    spectrum = np.fft.fft2(source.astype(np.float64), axes=(0, 1)) * np.exp(1j * phases)[:, :, None]
    return np.clip(np.fft.ifft2(spectrum, axes=(0, 1)).real, 0.0, 255.0).round().astype(np.uint8)


def _enlarged(random: np.random.Generator, source: Pixels) -> Pixels:
    length = int(random.integers(8, 25))
    top, left = random.integers(SIZE - length + 1, size=2)
    cut = Image.fromarray(source[top : top + length, left : left + length])
    return np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _false_colours(random: np.random.Generator, source: Pixels) -> Pixels:
    """Colours in another order; if the picture is nearly grey, some inverted instead."""
    exchanged = source[:, :, list(OTHER_ORDERS[random.integers(len(OTHER_ORDERS))])]
    if np.abs(exchanged.astype(np.float64) - source).mean() >= 15.0:
        return exchanged
    inverted = source.copy()
    channel = random.integers(3)
    inverted[:, :, channel] = 255 - inverted[:, :, channel]
    return inverted


def _pixelated(random: np.random.Generator, source: Pixels) -> Pixels:
    length = int(random.integers(5, 14))
    small = Image.fromarray(source).resize((length, length), Image.Resampling.BOX)
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def _edges(random: np.random.Generator, source: Pixels) -> Pixels:
    """Dark lines on a light ground, or the other way round; grey or coloured."""
    steps = [np.abs(np.gradient(source.astype(np.float64), axis=axis)) for axis in (0, 1)]
    lines = np.clip(random.uniform(2.0, 6.0) * (steps[0] + steps[1]), 0.0, 255.0)
    if random.uniform() < 0.5:
        lines = lines.mean(axis=2, keepdims=True).repeat(3, axis=2)
    drawn: Pixels = lines.round().astype(np.uint8)
    return drawn if random.uniform() < 0.5 else 255 - drawn


FROM_SOURCES: Mapping[str, Callable[[np.random.Generator, Pixels], Pixels]] = {
    "shapes": _shapes,
    "scrambled_phases": _scrambled_phases,
    "enlarged": _enlarged,
    "false_colours": _false_colours,
    "pixelated": _pixelated,
    "edges": _edges,
}


# ---- from latents ------------------------------------------------------------------------------

FromLatents = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]


def _some(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return latents[torch.randint(len(latents), (count,), generator=generator)]


def _disturbed(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """A little, as generated ones are."""
    clean = _some(latents, count, generator)
    amount = latents.std() * _each(count, 0.0, 0.3, generator)
    return clean + amount * torch.randn(clean.shape, generator=generator)


def _each(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def _noised(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """More noise than picture."""
    clean = _some(latents, count, generator)
    signal = _each(count, 0.0, 0.6, generator)
    noise = latents.std() * torch.randn(clean.shape, generator=generator)
    return signal * clean + (1.0 - signal.square()).sqrt() * noise


def _random(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Constant, or noise of any coarseness."""
    shape = latents.shape[1:]
    made = []
    for number in range(count):
        coarse = (1, 2, 4, 8, 16)[number % 5]
        noise = torch.randn(1, shape[0], coarse, coarse, generator=generator)
        made.append(torch.nn.functional.interpolate(noise, shape[1:], mode="nearest"))
    return latents.std() * _each(count, 0.5, 2.0, generator) * torch.cat(made)


def _strong(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return _disturbed(latents, count, generator) * _each(count, 2.0, 6.0, generator)


def _weak(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return _disturbed(latents, count, generator) * _each(count, 0.0, 0.4, generator)


def _shuffled(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    made = []
    for number, one in enumerate(_some(latents, count, generator)):
        length = one.shape[1] // (2, 4, 8, 16)[number % 4]
        tiles = one.unfold(1, length, length).unfold(2, length, length)
        channels, rows, columns = tiles.shape[:3]
        order = torch.randperm(rows * columns, generator=generator)
        mixed = tiles.reshape(channels, rows * columns, length, length)[:, order]
        grid = mixed.reshape(channels, rows, columns, length, length).permute(0, 1, 3, 2, 4)
        made.append(grid.reshape(one.shape))
    return torch.stack(made)


def _mean(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Several pictures at once: what a sampling begins with."""
    made = [
        _some(latents, int(torch.randint(5, 24, (), generator=generator)), generator).mean(0)
        for _ in range(count)
    ]
    return torch.stack(made)


FROM_LATENTS: Mapping[str, FromLatents] = {
    "noised_latents": _noised,
    "random_latents": _random,
    "strong_latents": _strong,
    "weak_latents": _weak,
    "shuffled_latents": _shuffled,
    "mean_latents": _mean,
}
