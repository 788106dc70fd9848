"""Quantised loading: by diffusers, with an optional package, and never without effect."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from actors.models.families.checks import check_generator
from actors.models.families.quantization import quantization_config, refuse_without_effect
from actors.models.generator import Generator
from balancer.config.schema import Config
from balancer.errors import UnavailableError, WeightsError
from balancer.scheduling.prompts import Request
from tiny_pipelines import save_pipeline

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BITSANDBYTES = ("bitsandbytes-8bit", "bitsandbytes-4bit")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.models.families.quantization.find_spec", lambda name: object())


@pytest.mark.parametrize("wanted", [*BITSANDBYTES, "torchao-int8"])
def test_a_missing_package_is_one_line_before_any_download(wanted, monkeypatch):
    monkeypatch.setattr("actors.models.families.quantization.find_spec", lambda name: None)
    document = {
        "classes": {"cat": {"prompts": ["a cat"]}},
        "target": {"per_class": 2},
        "generation": {"model": "some/model", "revision": "0" * 40, "quantization": wanted},
    }
    with pytest.raises(UnavailableError) as caught:
        check_generator(Config.model_validate(document), ask_hub=True)
    package = wanted.partition("-")[0]
    problem = f"{wanted} needs {package}, which is not installed"
    assert caught.value.message == f"generation.quantization: {problem}"
    assert f"balancer[{package}]" in caught.value.hint


@pytest.mark.parametrize("wanted", BITSANDBYTES)
def test_bitsandbytes_without_a_gpu_is_refused(wanted, installed):
    with pytest.raises(UnavailableError, match=f"{wanted} needs a GPU"):
        quantization_config(wanted, torch.float32, CPU)


def test_on_a_gpu_diffusers_is_asked_for_the_denoiser_alone(installed, monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(diffusers, "BitsAndBytesConfig", lambda **settings: asked.append(settings))
    monkeypatch.setattr(diffusers, "PipelineQuantizationConfig", lambda quant_mapping: quant_mapping)
    for wanted in BITSANDBYTES:
        assert quantization_config(wanted, torch.bfloat16, GPU).keys() == {"transformer", "unet"}
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    assert asked == [{"load_in_8bit": True}, four_bits]
    assert quantization_config("none", torch.bfloat16, GPU) is None


@pytest.mark.parametrize(
    "of_the_model", [None, SimpleNamespace(quant_method="bitsandbytes", load_in_4bit=False)]
)
def test_a_model_that_stays_as_it_is_is_refused(of_the_model):
    transformer = SimpleNamespace(config=SimpleNamespace(quantization_config=of_the_model))
    with pytest.raises(WeightsError, match="bitsandbytes-4bit has no effect on SimpleNamespace"):
        refuse_without_effect(SimpleNamespace(transformer=transformer), "bitsandbytes-4bit", "some/model")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
def test_torchao_quantises_on_a_cpu_and_makes_nearly_the_same_image(tmp_path):
    folder = str(save_pipeline("FLUX.1 schnell", tmp_path / "model"))
    made = {}
    for wanted in ("none", "torchao-int8"):
        generator = Generator(folder, None, None, 64, 64, 2, 2, device="cpu", threads=1, quantization=wanted)
        made[wanted] = generator.generate([Request("a pizza", "", 1)], None)[0].astype(int)
        assert ("quantised by torchao-int8" in generator.describe()["placement"]) is (wanted != "none")
    apart = np.abs(made["none"] - made["torchao-int8"])
    assert 0 < apart.max() < 64
    assert apart.mean() < 4
