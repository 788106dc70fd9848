"""Models from somebody else are data: nothing in their folders runs, or chooses what else is loaded.

Wherever it can, a test looks for an effect: a file that planted code would write, weights from elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.models.generator import Generator
from actors.models.safety import SafetyChecker
from actors.models.verifier import Verifier
from actors.models.vlm_judge import VlmJudge
from actors.weights import resolve as weights
from actors.weights.build_limit import limit_build_size
from actors.weights.file_rules import ModelKind
from actors.weights.headers import WeightsSize
from balancer.cli import main
from balancer.errors import WeightsError
from tests.models.test_verifier import PROPERTIES
from tests.models.test_verifier import save_model as save_verifier
from tests.tiny_models import save_image_classifier, save_vision_language_model

Change = Callable[[dict[str, Any]], object]

EMBEDDED_GENERATOR = Path(weights.__file__).parents[2] / "balancer/embedded/generator"
KINDS: tuple[ModelKind, ...] = ("generator", "verifier", "second judge", "safety checker")
EVIL = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
(Path({flag!r})).write_text("this code was run")
class Evil(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> dict[ModelKind, Path]:
    """A small model of every kind; never changed."""
    root = tmp_path_factory.mktemp("models")
    (root / "verifier").mkdir()
    return {
        "generator": Path(shutil.copytree(EMBEDDED_GENERATOR, root / "generator")),
        "verifier": save_verifier(root / "verifier"),
        "second judge": save_vision_language_model(root / "judge"),
        "safety checker": save_image_classifier(root / "safety", ["fine", "nsfw"]),
    }


@pytest.fixture
def model(originals, tmp_path) -> Callable[[ModelKind], Path]:
    """A copy of the small model of a kind."""
    return lambda kind: Path(shutil.copytree(originals[kind], tmp_path / kind.replace(" ", "_")))


def edit(path: Path, change: Change) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    change(config)
    path.write_text(json.dumps(config))


def put(*keys: str, value: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config.setdefault(key, {})
        config[keys[-1]] = value

    return change


def refusal(folder: Path, kind: ModelKind, variant: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.check(str(folder), None, variant, kind)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(folder))
    return caught.value.message.removeprefix(f"{folder}: ")


def load(kind: ModelKind, folder: Path) -> Any:
    if kind == "generator":
        return Generator(str(folder), None, None, 64, 64, 1, 1, device="cpu", threads=1)
    if kind == "verifier":
        return Verifier(str(folder), None, PROPERTIES, device="cpu", threads=1)
    if kind == "second judge":
        return VlmJudge(str(folder), None, "Is this {} ?", PROPERTIES, device="cpu")
    return SafetyChecker(str(folder), None, ["nsfw"], device="cpu")


# ---- what a config may not say ----------------------------------------------------------------------

OPEN_CLIP = "open_clip_config.json"
TOKENIZER_OPTIONS = ("model_cfg", "text_cfg", "tokenizer_kwargs")


@pytest.mark.parametrize(
    "option",
    [
        {"trust_remote_code": True},
        {"subfolder": "../.."},
        {"tokenizer_file": "/etc/passwd"},
        {"bpe_path": "vocabulary.gz"},
        {"revision": "main"},
        {"use_fast": True},
        {"additional_special_tokens": ["(a+)+$"]},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_verifier_passes_no_options_to_its_tokenizer_but_those_of_open_clip(model, option):
    folder = model("verifier")
    edit(folder / OPEN_CLIP, put(*TOKENIZER_OPTIONS, value=option))
    assert f"tokenizer_kwargs.{next(iter(option))}" in refusal(folder, "verifier")


@pytest.mark.parametrize(
    "keys",
    [
        ("model_cfg", "anything"),
        ("model_cfg", "vision_cfg", "anything"),
        ("model_cfg", "text_cfg", "anything"),
        ("preprocess_cfg", "anything"),
    ],
    ids=".".join,
)
def test_a_verifiers_config_has_no_keys_but_those_of_open_clip(model, keys):
    folder = model("verifier")
    edit(folder / OPEN_CLIP, put(*keys, value=1))
    assert f"{OPEN_CLIP}: {'.'.join(keys[-2:])} is unknown" in refusal(folder, "verifier")


@pytest.mark.parametrize("value", [{"a": 1}, ["word"], [[1]]], ids=str)
def test_a_verifiers_config_has_numbers_and_words_only(model, value):
    folder = model("verifier")
    edit(folder / OPEN_CLIP, put("model_cfg", "vision_cfg", "width", value=value))
    assert "vision_cfg.width is not a number, a word or a short list" in refusal(folder, "verifier")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model_cfg", "text_cfg", "hf_model_name"), "gpt2"),
        (("model_cfg", "text_cfg", "hf_model_name"), "owner/text"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "hf-hub:owner/image"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "local-dir:image"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "owner/image"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "hf_hub:image"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "Local-Dir:image"),
    ],
)
def test_a_tower_of_a_verifier_is_in_its_folder(model, keys, value):
    folder = model("verifier")
    edit(folder / OPEN_CLIP, put(*keys, value=value))
    message = refusal(folder, "verifier")
    assert keys[-1] in message
    assert "another repository" in message


TOKENIZER = {"generator": "tokenizer/tokenizer_config.json"}
CONFIG = {"generator": "text_encoder/config.json"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoTokenizer": ["evil.Evil", None]}),
        ("auto_map", {"AutoTokenizer": ["owner/other--evil.Evil", None]}),
        ("trust_remote_code", True),
        ("custom_pipeline", "evil"),
        ("subfolder", ".."),
        ("revision", "main"),
        ("tokenizer_file", "/etc/passwd"),
        ("tokenizer_file", "../tokenizer.json"),
        ("vocab_file", "elsewhere.txt"),
        ("fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
        ("init_inputs", ["passwd"]),
        ("audio_tokenizer_name_or_path", "elsewhere"),
        ("anything", "owner/model"),
        ("anything", "/etc/passwd"),
        ("anything", "../up"),
        ("anything", "evil.py"),
        ("anything", ["evil.py", "Evil"]),
        ("anything", {"deep": [{"down": "https://example.org/x"}]}),
    ],
    ids=str,
)
def test_a_tokenizers_config_names_nothing_elsewhere(model, kind, key, value):
    folder = model(kind)
    name = TOKENIZER.get(kind, "tokenizer_config.json")
    edit(folder / name, put(key, value=value))
    message = refusal(folder, kind)
    assert message.startswith(name)
    assert key in message


@pytest.mark.parametrize("kind", ["generator", "second judge", "safety checker"])
@pytest.mark.parametrize("nested", [(), ("text_config",)], ids=["top", "nested"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil.Evil"}),
        ("custom_generate", "owner/code"),
        ("use_kernels", True),
        ("_attn_implementation", "owner/kernel"),
        ("_attn_implementation", "kernel"),
        ("attn_implementation", "paged|owner/kernel:function"),
        ("attn_implementation", {"text_config": "kernel"}),
        ("model_type", "owner/type"),
        ("backbone", "owner/backbone"),
        ("architecture", "local-dir:backbone"),
        ("model_args", {"checkpoint_path": "weights.pth"}),
        ("quantization_config", {"quant_method": "mxfp4"}),
        ("quantization_config", {"quant_method": ["mxfp4"]}),
        ("quantization_config", {"quant_method": "gptq", "tokenizer": "owner/words"}),
    ],
    ids=str,
)
def test_an_architecture_names_no_code_no_kernel_and_nothing_elsewhere(model, kind, nested, key, value):
    folder = model(kind)
    name = CONFIG.get(kind, "config.json")
    edit(folder / name, put(*nested, key, value=value))
    message = refusal(folder, kind)
    assert message.startswith(name)
    assert key in message


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("generator", "scheduler/scheduler_config.json"),
        ("generator", "unet/config.json"),
        ("generator", "vae/config.json"),
        ("generator", "model_index.json"),
        ("generator", "tokenizer/special_tokens_map.json"),
        ("second judge", "processor_config.json"),
        ("second judge", "generation_config.json"),
        ("second judge", "chat_template.json"),
        ("second judge", "preprocessor_config.json"),
        ("safety checker", "preprocessor_config.json"),
        ("verifier", "special_tokens_map.json"),
        ("verifier", "config.json"),
    ],
)
@pytest.mark.parametrize("key", ["auto_map", "base_model_name_or_path"])
def test_every_config_of_a_model_is_looked_at(model, kind, name, key):
    folder = model(kind)
    edit(folder / name, put("_part", key, value="evil"))
    assert refusal(folder, kind).startswith(name)


@pytest.mark.parametrize(
    "component",
    [
        ["diffusers", "StableDiffusionPipeline"],
        ["diffusers", "OnnxRuntimeModel"],
        ["diffusers", ["evil.py", "Evil"]],
        ["diffusers", "evil.Evil"],
        [["diffusers"], "UNet2DConditionModel"],
        ["diffusers", "UNet2DConditionModel", "more"],
        [None, "Evil"],
        {"diffusers": "UNet2DConditionModel"},
    ],
    ids=str,
)
def test_a_component_of_a_pipeline_is_one_class_of_a_known_library(model, component):
    folder = model("generator")
    edit(folder / "model_index.json", put("unet", value=component))
    assert refusal(folder, "generator").startswith("component unet is")


def test_a_scheduler_from_a_file_is_refused(model):
    folder = model("generator")
    edit(folder / "scheduler/scheduler_config.json", put("_class_name", value=["evil", "Scheduler"]))
    assert "_class_name is not a class name" in refusal(folder, "generator")


@pytest.mark.parametrize("variant", ["safetensors", "../x", "fp16"])
def test_a_variant_is_one_that_a_weight_file_has(model, variant):
    assert f"no weights of variant '{variant}'" in refusal(model("generator"), "generator", variant)


def test_where_a_model_was_published_from_is_not_shown_to_its_loader(model):
    folder = model("second judge")
    for name in ("config.json", "tokenizer_config.json"):
        edit(folder / name, put("_name_or_path", value="owner/model"))
    edit(folder / "tokenizer_config.json", put("special_tokens_map_file", value="/home/owner/map.json"))
    edit(folder / "tokenizer_config.json", put("tokenizer_file", value=None))
    edit(folder / "config.json", put("pretrained_cfg", "origin_url", value="https://owner.example/model"))
    load("second judge", folder)
    with weights.shown_to_loader(folder, "m", None, "second judge", "") as view:
        assert "owner" not in "".join(path.read_text() for path in view.glob("*config.json"))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_config_of_any_depth_is_one_line(model, depth):
    folder = model("safety checker")
    (folder / "preprocessor_config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    assert refusal(folder, "safety checker").startswith("preprocessor_config.json: ")


def test_long_keys_are_refused_before_they_are_looked_at_again_and_again(model):
    folder = model("safety checker")
    (folder / "preprocessor_config.json").write_text(json.dumps({"_" * 5_000_000: ["a"] * 1_000_000}))
    assert "a key has 5,000,000 characters" in refusal(folder, "safety checker")


# ---- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("generator", "tokenizer/tokenizer.json"),
        ("generator", "unet/diffusion_pytorch_model.safetensors"),
        ("verifier", "tokenizer.json"),
        ("verifier", "open_clip_model.safetensors"),
        ("second judge", "chat_template.jinja"),
        ("safety checker", "preprocessor_config.json"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(model, kind, name):
    folder = model(kind)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder, kind) == f"{name}: not a regular file"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("generator", "vae/config.json"),
        ("verifier", "tokenizer.json"),
        ("second judge", "model.safetensors"),
        ("safety checker", "config.json"),
    ],
)
def test_a_link_out_of_the_folder_is_refused(model, tmp_path, kind, name):
    folder = model(kind)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder, kind) == f"{name} is a link that leads out of the model's folder"


def test_a_component_that_is_a_link_out_of_the_folder_is_refused(model, tmp_path):
    folder = model("generator")
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the model's folder" in refusal(folder, "generator")


def test_links_inside_the_folder_and_a_link_to_it_are_followed(model, tmp_path):
    folder = model("verifier")
    (folder / "tokenizer.json").rename(folder / "words.json")
    (folder / "tokenizer.json").symlink_to("words.json")
    (tmp_path / "link").symlink_to(folder)
    load("verifier", tmp_path / "link")


def test_a_config_that_is_too_large_is_refused_unread(model):
    folder = model("safety checker")
    os.truncate(folder / "config.json", 20_000_000_000)
    assert "over the limit of 20" in refusal(folder, "safety checker")


@pytest.mark.parametrize(
    ("name", "content"),
    [("merges.txt", b"a b\n" * 2_000_001), ("vocab.json", b'{"a":0' + b',"a":0' * 2_000_001 + b"}")],
)
def test_a_vocabulary_has_as_many_entries_as_models_have(model, name, content):
    folder = model("generator")
    (folder / "tokenizer" / name).write_bytes(content)
    assert f"tokenizer/{name}: it has more than 2,000,000 entries" in refusal(folder, "generator")


def test_a_binary_vocabulary_that_is_too_large_is_refused_unread(model):
    folder = model("generator")
    (folder / "tokenizer/tokenizer.model").write_bytes(b"")
    os.truncate(folder / "tokenizer/tokenizer.model", 10**8)
    assert "over the limit of 50" in refusal(folder, "generator")


@pytest.mark.parametrize("kind", ["generator", "second judge", "safety checker"])
def test_an_adapter_does_not_bring_its_base_model(model, kind):
    folder = model(kind)
    name = "text_encoder/adapter_config.json" if kind == "generator" else "adapter_config.json"
    (folder / name).write_text('{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}')
    assert f"{name} names a base model" in refusal(folder, kind)


# ---- what is loaded is what was hashed --------------------------------------------------------------


def test_a_pickle_that_open_clip_prefers_is_not_loaded(model):
    folder = model("verifier")
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    tensors = load_file(folder / "model.safetensors") | {"logit_scale": torch.tensor(9.0)}
    torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    assert load("verifier", folder)._encoder.scale.log().item() == pytest.approx(2.0)


SIBLINGS = ("model.gguf", "tf_model.h5", "flax_model.msgpack", "model.onnx", "pytorch_model.bin", "evil.py")


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_is_shown_nothing_but_what_is_loaded(model, kind):
    folder = model(kind)
    for inner in {folder, *(path.parent for path in folder.rglob("*.safetensors"))}:
        for name in (*SIBLINGS, "other.safetensors", "diffusion_pytorch_model.bin"):
            (inner / name).write_bytes(b"never read")
    before = weights.describe(str(folder), None, None, kind)
    with weights.shown_to_loader(folder, "m", None, kind, "") as view:
        assert view.stat().st_mode & 0o777 == 0o700
        shown = {path.relative_to(view).as_posix() for path in view.rglob("*") if path.is_file()}
    assert not view.exists()
    assert shown <= {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not [name for name in shown if name.rpartition("/")[2] in SIBLINGS or "other" in name]
    load(kind, folder)
    assert before == weights.describe(str(folder), None, None, kind)


def sharded(folder: Path, weight_map: Callable[[str], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: weight_map(name) for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/tmp/x.safetensors", "pytorch_model.bin", "other.safetensors", 7, None, ["x"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["second judge", "safety checker"])
def test_an_index_leads_to_the_weights_that_were_hashed_only(model, kind, shard):
    folder = model(kind)
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "../x.safetensors")
    sharded(folder, lambda _: shard)
    assert "not one of its weight files" in refusal(folder, kind)


def test_an_index_of_a_component_leads_to_its_own_weights_only(model):
    folder = model("generator") / "text_encoder"
    shutil.copy(folder / "model.safetensors", folder.parent / "vae")
    sharded(folder, lambda _: "../vae/model.safetensors")
    assert "not one of its weight files" in refusal(folder.parent, "generator")


@pytest.mark.parametrize("content", [{}, {"weight_map": "x"}, []], ids=str)
def test_an_index_without_a_map_is_one_line(model, content):
    folder = model("safety checker")
    sharded(folder, lambda _: "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert refusal(folder, "safety checker").startswith("model.safetensors.index.json: ")


def test_an_index_that_leads_to_its_own_shards_is_loaded(model):
    folder = model("safety checker")
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    before = load("safety checker", folder).probabilities(pixels)
    sharded(folder, lambda _: "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.fp16.json").write_text('{"weight_map": {"a": "../x"}}')  # not used
    assert load("safety checker", folder).probabilities(pixels) == before


# ---- whatever a loader raises -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [SyntaxError, RecursionError, EOFError, AssertionError, ZeroDivisionError])
def test_whatever_a_loader_raises_is_one_line(model, monkeypatch, kind, error):
    def fail(*_: Any, **__: Any) -> None:
        raise error("first line\nsecond line")

    for loader in (
        "diffusers.AutoPipelineForText2Image.from_pretrained",
        "open_clip.create_model_from_pretrained",
        "transformers.AutoProcessor.from_pretrained",
        "transformers.AutoImageProcessor.from_pretrained",
    ):
        monkeypatch.setattr(loader, fail)
    folder = model(kind)
    with pytest.raises(WeightsError) as caught:
        load(kind, folder)
    assert caught.value.message == f"{folder}: the model in {folder} does not load: first line"


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("verifier", "tokenizer.json", b"{"),
        ("verifier", "tokenizer_config.json", b'{"tokenizer_class": "Nothing", "added_tokens_decoder": 3}'),
        ("second judge", "tokenizer.json", b'{"added_tokens": 3}'),
        ("second judge", "processor_config.json", b'{"patch_size": "x", "image_processor": []}'),
        ("safety checker", "config.json", b'{"model_type": "vit", "id2label": {"x": []}}'),
        ("safety checker", "config.json", b'{"model_type": "nothing"}'),
        ("safety checker", "model.safetensors", b"\x80\x04cos\nsystem\n"),
        ("generator", "scheduler/scheduler_config.json", b'{"trained_betas": "x"}'),
        ("generator", "unet/config.json", b'{"act_fn": [], "block_out_channels": "x"}'),
    ],
)
def test_nonsense_in_a_file_is_one_line(model, kind, name, content):
    folder = model(kind)
    (folder / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load(kind, folder)
    assert "\n" not in caught.value.message
    assert "balancer-model-" not in caught.value.message


# ---- the command line -------------------------------------------------------------------------------


def hostile_tokenizer(folder: Path, flag: Path) -> None:
    """What was shown to run: code in a verifier's folder, by way of its tokenizer."""
    (folder / "evil.py").write_text(EVIL.format(flag=str(flag)))
    edit(folder / OPEN_CLIP, put(*TOKENIZER_OPTIONS, value={"trust_remote_code": True}))
    edit(folder / "tokenizer_config.json", put("auto_map", value={"AutoTokenizer": [None, "evil.Evil"]}))
    edit(folder / "tokenizer_config.json", put("tokenizer_class", value="Evil"))


