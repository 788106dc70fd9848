from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from balancer.verification.challenges import (
    BLENDED,
    FROM_IMAGES,
    FROM_NOTHING,
    KINDS,
    make_challenges,
    make_variations,
)

SIZE = (48, 64)
LABELS = ("basic", "basic", "burnt")


def images(count: int = 3) -> list[np.ndarray]:
    """Smooth colours, each image of another size."""
    random = np.random.default_rng(0)
    return [
        np.asarray(Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((60 + index, 50)))
        for index in range(count)
    ]


def made(kind: str, count: int = 3, seed: int = 0) -> np.ndarray:
    return make_challenges(kind, count, seed, SIZE, images(), LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_images_of_the_size_that_was_asked_for(kind):
    assert made(kind).shape == (3, *SIZE, 3)
    assert made(kind).dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_seed_and_number_and_not_on_how_many_are_made(kind):
    assert np.array_equal(made(kind, 2), made(kind, 4)[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_images(kind):
    assert not np.array_equal(made(kind, 4), made(kind, 4, seed=1))


@pytest.mark.parametrize("kind", FROM_NOTHING)
def test_kinds_from_nothing_need_no_images(kind):
    assert np.array_equal(make_challenges(kind, 2, 0, SIZE), made(kind, 2))


@pytest.mark.parametrize("kind", FROM_IMAGES)
def test_kinds_from_images_need_two(kind):
    with pytest.raises(ValueError, match="1 source images, two needed"):
        make_challenges(kind, 1, 0, SIZE, images(1), LABELS[:1])


def test_no_images_are_an_empty_array():
    assert made("blobs", 0).shape == (0, *SIZE, 3)


def test_a_kind_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        made("unicorns")


@pytest.mark.parametrize("size", [(48, 64), (50, 61), (17, 17)])
def test_shuffled_tiles_fill_the_image_at_any_size(size):
    white = [np.full((*size, 3), 255, np.uint8)] * 2
    for kind in ("shuffled", "cut_and_mixed"):
        assert (make_challenges(kind, 3, 0, size, white) == 255).all()


def test_shuffling_keeps_the_pixels_of_an_image_that_divides_into_tiles():
    source = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    [shuffled] = make_challenges("shuffled", 1, 0, SIZE, [source, source])
    assert not np.array_equal(shuffled, source)
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(source, axis=None))


def test_a_blend_is_half_of_one_class_and_half_of_another():
    sources = [np.full((*SIZE, 3), level, np.uint8) for level in (0, 10, 200)]
    blends = {int(image.mean()) for image in make_challenges(BLENDED, 20, 0, SIZE, sources, LABELS)}
    assert blends == {100, 105}


def test_images_of_one_class_only_are_blended_with_each_other():
    sources = [np.full((*SIZE, 3), level, np.uint8) for level in (0, 100)]
    assert (make_challenges(BLENDED, 3, 0, SIZE, sources, ["basic", "basic"]) == 50).all()


@pytest.mark.parametrize(
    ("rougher", "smoother"), [("white_noise", "pink_noise"), ("pink_noise", "brown_noise")]
)
def test_noise_of_a_steeper_spectrum_is_smoother(rougher, smoother):
    def steps(kind: str) -> float:
        noise = made(kind, 8).astype(float)
        return float(np.abs(np.diff(noise, axis=2)).mean() / noise.std())

    assert steps(rougher) > 1.5 * steps(smoother)


def test_variations_are_close_to_the_image_and_differ_from_each_other():
    image = images(1)[0]
    varied = make_variations(image, 6, 0, SIZE)
    plain = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BICUBIC)).astype(float)
    assert varied.shape == (6, *SIZE, 3)
    for one in varied:
        error = min(np.abs(one - plain).mean(), np.abs(one[:, ::-1] - plain).mean())
        assert error < 0.5 * plain.std()
    assert len({one.tobytes() for one in varied}) == 6


def test_a_variation_does_not_depend_on_how_many_are_made():
    assert np.array_equal(
        make_variations(images(1)[0], 2, 0, SIZE), make_variations(images(1)[0], 5, 0, SIZE)[:2]
    )
