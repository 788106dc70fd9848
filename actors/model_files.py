"""Which files of a model are loaded, and which models are refused: rules over names and configs, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from balancer.errors import WeightsError

Kind = Literal["generator", "verifier", "second judge", "safety checker"]
MARKER: Mapping[Kind, str] = {
    "generator": "model_index.json",
    "verifier": "open_clip_config.json",
    "second judge": "config.json",
    "safety checker": "config.json",
}
"""The file that tells a model's layout: that of diffusers, of open_clip, or of transformers."""

INCOMPLETE_HINT = "copy or download the model again, whole"
_NO_CODE_HINT = "pipelines that bring code of their own are not run; name one that diffusers has built in"

_LIBRARIES = frozenset({"diffusers", "transformers"})
_OTHER_COMPONENTS = frozenset({("stable_diffusion", "StableDiffusionSafetyChecker")})
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
_SMALL_FILES = frozenset({".json", ".txt", ".model", ".jinja"})  # configs, vocabularies, chat templates
_COMPONENT_WEIGHTS = re.compile(
    r"(model|diffusion_pytorch_model)(\.(?P<variant>[a-zA-Z]\w*))?(-\d{5}-of-(?P<shards>\d{5}))?"
    r"(\.(?P<variant_last>[a-zA-Z]\w*))?\.safetensors"
)
_WHOLE = "the model"
# In the order in which open_clip prefers them.
_VERIFIER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
)


def needed_files(
    names: Iterable[str], config: Mapping[str, Any], variant: str | None, kind: Kind, model: str
) -> list[str]:
    """Those of a model's files that loading it takes, given the content of its main config file.

    Names are relative posix paths. Raises WeightsError for what is missing, pickled, or foreign code.
    """
    names = sorted(names)
    here = [name for name in names if "/" not in name]
    if kind == "verifier":
        _refuse_foreign_towers(config, model)
        return [*small_files(here), _verifier_weights(here, model)]
    if kind != "generator":
        refuse_code(config, MARKER[kind], model)
        return small_files(here) + _weights(_WHOLE, "", here, None, model)
    files = [MARKER["generator"]]
    for component in components_of(config, model):
        here = [name for name in names if name.startswith(f"{component}/")]
        files += small_files(here) + _component_weights(component, here, variant, model)
    if variant and not any(f".{variant}" in name for name in files):
        raise WeightsError(
            f"{model}: no weights of variant {variant!r}", hint="correct or remove generation.variant"
        )
    return files


def components_of(index: Mapping[str, Any], model: str) -> list[str]:
    """The components of a pipeline; every one must come from a library that is known not to run code."""
    if not isinstance(index.get("_class_name"), str):
        raise WeightsError(f"{model}: model_index.json names no pipeline class", hint=_NO_CODE_HINT)
    components = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value[:1] == [None]:
            continue
        library, class_name = (*value, None, None)[:2]
        if library not in _LIBRARIES and (library, class_name) not in _OTHER_COMPONENTS:
            raise WeightsError(
                f"{model}: component {name} is of library {library!r}; only diffusers and transformers"
                " components are loaded",
                hint=_NO_CODE_HINT,
            )
        if PurePosixPath(name).name != name or name in {".", ".."}:
            raise WeightsError(f"{model}: component {name!r} is not a folder name", hint=_NO_CODE_HINT)
        components.append(name)
    return components


def _component_weights(component: str, names: Sequence[str], variant: str | None, model: str) -> list[str]:
    if not names:
        raise WeightsError(f"{model}: component {component} is missing", hint=INCOMPLETE_HINT)
    if f"{component}/config.json" not in names:
        return []  # a scheduler or a tokenizer
    return _weights(f"component {component}", f"{component}/", names, variant, model)


def _weights(part: str, folder: str, names: Sequence[str], variant: str | None, model: str) -> list[str]:
    """The weight files of one part of a model, of the wanted variant if it has that; `folder` ends in /."""
    by_variant: dict[str | None, list[str]] = {}
    shards: dict[str | None, int] = {}
    for name in names:
        match = _COMPONENT_WEIGHTS.fullmatch(name.removeprefix(folder))
        if match:
            key = match["variant"] or match["variant_last"]
            by_variant.setdefault(key, []).append(name)
            shards[key] = int(match["shards"] or 1)
    chosen = variant if variant in by_variant else None
    if chosen not in by_variant:
        raise _no_safetensors(model, part, names, sorted(v for v in by_variant if v))
    if len(by_variant[chosen]) < shards[chosen]:
        raise WeightsError(
            f"{model}: {part} has {len(by_variant[chosen])} of {shards[chosen]} weight files",
            hint=INCOMPLETE_HINT,
        )
    return by_variant[chosen]


def _verifier_weights(names: Sequence[str], model: str) -> str:
    others = (name for name in names if name.endswith(".safetensors"))
    found = next((name for name in (*_VERIFIER_WEIGHTS, *others) if name in names), None)
    if found is None:
        raise _no_safetensors(model, _WHOLE, names, ())
    return found


def _refuse_foreign_towers(config: Mapping[str, Any], model: str) -> None:
    """Towers that open_clip would fetch from a second, unpinned place."""
    parts = config.get("model_cfg", {})
    image, text = parts.get("vision_cfg", {}), parts.get("text_cfg", {})
    if text.get("hf_model_name") or ":" in str(image.get("timm_model_name") or ""):
        raise WeightsError(
            f"{model}: a tower is to be fetched from another repository, which cannot be pinned",
            hint="choose a verification.model that holds all of its weights",
        )


def code_carriers(names: Iterable[str]) -> list[str]:
    """The files of a transformers model that can name code of its own, which `refuse_code` looks for."""
    return [name for name in names if "/" not in name and name.endswith("config.json")]


def refuse_code(config: Any, name: str, model: str) -> None:
    """A config that names classes from files beside it, at any depth."""
    if isinstance(config, Mapping):
        if config.get("auto_map"):
            raise WeightsError(
                f"{model}: {name} has an auto_map, so the model brings code of its own",
                hint="such code is not run; name a model of a kind that transformers has built in",
            )
        for part in config.values():
            refuse_code(part, name, model)


def small_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if PurePosixPath(name).suffix in _SMALL_FILES]


def _no_safetensors(model: str, part: str, names: Iterable[str], variants: Sequence[str]) -> WeightsError:
    if variants:
        return WeightsError(
            f"{model}: {part} has weights of variant {', '.join(variants)} only",
            hint="name a model with plain weights" if part == _WHOLE else "name it in generation.variant",
        )
    pickles = [name for name in names if PurePosixPath(name).suffix in _PICKLES]
    if pickles:
        return WeightsError(
            f"{model}: {part} has its weights in pickle form only ({pickles[0]}), which can run code"
            " when it is loaded",
            hint="convert it to .safetensors where you trust its origin, or name a model that has them",
        )
    return WeightsError(f"{model}: {part} has no .safetensors weights", hint=INCOMPLETE_HINT)