@pytest.mark.parametrize("command", ["doctor", "plan", "run"])
def test_every_command_refuses_such_a_model_in_one_line(model, project, tmp_path, command):
    folder, flag = model("verifier"), tmp_path / "flag"
    hostile_tokenizer(folder, flag)
    values = yaml.safe_load((project / "configs/demo.yaml").read_text())
    values["verification"] |= {"model": str(folder)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    out = ["--out", str(tmp_path / "run")] if command == "run" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "config.yaml"), *out])
    told = "".join((result.stdout + result.stderr).split())
    assert "open_clip_config.jsonhasa" in told
    assert "Traceback" not in told
    assert not flag.exists()
    assert result.exit_code == 4


def test_a_plan_refuses_a_generator_that_a_run_would_refuse(model, project, tmp_path):
    folder = model("generator")
    edit(folder / "unet/config.json", put("auto_map", value={"AutoModel": "evil.Evil"}))
    values = yaml.safe_load((project / "configs/demo.yaml").read_text())
    values["generation"] |= {"model": str(folder)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "config.yaml"), "--no-preflight"])
    assert result.exit_code == 4
    assert "unet/config.jsonhasanauto_map" in "".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("kind", "name", "keys", "value"),
    [
        ("verifier", OPEN_CLIP, ("model_cfg", "text_cfg", "layers"), 10**9),
        ("verifier", OPEN_CLIP, ("model_cfg", "embed_dim"), 2**70),
        ("verifier", OPEN_CLIP, ("model_cfg", "text_cfg", "vocab_size"), 2**40),
        ("generator", "unet/config.json", ("layers_per_block",), 10**9),
        ("generator", "unet/config.json", ("block_out_channels",), [32, 2**40]),
        ("safety checker", "config.json", ("num_hidden_layers",), 10**9),
        ("safety checker", "config.json", ("hidden_size",), float("inf")),
        ("second judge", "config.json", ("text_config", "num_hidden_layers"), 10**9),
        ("generator", "text_encoder/config.json", ("num_labels",), 10**9),
        ("generator", "tokenizer/tokenizer_config.json", ("extra_ids",), 10**9),
        ("generator", "tokenizer/tokenizer_config.json", ("offset",), 3 * 10**8),
        ("generator", "tokenizer/tokenizer_config.json", ("anything",), 3 * 10**8),
        ("verifier", "tokenizer_config.json", ("extra_ids",), 3 * 10**8),
    ],
)
def test_a_number_that_no_model_has_is_refused_before_it_is_built(model, kind, name, keys, value):
    folder = model(kind)
    edit(folder / name, put(*keys, value=value))
    assert f"{keys[-1]} is " in refusal(folder, kind)
    assert "the limit is" in refusal(folder, kind)


