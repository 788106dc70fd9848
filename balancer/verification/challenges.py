"""Challenge images: images of none of the classes, to find out whether a verifier says no to them.

They are made from the user's own images or from nothing, without a download. Image i of a kind depends on
the seed, the kind, i and its source images only, not on how many are made. Variations are the opposite:
images that are as good as the real one they are made from.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from balancer.images import Pixels

Field = NDArray[np.float64]
FromNothing = Callable[[np.random.Generator, int, int], Pixels]
FromImages = Callable[[np.random.Generator, Pixels, Pixels], Pixels]

BLENDED = "blended"
"""Half of one class and half of another: neither right nor rubbish, so it is reported on its own."""

_WORDS = "ERROR no image 404 lorem ipsum dolor sit amet SAMPLE draft 2026 total page void None".split()


def make_challenges(
    kind: str,
    count: int,
    seed: int,
    size: tuple[int, int],
    images: Sequence[Pixels] = (),
    labels: Sequence[str] = (),
) -> Pixels:
    """`count` images of one of KINDS, uint8 (count, height, width, 3); `size` is (height, width).

    Kinds in FROM_IMAGES need two or more `images`, of any size, and take them with their `labels`: where an
    image is made of two, they are of different labels if there are any.
    """
    height, width = size
    made = [_make(kind, _generator(seed, kind, index), size, images, labels) for index in range(count)]
    return np.stack(made) if made else np.empty((0, height, width, 3), np.uint8)


def make_variations(image: Pixels, count: int, seed: int, size: tuple[int, int]) -> Pixels:
    """`count` images that show what `image` shows: mirrored, cropped a little, softer, lighter or darker, and
    compressed. Softer, because generated images are."""
    resized = _resized(image, size)
    made = [_vary(_generator(seed, "variation", index), resized) for index in range(count)]
    return np.stack(made) if made else np.empty((0, *resized.shape), np.uint8)


def _vary(random: np.random.Generator, image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    if random.uniform() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    share = random.uniform(0.88, 1.0)
    left, top = random.uniform(0.0, 1.0 - share, 2) * (width, height)
    box = (left, top, left + share * width, top + share * height)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.0, 0.012) * min(height, width)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(random.uniform(0.85, 1.15))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(random.integers(50, 96)))
    return np.asarray(Image.open(buffer))


def _make(
    kind: str,
    random: np.random.Generator,
    size: tuple[int, int],
    images: Sequence[Pixels],
    labels: Sequence[str],
) -> Pixels:
    if kind in FROM_NOTHING:
        return FROM_NOTHING[kind](random, *size)
    first, second = _pick_two(random, len(images), labels)
    return FROM_IMAGES[kind](random, _resized(images[first], size), _resized(images[second], size))


def _generator(seed: int, kind: str, index: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{kind}/{index}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _pick_two(random: np.random.Generator, count: int, labels: Sequence[str]) -> tuple[int, int]:
    if count < 2:
        raise ValueError(f"{count} source images, two needed")
    first = int(random.integers(count))
    others = [index for index in range(count) if index != first]
    unlike = [index for index in others if labels and labels[index] != labels[first]]
    return first, int(random.choice(unlike or others))


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    height, width = size
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _to_pixels(values: Field) -> Pixels:
    return (np.clip(values, 0.0, 1.0) * 255.0).round().astype(np.uint8)


# ---- from nothing ------------------------------------------------------------------------------


def _noise(exponent: float) -> FromNothing:
    """Noise whose amplitude falls with the frequency to this power: 0 white, 1 pink, 2 brown."""

    def make(random: np.random.Generator, height: int, width: int) -> Pixels:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
        amplitude = 1.0 / np.maximum(frequency, 1.0) ** exponent
        amplitude[0, 0] = 0.0
        spectrum = np.fft.fft2(random.standard_normal((3, height, width))) * amplitude
        channels = np.fft.ifft2(spectrum).real
        channels /= channels.std(axis=(1, 2), keepdims=True)
        # Channels that agree give grey noise, those that do not give coloured noise.
        grey = random.uniform()
        mixed = grey * channels[:1] + (1.0 - grey) * channels
        return _to_pixels((random.uniform(0.3, 0.7) + random.uniform(0.08, 0.3) * mixed).transpose(1, 2, 0))

    return make


def _gradient(random: np.random.Generator, height: int, width: int) -> Pixels:
    x, y = _positions(height, width)
    angle = random.uniform(0.0, 2.0 * np.pi)
    straight = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / np.sqrt(2.0) + 0.5
    centre = random.uniform(0.2, 0.8, 2)
    share = straight if random.uniform() < 0.5 else np.hypot(x - centre[0], y - centre[1])
    first, second = random.uniform(0.0, 1.0, (2, 3))
    return _to_pixels(first + (second - first) * share[:, :, None])


def _flat(random: np.random.Generator, height: int, width: int) -> Pixels:
    """One colour, with grain in every other image: without any it would count as blank."""
    grain = random.choice([0.0, 0.02]) * random.standard_normal((height, width, 1))
    return _to_pixels(random.uniform(0.0, 1.0, 3) + grain)


def _blobs(random: np.random.Generator, height: int, width: int) -> Pixels:
    x, y = _positions(height, width)
    picture = np.broadcast_to(random.uniform(0.0, 1.0, 3), (height, width, 3))
    for _ in range(random.integers(3, 16)):
        distance = np.hypot(x - random.uniform(), (y - random.uniform()) * random.uniform(0.5, 2.0))
        softness = random.uniform(0.005, 0.1)
        share = np.clip((random.uniform(0.05, 0.3) - distance) / softness, 0.0, 1.0)[:, :, None]
        picture = picture + (random.uniform(0.0, 1.0, 3) - picture) * share
    return _to_pixels(picture)


def _text(random: np.random.Generator, height: int, width: int) -> Pixels:
    ground, ink = (tuple(map(int, colour)) for colour in random.integers(0, 256, (2, 3)))
    picture = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(1, 9)):
        font = ImageFont.load_default(float(height * random.uniform(0.06, 0.2)))
        at = (random.uniform(-0.1, 0.5) * width, random.uniform(0.0, 0.9) * height)
        draw.text(at, " ".join(random.choice(_WORDS, random.integers(1, 6))), fill=ink, font=font)
    return np.asarray(picture)


def _weave(random: np.random.Generator, height: int, width: int) -> Pixels:
    """Checks, stripes and woven cloth: two waves at a right angle."""
    x, y = _positions(height, width)
    angle, frequency = random.uniform(0.0, np.pi), random.uniform(3.0, 30.0)
    along = np.sin(2.0 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y))
    across = np.sin(2.0 * np.pi * frequency * (np.cos(angle) * y - np.sin(angle) * x))
    share = random.choice([0.0, 0.5, 1.0])
    wave = np.tanh(random.uniform(0.5, 8.0) * (along * (1.0 - share) + along * across * share))
    first, second = random.uniform(0.0, 1.0, (2, 3))
    colours = first + (second - first) * (wave[:, :, None] + 1.0) / 2.0
    return _to_pixels(colours + random.uniform(0.0, 0.06) * random.standard_normal((height, width, 1)))


def _positions(height: int, width: int) -> tuple[Field, Field]:
    """Columns and rows as fractions of the side."""
    y, x = np.mgrid[0:height, 0:width]
    return (x + 0.5) / width, (y + 0.5) / height


# ---- from images -------------------------------------------------------------------------------


def _shuffled(random: np.random.Generator, image: Pixels, _: Pixels) -> Pixels:
    """The tiles of an image in another order."""
    tiles = int(random.choice([4, 8]))
    rows, columns = _edges(image.shape[0], tiles), _edges(image.shape[1], tiles)
    result = image.copy()
    for to, start in enumerate(random.permutation(tiles * tiles)):
        (row, column), (from_row, from_column) = divmod(to, tiles), divmod(int(start), tiles)
        tall, wide = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
        top, left = (
            min(rows[from_row], image.shape[0] - tall),
            min(columns[from_column], image.shape[1] - wide),
        )
        tile = image[top : top + tall, left : left + wide]
        result[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = tile
    return result


def _blurred(random: np.random.Generator, image: Pixels, _: Pixels) -> Pixels:
    radius = random.uniform(0.05, 0.12) * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _inverted(_: np.random.Generator, image: Pixels, __: Pixels) -> Pixels:
    return 255 - image


def _cut_and_mixed(random: np.random.Generator, first: Pixels, second: Pixels) -> Pixels:
    """Tiles cut from anywhere in two images."""
    tiles = int(random.choice([3, 4, 5]))
    height, width = first.shape[:2]
    rows, columns = _edges(height, tiles), _edges(width, tiles)
    result = first.copy()
    for row in range(tiles):
        for column in range(tiles):
            tall, wide = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
            source = (first, second)[int(random.integers(2))]
            top, left = int(random.integers(height - tall + 1)), int(random.integers(width - wide + 1))
            tile = source[top : top + tall, left : left + wide]
            result[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = tile
    return result


def _blended(_: np.random.Generator, first: Pixels, second: Pixels) -> Pixels:
    return ((first.astype(np.uint16) + second) // 2).astype(np.uint8)


def _edges(length: int, parts: int) -> list[int]:
    return [length * part // parts for part in range(parts + 1)]


FROM_NOTHING: Mapping[str, FromNothing] = {
    "white_noise": _noise(0.0),
    "pink_noise": _noise(1.0),
    "brown_noise": _noise(2.0),
    "gradient": _gradient,
    "flat": _flat,
    "blobs": _blobs,
    "text": _text,
    "weave": _weave,
}

FROM_IMAGES: Mapping[str, FromImages] = {
    "shuffled": _shuffled,
    "blurred": _blurred,
    "inverted": _inverted,
    "cut_and_mixed": _cut_and_mixed,
    BLENDED: _blended,
}

KINDS = (*FROM_NOTHING, *FROM_IMAGES)
