"""Numbers of a model's config that no library may see, however they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.weights.config_rules import checked_config
from actors.weights.loras import _is_allowed
from actors.weights.view import read_checked_config
from balancer.errors import WeightsError

HUGE = 10**400
"""More than a float can hold: Python cannot format or compare it as one."""


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("config.json", {"num_layers": HUGE}),
        ("config.json", {"anything": HUGE}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": HUGE}),
        ("preprocessor_config.json", {"size": {"height": HUGE}}),
        ("preprocessor_config.json", {"image_mean": [HUGE, 1, 1]}),
    ],
)
def test_a_number_of_hundreds_of_digits_is_one_line(tmp_path: Path, name: str, document: dict[str, object]):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="number of hundreds of digits"):
        read_checked_config(tmp_path, name, "m")


def test_the_metadata_of_a_lora_have_numbers_of_usual_size():
    assert _is_allowed("r", 16)
    assert not any(_is_allowed("r", value) for value in (HUGE, float("nan"), float("inf"), -(10**9)))


@pytest.mark.parametrize("length", [77, 131_072, 10**30])
def test_a_text_is_padded_to_the_length_of_its_tokenizer(length: int):
    name = "tokenizer/tokenizer_config.json"
    assert checked_config({"model_max_length": length}, name, "m") == {"model_max_length": length}


def test_a_pipeline_pads_no_text_to_millions_of_tokens():
    with pytest.raises(WeightsError, match="model_max_length is 6e\\+07; the limit is 1,048,576"):
        checked_config({"model_max_length": 60_000_000}, "tokenizer_2/tokenizer_config.json", "m")
    assert checked_config({"model_max_length": 10_485_760}, "tokenizer_config.json", "m")


@pytest.mark.parametrize(
    "value", ["hf_hub:owner/image", "hf_hub:image", "HF-HUB:owner/image", "Local-Dir:/image", "other:image"]
)
@pytest.mark.parametrize("key", ["architecture", "timm_model_name", "backbone"])
def test_an_image_encoder_is_built_in_however_its_name_is_spelled(key: str, value: str):
    with pytest.raises(WeightsError, match=f"config.json: {key} names '{value}'"):
        checked_config({key: value}, "config.json", "m")
    built_in = {key: "vit_base_patch16_224.augreg_in21k", "pretrained_cfg": {"paper_ids": "arXiv:2010.11929"}}
    assert checked_config(built_in, "config.json", "m") == built_in


def test_a_processor_cuts_no_image_into_millions_of_patches():
    config = {"patch_size": 14, "image_processor": {"crop_size": {"height": 1820, "width": 1820}}}
    assert checked_config(config, "processor_config.json", "m") == config
    with pytest.raises(WeightsError, match="an image would have 3,312,400 patches; the limit is 65,536"):
        checked_config(config | {"patch_size": 1}, "processor_config.json", "m")