def test_a_config_of_more_values_than_any_model_has_is_refused_within_seconds(model):
    folder = model("generator")
    edit(folder / "text_encoder/config.json", put("anything", value=["a"] * 3_000_000))
    began = time.monotonic()
    assert "has more than 200,000 values" in refusal(folder, "generator")
    assert time.monotonic() - began < 100


# ---- what is built is no larger than the weights ----------------------------------------------------


VISION, TEXT = ("model_cfg", "vision_cfg"), ("model_cfg", "text_cfg")


@pytest.mark.parametrize(
    ("kind", "name", "changes"),
    [
        (
            "verifier",
            OPEN_CLIP,
            {(*VISION, "attentional_pool"): True, (*VISION, "attn_pooler_queries"): 10**8},
        ),
        ("verifier", OPEN_CLIP, {(*VISION, "mlp_ratio"): 2e6}),
        ("verifier", OPEN_CLIP, {(*TEXT, "vocab_size"): 2**24}),
        ("verifier", OPEN_CLIP, {(*TEXT, "context_length"): 60_000}),
        ("verifier", OPEN_CLIP, {(*VISION, "timm_model_name"): "vit_giant_patch14_dinov2"}),
        ("generator", "unet/config.json", {("conv_in_kernel",): 10**6}),
        (
            "generator",
            "unet/config.json",
            {("layers_per_block",): [9999] * 3, ("transformer_layers_per_block",): 9999},
        ),
        ("generator", "text_encoder/config.json", {("num_hidden_layers",): 10_000, ("hidden_size",): 4096}),
        ("second judge", "config.json", {("text_config", "intermediate_size"): 2**24}),
        ("safety checker", "config.json", {("hidden_size",): 2**16, ("intermediate_size",): 2**16}),
    ],
    ids=lambda value: ".".join(next(iter(value))) if isinstance(value, dict) else None,
)
def test_a_model_is_not_built_larger_than_its_weights(model, kind, name, changes):
    folder = model(kind)
    for keys, value in changes.items():
        edit(folder / name, put(*keys, value=value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError) as caught:
        load(kind, folder)
    assert "its configs ask for more than " in caught.value.message
    assert "its weight files have " in caught.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kB


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(10**5, 10**5),
        lambda: torch.randn(10**10),
        lambda: torch.linspace(0, 1, 10**10),
        lambda: torch.zeros(1).repeat(10**10),
        lambda: torch.zeros(1).new_zeros(10**5, 10**5),
        lambda: torch.ones_like(torch.zeros(1).expand(10**10)),
        lambda: torch.cat([torch.zeros(1).expand(10**10)]),
        lambda: torch.nn.Linear(10**5, 10**5),
        lambda: [torch.zeros(1) for _ in range(30_000)],
        lambda: torch.outer(torch.ones(10**5), torch.ones(10**5)),
        lambda: torch.ones(10**5)[:, None] * torch.ones(10**5),
        lambda: torch.ones(1).expand(10**10).double(),
        lambda: torch.nn.functional.one_hot(torch.zeros(10**5, dtype=torch.long), 10**5),
        lambda: torch.nn.functional.pad(torch.ones(1), (0, 10**10)),
        lambda: torch.Tensor(10**5, 10**5),
    ],
)
def test_whatever_makes_a_tensor_is_counted_before_it_takes_memory(make):
    with (
        pytest.raises(WeightsError, match="its configs ask for more than"),
        limit_build_size(WeightsSize(9, 99), "m", ""),
    ):
        make()


