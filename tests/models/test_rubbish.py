"""Rubbish that the embedded verifier is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.dataset.sample import render
from balancer.verification.negatives import NEGATIVES
from embedded_training import rubbish
from embedded_training.autoencoder import LATENT_CHANNELS, build_autoencoder
from embedded_training.data import CELLS, SIZE, Renders

FEW = 6


@pytest.fixture(scope="module")
def renders():
    pictures = [render(cell.class_name, cell.lighting, cell.burn_level, 1) for cell in CELLS[:FEW]]
    return Renders(np.stack(pictures), 1)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder().eval().requires_grad_(False)


@pytest.fixture
def make(renders, autoencoder, monkeypatch):
    monkeypatch.setattr(rubbish, "PER_SHARE", 3)
    monkeypatch.setattr(rubbish, "SOURCES", FEW)
    latents = torch.randn(FEW, LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    return lambda path: rubbish.load_or_make(path, renders, autoencoder, latents)


def test_every_kind_is_made_in_its_share_and_kept(make, tmp_path, monkeypatch):
    made = make(tmp_path / "rubbish.pt")
    assert made.pictures.shape == (3 * sum(kind.share for kind in rubbish.KINDS.values()), 3, SIZE, SIZE)
    assert len(made.kinds) == len(made.pictures)
    for name, kind in rubbish.KINDS.items():
        assert made.kinds.count(name) == 3 * kind.share
    monkeypatch.setattr(rubbish, "_make", None)
    assert torch.equal(make(tmp_path / "rubbish.pt").pictures, made.pictures)


def test_the_same_rubbish_is_made_again(make, tmp_path):
    assert torch.equal(make(tmp_path / "one.pt").pictures, make(tmp_path / "two.pt").pictures)


def test_pictures_of_a_kind_differ(make, tmp_path):
    made = make(tmp_path / "rubbish.pt")
    for name in rubbish.KINDS:
        first, second = [made.pictures[index] for index, kind in enumerate(made.kinds) if kind == name][:2]
        assert not torch.equal(first, second), name


def test_a_batch_has_kept_and_fresh_rubbish_and_another_step_has_other(make, tmp_path):
    made, true = (
        make(tmp_path / "rubbish.pt"),
        torch.linspace(-1, 1, 4 * 3 * SIZE * SIZE).reshape(4, 3, SIZE, SIZE),
    )
    pictures, kinds = made.draw(5, true, 0, torch.Generator().manual_seed(0))
    assert kinds[5:] == [kind for kind, number in rubbish.FRESH.items() for _ in range(number)]
    assert pictures.shape == (len(kinds), 3, SIZE, SIZE)
    assert pictures.abs().max() <= 1.0
    again, _ = made.draw(5, true, 0, torch.Generator().manual_seed(0))
    other, _ = made.draw(5, true, 1, torch.Generator().manual_seed(0))
    assert torch.equal(again, pictures)
    assert not torch.equal(other[5:], pictures[5:])


def test_false_colours_change_grey_pictures_too():
    random = np.random.default_rng(0)
    grey = np.full((SIZE, SIZE, 3), 60, np.uint8)
    for _ in range(10):
        assert np.abs(rubbish._false_colours(random, grey).astype(float) - grey).mean() >= 15.0


def test_shuffled_latents_are_the_same_numbers_in_another_order():
    latents = torch.arange(2.0 * 6 * 16 * 16).reshape(2, 6, 16, 16)
    for one in rubbish._shuffled(latents, 8, torch.Generator().manual_seed(0)):
        channels = one.flatten(1).sort().values
        assert any(torch.equal(channels, source.flatten(1)) for source in latents)


def test_what_is_true_of_rubbish_is_a_negative():
    assert {wording for kind in rubbish.KINDS.values() for wording in kind.true} <= set(NEGATIVES)


def test_kinds_that_are_measured_unseen_are_not_made():
    assert set(rubbish.KINDS).isdisjoint(
        {"text", "blended", "clothes", "photographs", "textile", "unfinished"}
    )
