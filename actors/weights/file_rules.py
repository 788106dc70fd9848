"""Choose the files of a model to load, and refuse unsafe models: rules over names and configs, no I/O.

A loader sees only the files chosen here (`view`), whatever else the folder holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from balancer.errors import WeightsError

ModelKind = Literal["generator", "verifier", "second judge", "safety checker", "backbone"]
MARKER: Mapping[ModelKind, str] = {
    "generator": "model_index.json",
    "verifier": "open_clip_config.json",
    "second judge": "config.json",
    "safety checker": "config.json",
    "backbone": "config.json",
}
"""The file that identifies a model's layout: diffusers, open_clip or transformers."""

INCOMPLETE_HINT = "copy or download the whole model again"
NO_CODE_HINT = (
    "code and files from elsewhere are never loaded; name a model whose class its library has built in"
)

_LIBRARIES = frozenset({"diffusers", "transformers"})
_OTHER_COMPONENTS = frozenset({("stable_diffusion", "StableDiffusionSafetyChecker")})
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

TOKENIZER = frozenset(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt"
    " vocab.txt vocab.bpe spiece.model spm.model sentencepiece.model sentencepiece.bpe.model tokenizer.model"
    " tiktoken.model source.spm target.spm normalizer.json".split()
)
_VOCABULARIES = TOKENIZER - frozenset(
    "tokenizer_config.json special_tokens_map.json added_tokens.json merges.txt normalizer.json".split()
)
_WITHOUT_VOCABULARY = ("ByT5", "Canine", "Perceiver")
"""Tokenizers of bytes and characters."""

_ARCHITECTURE = frozenset({"config.json", "generation_config.json"})
_PROCESSOR = frozenset(
    "preprocessor_config.json processor_config.json video_preprocessor_config.json chat_template.json"
    " chat_template.jinja".split()
)
_SMALL_FILES: Mapping[ModelKind, frozenset[str]] = {
    "generator": TOKENIZER | _ARCHITECTURE | _PROCESSOR | {"scheduler_config.json"},
    "verifier": TOKENIZER | {"config.json"},
    "second judge": TOKENIZER | _ARCHITECTURE | _PROCESSOR,
    "safety checker": TOKENIZER | _ARCHITECTURE | _PROCESSOR,
    "backbone": _ARCHITECTURE | _PROCESSOR,
}
_NOT_CONFIGS = frozenset({"tokenizer.json", "added_tokens.json", "vocab.json", "normalizer.json"})

_WEIGHTS = re.compile(
    r"(model|diffusion_pytorch_model)(\.(?P<variant>[a-zA-Z]\w*))?(-\d{5}-of-(?P<shards>\d{5}))?"
    r"(\.(?P<variant_last>[a-zA-Z]\w*))?\.safetensors"
)
_INDEX = re.compile(r"(model|diffusion_pytorch_model)\.safetensors\.index(\.(?P<variant>[a-zA-Z]\w*))?\.json")
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*")
_WHOLE = "the model"
# In open_clip's order of preference.
_VERIFIER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
)


class IncompleteError(WeightsError):
    """Files are missing, as after an interrupted download."""


def needed_files(
    names: Iterable[str], config: Mapping[str, Any], variant: str | None, kind: ModelKind, model: str
) -> list[str]:
    """The files needed to load a model, given its main config.

    Names are relative posix paths. Raises WeightsError if files are missing or pickled, or if the model
    brings code.
    """
    names = sorted(names)
    small = small_files(names, config, kind, model)
    for folder in _tokenizer_folders(config, kind, small):
        _refuse_no_vocabulary(folder, small, model)
    here = [name for name in names if "/" not in name]
    if kind == "verifier":
        return [*small, _verifier_weights(here, model)]
    if kind != "generator":
        _refuse_adapter("", here, model)
        return small + _weights(_WHOLE, "", here, None, model)
    weights = []
    for component in list_components(config, model):
        here = [name for name in names if name.startswith(f"{component}/")]
        weights += _component_weights(component, here, variant, model)
    if variant and variant not in map(_variant, weights):
        raise WeightsError(
            f"{model}: no weights of variant {variant!r}", hint="correct or remove generation.variant"
        )
    return small + weights


def _tokenizer_folders(config: Mapping[str, Any], kind: ModelKind, small: Sequence[str]) -> list[str]:
    """The folders, each ending in / or empty, in which a loader looks for a vocabulary."""
    if kind == "generator":
        named = {name: value for name, value in config.items() if isinstance(value, list) and len(value) == 2}
        return [
            f"{name}/"
            for name, value in named.items()
            if "Tokenizer" in str(value[1]) and not str(value[1]).startswith(_WITHOUT_VOCABULARY)
        ]
    is_needed = _has_own_tokenizer(config) if kind == "verifier" else kind == "second judge"
    return [""] if is_needed and "tokenizer_config.json" in small else []


def _refuse_no_vocabulary(folder: str, small: Sequence[str], model: str) -> None:
    """transformers makes a tokenizer without its vocabulary, to which all words are the same."""
    here = [name.removeprefix(folder) for name in small if name.startswith(folder)]
    if here and not _VOCABULARIES.intersection(here):
        raise IncompleteError(
            f"{model}: {folder or 'its tokenizer'} has no vocabulary, only {', '.join(here)}",
            hint=INCOMPLETE_HINT,
        )