def test_a_loader_asks_the_hub_for_nothing(model):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    folder = model("safety checker")
    with (
        weights.shown_to_loader(folder, str(folder), None, "safety checker", ""),
        pytest.raises(OfflineModeIsEnabled),
    ):
        huggingface_hub.HfApi(endpoint="http://127.0.0.1:9").repo_exists("resnet50")
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_refusal_holds_where_a_library_goes_on():
    def build() -> None:
        with limit_build_size(WeightsSize(9, 99), "m", ""), contextlib.suppress(Exception):
            torch.zeros(10**10)

    with pytest.raises(WeightsError, match="64,000,297 numbers"):
        build()


def test_building_what_the_weights_are_is_not_refused():
    with limit_build_size(WeightsSize(2, 10**8), "m", ""), torch.device("meta"):
        torch.nn.Linear(10**4, 10**4)


@pytest.mark.parametrize(
    ("kind", "name", "keys", "value"),
    [
        ("generator", "scheduler/scheduler_config.json", ("num_train_timesteps",), 4 * 10**8),
        ("generator", "scheduler/scheduler_config.json", ("num_train_timesteps",), 0),
        ("generator", "scheduler/scheduler_config.json", ("num_train_timesteps",), 1000.5),
        ("generator", "scheduler/scheduler_config.json", ("solver_order",), 10**9),
        ("generator", "scheduler/scheduler_config.json", ("prediction_type",), "\x1b[2Jevil"),
        ("generator", "vae/config.json", ("upsampling_scaling_factor",), 8),
        ("verifier", OPEN_CLIP, ("preprocess_cfg", "mean"), [1, 2]),
        ("verifier", OPEN_CLIP, ("preprocess_cfg", "mean"), [0.5, 0.5, float("nan")]),
        ("verifier", OPEN_CLIP, ("preprocess_cfg", "std"), [0.5, 0.0, 0.5]),
        ("verifier", OPEN_CLIP, ("preprocess_cfg", "size"), [128, 2**20]),
        ("verifier", OPEN_CLIP, ("preprocess_cfg", "fill_color"), [1] * 1000),
        ("verifier", OPEN_CLIP, (*VISION, "image_size"), 2**20),
        ("safety checker", "preprocessor_config.json", ("size", "height"), 2**20),
        ("safety checker", "preprocessor_config.json", ("image_std"), [0.5, 0.5]),
        ("second judge", "processor_config.json", ("image_processor", "size", "shortest_edge"), 2**20),
    ],
)
def test_a_number_that_images_or_noise_are_made_with_is_one_that_models_have(model, kind, name, keys, value):
    folder = model(kind)
    keys = (keys,) if isinstance(keys, str) else keys
    edit(folder / name, put(*keys, value=value))
    message = refusal(folder, kind)
    assert message.startswith(name)
    assert keys[-1] in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoder_block_out_channels", [1] * 10),
        ("encoder_block_out_channels", [1]),
        ("num_decoder_blocks", [0] * 10),
        ("up_block_types", ["UpDecoderBlock2D"] * 10),
        ("block_out_channels", [1] * 9),
    ],
)
def test_a_decoder_has_the_stages_of_its_encoder(model, key, value):
    folder = model("generator")
    edit(folder / "vae/config.json", lambda config: config.update({"num_encoder_blocks": [1, 1], key: value}))
    message = refusal(folder, "generator")
    assert message.startswith("vae/config.json: its lists of stages differ in length")
    assert f"{key} {len(value)}" in message


