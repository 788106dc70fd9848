from __future__ import annotations

import pytest

from actors.models.offload import choose_offloading, largest_batch

GB = 10**9
SDXL = {
    "unet": 5_135_000_000,
    "text_encoder": 246_000_000,
    "text_encoder_2": 1_389_000_000,
    "vae": 167_000_000,
}
PIXELS = 512 * 512


@pytest.mark.parametrize(
    ("free_gb", "mode"),
    [
        (78.0, "none"),
        (9.0, "none"),
        (7.6, "text_encoders"),
        (6.5, "model"),
        (5.8, "sequential"),
        (2.0, "sequential"),
    ],
)
def test_sdxl_takes_the_fastest_way_that_fits(free_gb, mode):
    assert choose_offloading(SDXL, PIXELS, int(free_gb * GB), "auto", keeps_embeddings=True).mode == mode


def test_larger_images_need_more_room():
    assert choose_offloading(SDXL, PIXELS, 9 * GB, "auto", keeps_embeddings=True).mode == "none"
    assert choose_offloading(SDXL, 4 * PIXELS, 9 * GB, "auto", keeps_embeddings=True).mode == "text_encoders"


def test_the_reason_names_what_was_measured():
    assert choose_offloading(SDXL, PIXELS, 78 * GB, "auto", keeps_embeddings=True).reason == (
        "everything on the GPU: 6.9 GB of weights, 78.0 GB free"
    )
    assert (
        "text encoders on the CPU"
        in choose_offloading(SDXL, PIXELS, int(7.6 * GB), "auto", keeps_embeddings=True).reason
    )


@pytest.mark.parametrize("wanted", ["none", "text_encoders", "model", "sequential"])
def test_what_the_config_asks_for_is_done(wanted):
    found = choose_offloading(SDXL, PIXELS, 78 * GB, wanted, keeps_embeddings=True)
    assert found.mode == wanted
    assert f"generation.offload: {wanted}" in found.reason


@pytest.mark.parametrize(
    ("one_gb", "two_gb", "free_gb", "batch"),
    [
        (1.0, 1.5, 4.0, 4),  # 0.5 GB, and 0.5 GB for each image: 2.75 GB with four, 4.95 GB with eight
        (1.0, 1.5, 4.95, 8),
        (1.0, 1.5, 1.5, 1),
        (1.0, 1.5, 999.0, 32),
        (1.0, 1.0, 10.0, 32),  # nothing more for a second image
        (2.0, 3.0, 0.1, 1),  # one is tried in any case
    ],
)
def test_the_largest_batch_is_a_power_of_two_that_fits(one_gb, two_gb, free_gb, batch):
    assert largest_batch(int(one_gb * GB), int(two_gb * GB), int(free_gb * GB)) == batch


@pytest.mark.parametrize(("free_gb", "mode"), [(9.0, "none"), (7.6, "model"), (2.0, "sequential")])
def test_text_encoders_stay_on_the_gpu_where_every_batch_needs_them(free_gb, mode):
    found = choose_offloading(SDXL, PIXELS, int(free_gb * GB), "auto", keeps_embeddings=False)
    assert found.mode == mode