def small_files(names: Iterable[str], config: Mapping[str, Any], kind: ModelKind, model: str) -> list[str]:
    """The configs, vocabularies and templates needed to load a model."""
    folders = [""]
    if kind == "generator":
        folders = [f"{component}/" for component in list_components(config, model)]
    elif kind == "verifier" and not _has_own_tokenizer(config):
        folders = []
    known = {f"{folder}{name}" for folder in folders for name in _SMALL_FILES[kind]} | {MARKER[kind]}
    return sorted(known.intersection(names))


def _has_own_tokenizer(open_clip_config: Mapping[str, Any]) -> bool:
    """Other open_clip models use the tokenizer that is part of open_clip."""
    parts = open_clip_config.get("model_cfg")
    text = parts.get("text_cfg") if isinstance(parts, dict) else None
    return isinstance(text, dict) and bool(text.get("hf_tokenizer_name"))


def list_components(index: Mapping[str, Any], model: str) -> list[str]:
    """The components of a pipeline. Each must come from a library that does not run the model's code."""
    if not _names_class(index.get("_class_name")):
        raise WeightsError(f"{model}: model_index.json names no pipeline class", hint=NO_CODE_HINT)
    components = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list | dict) or value == [None, None]:
            continue
        if value and all(type(one) in (int, float) for one in value):
            continue  # a setting, such as the layers of Krea 2's text encoder
        _refuse_foreign_component(name, value, model)
        components.append(name)
    return components


def _refuse_foreign_component(name: str, value: Any, model: str) -> None:
    named = isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)
    library, class_name = value if named else (None, None)
    if library not in _LIBRARIES and (library, class_name) not in _OTHER_COMPONENTS:
        raise WeightsError(
            f"{model}: component {name} is from library {library!r}; only diffusers and transformers"
            " components are loaded",
            hint=NO_CODE_HINT,
        )
    if not _names_class(class_name) or str(class_name).endswith(("Pipeline", "OnnxRuntimeModel")):
        raise WeightsError(f"{model}: component {name} is not a model: {class_name!r}", hint=NO_CODE_HINT)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise WeightsError(f"{model}: component {name!r} is not a folder name", hint=NO_CODE_HINT)


def _names_class(value: Any) -> bool:
    return isinstance(value, str) and _CLASS_NAME.fullmatch(value) is not None


def _component_weights(component: str, names: Sequence[str], variant: str | None, model: str) -> list[str]:
    if not names:
        raise IncompleteError(f"{model}: component {component} is missing", hint=INCOMPLETE_HINT)
    _refuse_adapter(f"{component}/", names, model)
    if f"{component}/config.json" not in names:
        return []  # a scheduler or a tokenizer
    return _weights(f"component {component}", f"{component}/", names, variant, model)


def _refuse_adapter(folder: str, names: Sequence[str], model: str) -> None:
    """Refuse an adapter: transformers would load it, and download the base model that it names."""
    if f"{folder}adapter_config.json" in names:
        raise WeightsError(
            f"{model}: {folder}adapter_config.json names a base model elsewhere, which is not loaded",
            hint="merge the adapter into the model, or remove the file",
        )


def _weights(part: str, folder: str, names: Sequence[str], variant: str | None, model: str) -> list[str]:
    """The weight files of one part of a model, in the wanted variant if it exists, and the index if they are
    sharded. `folder` ends in /."""
    by_variant: dict[str | None, list[str]] = {}
    shards: dict[str | None, int] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name.removeprefix(folder))
        if match:
            by_variant.setdefault(_variant(name), []).append(name)
            shards[_variant(name)] = int(match["shards"] or 1)
    chosen = variant if variant in by_variant else None
    if chosen not in by_variant:
        raise _no_safetensors(model, part, names, sorted(v for v in by_variant if v))
    files = by_variant[chosen]
    if len(files) < shards[chosen]:
        raise IncompleteError(
            f"{model}: {part} has {len(files)} of {shards[chosen]} weight files", hint=INCOMPLETE_HINT
        )
    if any("-of-" in name for name in files):
        files = [*_indexes(folder, names, chosen), *files]
    return files


def _indexes(folder: str, names: Sequence[str], variant: str | None) -> list[str]:
    matches = {name: _INDEX.fullmatch(name.removeprefix(folder)) for name in names}
    return [name for name, match in matches.items() if match and match["variant"] == variant]


def _variant(name: str) -> str | None:
    match = _WEIGHTS.fullmatch(name.rpartition("/")[2])
    return match and (match["variant"] or match["variant_last"])


def _verifier_weights(names: Sequence[str], model: str) -> str:
    others = (name for name in names if name.endswith(".safetensors"))
    chosen = next((name for name in (*_VERIFIER_WEIGHTS, *others) if name in names), None)
    if chosen is None:
        raise _no_safetensors(model, _WHOLE, names, ())
    return chosen


def is_config(name: str) -> bool:
    return name.endswith(".json") and name.rpartition("/")[2] not in _NOT_CONFIGS and not is_index(name)


def is_index(name: str) -> bool:
    return _INDEX.fullmatch(name.rpartition("/")[2]) is not None


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _no_safetensors(model: str, part: str, names: Iterable[str], variants: Sequence[str]) -> WeightsError:
    if variants:
        return WeightsError(
            f"{model}: {part} has only weights of variant {', '.join(variants)}",
            hint="name a model with plain weights" if part == _WHOLE else "name it in generation.variant",
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return WeightsError(
            f"{model}: {part} has only pickled weights ({pickles[0]}), which can run code when they are"
            " loaded",
            hint="convert them to .safetensors if you trust their origin, or name a model that has them",
        )
    return IncompleteError(f"{model}: {part} has no .safetensors weights", hint=INCOMPLETE_HINT)
