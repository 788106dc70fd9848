from __future__ import annotations

import json

import pytest

from actors.weights import packages
from actors.weights.file_rules import needed_files
from actors.weights.packages import refuse_missing_packages
from balancer.errors import WeightsError


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("names", "configs", "package"),
    [
        (
            ["processor_config.json"],
            {"processor_config.json": {"processor_class": "SmolVLMProcessor"}},
            "num2words",
        ),
        (["tokenizer/spiece.model"], {}, "sentencepiece"),
        (["tiktoken.model"], {}, "tiktoken"),
        (["config.json"], {"config.json": {"quantization_config": {"quant_method": "gptq"}}}, "gptqmodel"),
    ],
)
def test_a_package_that_a_model_needs_is_named_with_the_file_that_needs_it(names, configs, package):
    with pytest.raises(WeightsError, match=f"package {package}.*not installed: {names[0]}") as caught:
        refuse_missing_packages(names, configs, "a model")
    assert caught.value.hint == f"pip install {package}"


def test_a_vocabulary_beside_a_tokenizer_file_needs_no_package():
    refuse_missing_packages(["a/tokenizer.json", "a/spiece.model"], {}, "a model")
    with pytest.raises(WeightsError, match="b/spiece"):
        refuse_missing_packages(["a/tokenizer.json", "b/spiece.model"], {}, "a model")


def test_a_package_that_is_there_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: object())
    refuse_missing_packages(["tiktoken.model"], {}, "a model")


VERIFIER = {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "words"}}}
PIPELINE = {"_class_name": "X", "tokenizer": ["transformers", "T5Tokenizer"]}


@pytest.mark.parametrize(
    ("kind", "config", "folder", "weights"),
    [
        ("verifier", VERIFIER, "", "open_clip_model.safetensors"),
        ("second judge", {}, "", "model.safetensors"),
        ("generator", PIPELINE, "tokenizer/", ""),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_refused_by_its_files(kind, config, folder, weights):
    names = [f"{folder}tokenizer_config.json", *filter(None, [weights]), "config.json", "model_index.json"]
    with pytest.raises(WeightsError, match=r"has no vocabulary, only .*tokenizer_config.json"):
        needed_files(names, config, None, kind, "a model")
    whole = needed_files([*names, f"{folder}tokenizer.json"], config, None, kind, "a model")
    assert f"{folder}tokenizer.json" in whole


def test_a_tokenizer_of_bytes_needs_no_vocabulary():
    config = json.loads(json.dumps(PIPELINE).replace("T5Tokenizer", "ByT5Tokenizer"))
    needed_files(
        ["tokenizer/tokenizer_config.json", "model_index.json"], config, None, "generator", "a model"
    )
