"""Refuse models that need a package that is not installed, before their weights are downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from balancer.errors import WeightsError

_QUANTISED = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors", "gptq": "gptqmodel"}
"""The package that loads weights of a quantisation method."""

_PROCESSORS = {"SmolVLMProcessor": "num2words"}

_SENTENCEPIECE = frozenset(
    "spiece.model spm.model sentencepiece.model sentencepiece.bpe.model tokenizer.model".split()
)
_TIKTOKEN = "tiktoken.model"


def refuse_missing_packages(
    names: Iterable[str], configs: Mapping[str, Mapping[str, Any]], model: str
) -> None:
    """Raise WeightsError with the package to install. `names` are the files that a model is loaded from,
    `configs` the contents of those that are configs."""
    for name, config in configs.items():
        for package, reason in _of_config(config):
            _refuse(package, f"{name} {reason}", model)
    for name, package in _of_tokenizers({*names}):
        _refuse(package, f"{name} is the only vocabulary beside it", model)


def _of_config(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    quantised = config.get("quantization_config")
    method = str(quantised.get("quant_method")) if isinstance(quantised, Mapping) else ""
    if method in _QUANTISED:
        yield _QUANTISED[method], f"says that weights are quantised by {method}"
    processor = str(config.get("processor_class"))
    if processor in _PROCESSORS:
        yield _PROCESSORS[processor], f"names {processor}"


def _of_tokenizers(names: set[str]) -> Iterator[tuple[str, str]]:
    """Vocabularies that transformers has to convert, because there is no tokenizer.json."""
    for name in sorted(names):
        folder, slash, file = name.rpartition("/")
        if f"{folder}{slash}tokenizer.json" in names:
            continue
        if file in _SENTENCEPIECE:
            yield name, "sentencepiece"
        elif file == _TIKTOKEN:
            yield name, "tiktoken"


def _refuse(package: str, reason: str, model: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise WeightsError(
            f"{model}: needs the package {package}, which is not installed: {reason}",
            hint=f"pip install {package.replace('_', '-')}",
        )
