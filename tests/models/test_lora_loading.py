"""LoRAs: they act with their weight, on text encoders too; what would be ignored is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.models.generator import Generator
from actors.weights import loras
from balancer.config.loras import LoraConfig
from balancer.errors import WeightsError
from balancer.scheduling.prompts import Request
from tiny_loras import save_lora
from tiny_pipelines import PIPELINES, save_pipeline

SIDE = 64
REQUESTS = [Request("a photo of pizza", "", seed) for seed in (1, 2)]
FILE = loras.USUAL_FILE

pytestmark = pytest.mark.filterwarnings(
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers\.schedulers"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("SDXL", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(PIPELINES["SDXL"](), tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def of_encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = ("text_encoder", "text_encoder_2")
    return save_lora(PIPELINES["SDXL"](), tmp_path_factory.mktemp("lora"), parts, scale=2.0)


def load(model: Path, *wanted: LoraConfig, **settings: Any) -> Generator:
    return Generator(
        model=str(model), revision=None, variant=None, width=SIDE, height=SIDE, steps=2, batch_size=2,
        device="cpu", threads=1, loras=wanted, **settings,
    )  # fmt: skip


def made(model: Path, *wanted: LoraConfig, requests: list[Request] = REQUESTS) -> np.ndarray:
    return load(model, *wanted).generate(requests, 5.0)[0]


def named(folder: Path, **settings: Any) -> LoraConfig:
    return LoraConfig(model=str(folder), **settings)


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def edited(folder: Path, to: Path, change: Any = None, **metadata: str) -> Path:
    tensors = load_file(folder / FILE)
    to.mkdir()
    save_file(change(tensors) if change else tensors, to / FILE, metadata)
    return to


def test_a_lora_acts_by_its_weight_and_several_add_up(model, lora):
    plain, whole, half = made(model), made(model, named(lora)), made(model, named(lora, weight=0.5))
    assert levels_apart(plain, whole) > 20
    assert levels_apart(half, whole) > 20
    two_halves = made(model, named(lora, weight=0.5), named(lora, weight=0.5))
    assert levels_apart(two_halves, whole) <= 1


def test_an_image_with_a_lora_does_not_depend_on_its_neighbours(model, lora):
    both = made(model, named(lora))
    np.testing.assert_array_equal(made(model, named(lora), requests=REQUESTS[1:])[0], both[1])


def test_the_text_encoders_have_their_part_of_a_lora(model, of_encoders):
    with_it = load(model, named(of_encoders))
    first = with_it.generate(REQUESTS, 5.0)[0]
    assert levels_apart(first, made(model)) > 20
    np.testing.assert_array_equal(with_it.generate(REQUESTS, 5.0)[0], first)  # from the cache of embeddings


def in_kohya_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kohya = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{stem}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = tensor
        kohya[f"{stem}.alpha"] = torch.tensor(4.0)  # its rank, so that it scales nothing
    return kohya


def test_the_layout_of_kohya_is_the_same_lora(model, lora, tmp_path):
    kohya = edited(lora, tmp_path / "l", in_kohya_layout)
    assert levels_apart(made(model, named(kohya)), made(model, named(lora))) <= 1


def test_its_dropout_is_for_training_alone(model, lora, tmp_path):
    arguments = {"unet.r": 4, "unet.lora_alpha": 8, "unet.lora_dropout": 0.5, "unet.target_modules": ["to_q"]}
    noisy = edited(
        lora,
        tmp_path / "l",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".to_q." in name},
        lora_adapter_metadata=json.dumps(arguments),
    )
    np.testing.assert_array_equal(made(model, named(noisy)), made(model, named(noisy)))


# ---- what has no effect is refused ----------------------------------------------------------------------


def refusal(model: Path, *wanted: LoraConfig) -> str:
    with pytest.raises(WeightsError) as caught:
        load(model, *wanted)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def renamed(old: str, new: str) -> Any:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(part: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def with_one_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"unet.mid_block.nowhere.lora_A.weight": torch.ones(4, 16)}


def with_number(name: str, value: float) -> Any:
    """In the layout of kohya, in all tensors of this kind."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kohya = in_kohya_layout(tensors)
        return {key: torch.full_like(t, value) if name in key else t for key, t in kohya.items()}

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_number("lora_down", torch.nan), "not finite, or too large for torch.float32"),
        (with_number("alpha", torch.inf), "alphas are not finite"),
        (renamed("unet.", "transformer."), "tensors have no place in it, such as transformer."),
        (renamed("down_blocks.1", "down_blocks.7"), "down_blocks.7"),
        (with_one_more, "nowhere"),
        (lambda tensors: {n: t[:, :-1].clone() if "lora_A" in n else t for n, t in tensors.items()}, "shape"),
        (lambda tensors: tensors | {"unet.conv_in.dora_scale": torch.ones(4)}, "DoRA"),
        (without("lora_B"), "does not fit"),
    ],
    ids=[
        "no number",
        "infinite alpha",
        "another model",
        "unknown layer",
        "one tensor too many",
        "other widths",
        "DoRA",
        "half",
    ],
)
def test_a_lora_that_does_not_fit_is_one_clear_line(model, lora, tmp_path, change, problem):
    message = refusal(model, named(edited(lora, tmp_path / "l", change)))
    assert problem in message
    assert str(tmp_path / "l") in message


def test_a_pipeline_that_takes_none_is_named(lora, tmp_path):
    message = refusal(save_pipeline("PixArt-Sigma", tmp_path / "m"), named(lora))
    assert "diffusers loads no LoRA into PixArtSigmaPipeline" in message