@pytest.mark.parametrize("processor", [{"image_processor_type": "Qwen2VLImageProcessorFast"}])
def test_processors_that_count_pixels_have_many(model, processor):
    folder = model("safety checker")
    size = {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}
    edit(folder / "preprocessor_config.json", lambda config: config.update(processor | size))
    weights.check(str(folder), None, None, "safety checker")


def header(folder: Path, change: Callable[[dict[str, Any]], Any], length: int | None = None) -> None:
    """Exchange the header of a verifier's weights."""
    path = folder / "open_clip_model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    told = json.loads(data[8:end])
    changed = change(told)
    content = changed if isinstance(changed, bytes) else json.dumps(told).encode()
    path.write_bytes(
        (len(content) if length is None else length).to_bytes(8, "little") + content + data[end:]
    )


def first(told: dict[str, Any], **values: Any) -> None:
    next(entry for name, entry in told.items() if name != "__metadata__").update(values)


@pytest.mark.parametrize(
    ("change", "length"),
    [
        (lambda told: None, 2**63),
        (lambda told: None, 100_000_000),
        (lambda told: b"{" * 100_000, None),
        (lambda told: b"[]", None),
        (lambda told: told.clear(), None),
        (lambda told: first(told, dtype="X"), None),
        (lambda told: first(told, data_offsets=[0, 2**70]), None),
        (lambda told: first(told, data_offsets=[9, 0]), None),
        (lambda told: first(told, data_offsets=["0", "9"]), None),
        (lambda told: told.update(more={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}), None),
        (lambda told: first(told, shape=[2**63, 2**63]), None),
        (lambda told: first(told, shape=[-1]), None),
    ],
)
def test_a_header_of_weights_that_makes_no_sense_is_one_line(model, change, length):
    folder = model("verifier")
    header(folder, change, length)
    with pytest.raises(WeightsError) as caught:
        load("verifier", folder)
    assert "header" in caught.value.message
    assert caught.value.message.isprintable()


