"""Which file has the weights of a LoRA, what it may hold, and what a run records of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from actors.weights import loras
from balancer.config.loras import LoraConfig
from balancer.config.schema import Config
from balancer.errors import ConfigError, WeightsError

TENSORS = {"unet.mid_block.to_q.lora_A.weight": torch.ones(4, 8)}


def save(path: Path, tensors: dict[str, torch.Tensor] | None = None, **arguments: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    metadata = {"lora_adapter_metadata": json.dumps(arguments)} if arguments else None
    save_file(tensors or TENSORS, path, metadata)
    return path


def refusal(model: Path | str, **settings: Any) -> str:
    with pytest.raises((WeightsError, ConfigError)) as caught:
        loras.check(LoraConfig(model=str(model), **settings))
    assert "\n" not in caught.value.message
    assert caught.value.hint or isinstance(caught.value, ConfigError)
    return caught.value.message


def test_the_usual_file_is_taken_else_the_only_one_else_the_named_one(tmp_path):
    other = save(tmp_path / "l" / "style.safetensors")
    wanted = LoraConfig(model=str(tmp_path / "l"))
    assert loras.resolve(wanted).name == "style.safetensors"
    save(tmp_path / "l" / "other.safetensors")
    assert "which file has the weights? There are other.safetensors, style.safetensors" in refusal(
        other.parent
    )
    assert loras.resolve(wanted.model_copy(update={"file": "other.safetensors"})).name == "other.safetensors"
    save(tmp_path / "l" / loras.USUAL_FILE)
    assert loras.resolve(wanted).name == loras.USUAL_FILE
    assert loras.resolve(LoraConfig(model=str(other))).name == "style.safetensors"


def test_a_run_records_the_hash_of_the_file_and_the_weight(tmp_path):
    path = save(tmp_path / "style.safetensors")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    described = loras.describe(LoraConfig(model=str(path), weight=0.5))
    assert described == {"model": str(path), "revision": None, "sha256": sha256, "weight": 0.5}


def test_a_file_that_was_replaced_since_the_run_was_started_is_refused(tmp_path):
    wanted = LoraConfig(model=str(save(tmp_path / "style.safetensors")))
    before = loras.describe(wanted)["sha256"]
    loras.refuse_changed([wanted], [before])
    save(tmp_path / "style.safetensors", {name: -tensor for name, tensor in TENSORS.items()})
    loras.refuse_changed([wanted], ())  # nothing is known of it
    with pytest.raises(WeightsError, match=f"has changed since the run was started: its sha256 was {before}"):
        loras.refuse_changed([wanted], [before])


@pytest.mark.parametrize("name", ["style.pt", "style.bin", "style.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / name).write_bytes(b"pickle")
    for model in (tmp_path / "l", tmp_path / "l" / name):
        assert f"only pickled weights ({name}), which can run code" in refusal(model)
    with pytest.raises(ValidationError, match="safetensors"):
        LoraConfig(model="l", file=name)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "a\\x.safetensors"]
)
def test_a_file_outside_of_its_folder_is_refused(file):
    with pytest.raises(ValidationError, match="file"):
        LoraConfig(model="l", file=file)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    outside = save(tmp_path / "elsewhere.safetensors")
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / loras.USUAL_FILE).symlink_to(outside)
    assert "a link that leads out" in refusal(tmp_path / "l")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("unet.megatron_core", "os"),
        ("unet.megatron_config", {"a": 1}),
        ("unet.megatron_config", True),
        ("unet.target_modules", "(a+)+$"),
        ("unet.target_modules", ["(a+)+$"]),
        ("unet.rank_pattern", {"(a+)+$": 4}),
        ("unet.rank_pattern", {f"x.{number}": 4 for number in range(loras.MAX_PATTERNS + 1)}),
        ("unet.alpha_pattern", {f"x.{number}": 4 for number in range(loras.MAX_PATTERNS + 1)}),
        ("unet.target_modules", ["to_q"] * (loras.MAX_TENSORS + 1)),
        ("unet.r", 10**9),
        ("unet.init_lora_weights", "eva"),
        ("unet.base_model_name_or_path", "some/model"),
        ("unet.unknown", 3),
    ],
)
def test_metadata_name_neither_code_nor_expressions_nor_models(tmp_path, argument, value):
    path = save(tmp_path / "l.safetensors", **{argument: value})
    assert f"its metadata set '{argument}'" in refusal(path)


def test_names_of_tensors_are_no_expressions(tmp_path):
    path = save(tmp_path / "l.safetensors", {"unet.(a+)+$.lora_B.weight": torch.ones(4, 4)})
    assert "is no name of a tensor" in refusal(path)


@pytest.mark.parametrize("number", ["99999", "9_9_9_9_9", "१२३४५"])
@pytest.mark.parametrize(
    "name", ["diffusion_model.double_blocks.{}.img.lora_A.weight", "lora_unet_b_{}_q.alpha"]
)
def test_the_number_of_a_layer_is_one_that_models_have(tmp_path, name, number):
    save(tmp_path / "l.safetensors", {name.format(1234): torch.ones(1)})
    assert loras.check(LoraConfig(model=str(tmp_path / "l.safetensors"))).place == "folder"
    if "_9" in number and name.startswith("lora"):
        return  # it is split at each underscore
    save(tmp_path / "l.safetensors", {name.format(number): torch.ones(1)})
    assert (
        "5 digits" in (message := refusal(tmp_path / "l.safetensors")) or "is no name of a tensor" in message
    )


def test_a_file_of_very_many_tensors_is_refused(tmp_path):
    many = {f"unet.x{number}.lora_A.weight": torch.zeros(1) for number in range(loras.MAX_TENSORS + 1)}
    assert "10,001 tensors, over the limit of 10,000" in refusal(save(tmp_path / "l.safetensors", many))


def test_what_diffusers_writes_is_taken(tmp_path):
    from peft import LoraConfig as PeftConfig

    arguments = PeftConfig(r=4, target_modules=["to_q"], lora_dropout=0.1).to_dict()
    arguments["target_modules"] = [*arguments["target_modules"]]
    path = save(tmp_path / "l.safetensors", **{f"unet.{name}": value for name, value in arguments.items()})
    assert loras.check(LoraConfig(model=str(path))).place == "folder"


def test_a_hub_model_needs_a_commit(tmp_path):
    with pytest.raises(ConfigError) as caught:
        loras.check(LoraConfig(model="some/lora"))
    assert "generation.loras.revision: is missing" in str(caught.value.message)


def test_no_name_is_not_the_working_folder():
    with pytest.raises(ValidationError, match="model"):
        LoraConfig(model="")


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'}: no such file or folder"
    save(tmp_path / "l" / "a.safetensors")
    assert "b.safetensors is missing" in refusal(tmp_path / "l", file="b.safetensors")


@pytest.mark.parametrize("weight", [0, float("nan"), float("inf"), 101])
def test_a_weight_acts_and_is_finite(weight):
    document = {
        "classes": {"cat": {"prompts": ["a cat"]}},
        "target": {"per_class": 2},
        "generation": {"loras": [{"model": "l", "weight": weight}]},
    }
    with pytest.raises(ValidationError, match="weight"):
        Config.model_validate(document)
