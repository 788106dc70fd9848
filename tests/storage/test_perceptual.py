"""The perceptual hash is that of `imagehash`, whatever the size and the content."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from balancer.perceptual import SMALL_PIXELS, hash_picture

SIDES = st.integers(1, 700)


def noise(width: int, height: int, coarse: int, seed: int) -> Image.Image:
    size = (max(1, height // coarse), max(1, width // coarse), 3)
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@settings(max_examples=100)
@given(SIDES, SIDES, st.sampled_from((1, 8, 40)), st.integers(0, 9))
def test_it_is_the_same_bit_by_bit(width, height, coarse, seed):
    picture = noise(width, height, coarse, seed)
    assert hash_picture(picture) == str(imagehash.phash(picture))


@pytest.mark.parametrize("width", [1, 16, 31, 32, 33, 100, 101, 512, 2000])
@pytest.mark.parametrize("height", [1, 31, 32, 33, 100, 169, 1001, 1969])
def test_it_is_the_same_around_the_sizes_that_change_the_way(width, height):
    picture = noise(width, height, 3, width + height)
    assert hash_picture(picture) == str(imagehash.phash(picture))


@pytest.mark.parametrize("grey", [0, 1, 127, 128, 254, 255])
@pytest.mark.parametrize("side", [8, 99, 101, 400])
def test_it_is_the_same_for_plain_pictures(grey, side):
    assert side**2 != SMALL_PIXELS
    picture = Image.new("RGB", (side, side), (grey, grey, grey))
    assert hash_picture(picture) == str(imagehash.phash(picture))