def test_weights_that_claim_to_be_longer_than_their_tensors_are_refused_unhashed(model):
    folder = model("verifier")
    os.truncate(folder / "open_clip_model.safetensors", 10**12)
    assert "bytes of tensors, the file has" in refusal(folder, "verifier")


# ---- code planted everywhere ------------------------------------------------------------------------


PLANTED = (
    "evil", "evil.py", "./evil.py", "evil.Evil", "owner/code--evil.Evil", "owner/code", "../other",
    "{folder}/evil.py", "{folder}", "owner/kernel:Evil", "file://{folder}/evil.py", "local-dir:{folder}",
    ["evil.py", "Evil"],
)  # fmt: skip
"""In the place of a string."""

ADDED = {
    "trust_remote_code": True,
    "auto_map": {
        "AutoConfig": "evil.Evil",
        "AutoTokenizer": [None, "evil.Evil"],
        "AutoProcessor": "evil.Evil",
        "AutoImageProcessor": "evil.Evil",
        "AutoModelForImageClassification": "evil.Evil",
        "AutoModelForImageTextToText": "evil.Evil",
    },
    "tokenizer_class": "Evil",
}
"""To a table."""


def places(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the strings and the tables of a config are."""
    if isinstance(value, str | dict):
        yield keys
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*keys, key))


def plant(config: Any, keys: tuple[Any, ...], value: Any) -> None:
    """A string is replaced, to a table something is added."""
    *way, last = (None, *keys)
    part = {None: config}
    for key in way:
        part = part[key]
    if isinstance(part[last], dict):
        part[last].update(copy.deepcopy(ADDED))
    else:
        part[last] = value


@pytest.fixture(scope="session")
def planted(originals, tmp_path_factory) -> tuple[dict[ModelKind, Path], Path]:
    """Models of every kind with code beside each of their configs, which writes a file when it is run."""
    root = tmp_path_factory.mktemp("planted")
    folders = {kind: Path(shutil.copytree(folder, root / kind)) for kind, folder in originals.items()}
    for config in [*root.rglob("*config.json"), *root.rglob("model_index.json")]:
        (config.parent / "evil.py").write_text(EVIL.format(flag=str(root / "flag")))
    edit(folders["verifier"] / OPEN_CLIP, put(*TOKENIZER_OPTIONS, value={"clean": "lower"}))
    return folders, root / "flag"


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_code_planted_in_any_string_of_any_config_is_never_run(planted, kind, data):
    folder, flag = planted[0][kind], planted[1]
    configs = sorted(path for path in folder.rglob("*.json") if path.name != "tokenizer.json")
    before = {path: path.read_bytes() for path in configs}
    changed = {path: json.loads(content) for path, content in before.items()}
    everywhere = [(path, keys) for path, config in changed.items() for keys in places(config)]
    for path, keys in data.draw(st.lists(st.sampled_from(everywhere), min_size=1, max_size=2, unique=True)):
        value = data.draw(st.sampled_from(PLANTED))
        with contextlib.suppress(KeyError, TypeError):  # what was there has been replaced
            plant(changed[path], keys, value.format(folder=folder) if isinstance(value, str) else value)
    try:
        for path, config in changed.items():
            path.write_text(json.dumps(config))
        with contextlib.suppress(WeightsError):
            weights.check(str(folder), None, None, kind)
            load(kind, folder)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert not flag.exists()


def test_the_planted_code_would_be_found(planted, monkeypatch):
    folders, flag = planted
    exec(compile((folders["verifier"] / "evil.py").read_text(), "evil.py", "exec"), {})
    assert flag.exists()
    flag.unlink()
