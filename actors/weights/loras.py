"""Find the weights of a LoRA: a file, one of a folder, or one of a hub repository at one commit.

Metadata in such a file become arguments of peft, which can import a module that they name. So they are
checked like the configs of a model.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.weights import hub
from actors.weights import view as model_view
from actors.weights.file_rules import IncompleteError
from actors.weights.hashes import file_sha256
from actors.weights.headers import HeaderError, read_metadata
from actors.weights.resolve import Availability
from actors.weights.view import check_files, own_path
from balancer.config.loras import LoraConfig
from balancer.config.schema import Config
from balancer.errors import ConfigError, WeightsError, first_line
from balancer.runs.resume import LORA
from balancer.storage.user_paths import expanded
from balancer.text.json_reading import read_json
from balancer.text.quantities import listed

USUAL_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives."""

HINT = "name a LoRA that was trained for this model, in safetensors, or remove it from generation.loras"

MAX_TENSORS = 10_000
"""peft compares the name of each with all layers, in quadratic time: many thousands would take hours."""

MAX_PATTERNS = 1_000
"""Of ranks and alphas, each. peft compiles each anew for every layer, 0.2 ms a time; published files have up
to one per layer."""

_SUFFIX = ".safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_PICKLE_HINT = "convert them to .safetensors if you trust their origin, or name a LoRA that has them"
_LISTED = 5

_ARGUMENTS = "lora_adapter_metadata"
"""What diffusers passes to `peft.LoraConfig`, as JSON."""

_LARGEST = 2**20
_NUMBERS = frozenset({"r", "lora_alpha", "lora_dropout", "qalora_group_size"})
_SWITCHES = frozenset(
    "ensure_weight_tying fan_in_fan_out inference_mode init_lora_weights lora_bias use_dora"
    " use_rslora".split()
)
_PATTERNS = frozenset({"rank_pattern", "alpha_pattern"})
_WORDS: Mapping[str, re.Pattern[str]] = {
    "peft_type": re.compile("LORA"),
    "peft_version": re.compile(r"[\w.+@-]{1,60}"),
    "bias": re.compile("none"),
    "init_lora_weights": re.compile("gaussian"),
    "megatron_core": re.compile(r"megatron\.core"),  # the default, without effect
}
_MODULE = re.compile(r"[\w.^$-]{1,300}", re.ASCII)
"""peft takes names of modules and tensors as regular expressions, some of which never end."""

_LARGE_NUMBER = re.compile(r"\d{5}|(?<![^.])[\d_]{5,}(?![^.])")
"""diffusers counts up to the number of a layer, in `int`'s spelling, which may have underscores."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """`name` is relative to `folder`."""

    folder: Path
    name: str


def check(wanted: LoraConfig) -> Availability:
    """Find a LoRA without downloading it. Raises within seconds what `resolve` would raise."""
    here = find(wanted)
    if here is not None:
        check_file(here, wanted.model)
        return Availability("cache" if _names_hub(wanted.model) else "folder", here.folder)
    _, file = _on_hub(wanted)
    return Availability("hub", None, file.num_bytes)


def resolve(wanted: LoraConfig) -> LoraFile:
    """The file with its weights, downloaded if necessary. Raises WeightsError."""
    here = find(wanted)
    if here is None:
        name, _ = _on_hub(wanted)
        commit = hub.checked_commit(wanted.model, wanted.revision, "LoRA")
        here = LoraFile(hub.download(wanted.model, commit, "LoRA", [name]), name)
    check_file(here, wanted.model)
    return here


def find(wanted: LoraConfig) -> LoraFile | None:
    """None if it is on the hub and was not downloaded before. WeightsError if it is missing."""
    if _names_hub(wanted.model):
        commit, name = hub.checked_commit(wanted.model, wanted.revision, "LoRA"), wanted.file or USUAL_FILE
        path = hub.cached_file(wanted.model, commit, name)
        return None if path is None else LoraFile(path.parents[name.count("/")], name)
    path = Path(os.path.realpath(expanded(wanted.model)))
    if path.is_dir():
        return LoraFile(path, wanted.file or _only_file(path, wanted.model))
    if not path.exists():
        raise WeightsError(f"{wanted.model}: no such file or folder", hint=hub.place_hint("LoRA"))
    if wanted.file is not None:
        raise ConfigError([f"generation.loras: {wanted.model} is a file; remove `file`, which has no effect"])
    if path.suffix != _SUFFIX:
        raise _no_safetensors(wanted.model, [path.name])
    return LoraFile(path.parent, path.name)


def describe(wanted: LoraConfig) -> dict[str, Any]:
    """The facts about a LoRA that a run records: `model`, `revision`, `weight` and the sha256 of the
    file. Downloads it, because that is little beside the model."""
    here = resolve(wanted)
    try:
        sha256 = file_sha256(here.folder / here.name)
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return {
        "model": wanted.model,
        "revision": wanted.revision,
        "sha256": sha256,
        "weight": wanted.weight,
    }


def refuse_changed(loras: Sequence[LoraConfig], hashes: Sequence[str]) -> None:
    """WeightsError if a file is not the one of which a run records the sha256: an actor that starts late, or
    on another node, may find another one."""
    for wanted, expected in zip(loras, hashes, strict=False):
        if (sha256 := describe(wanted)["sha256"]) != expected:
            raise WeightsError(
                f"{wanted.model} has changed since the run was started: its sha256 was {expected}, and is"
                f" {sha256} now",
                hint="put the former file back and resume, or start another run with the new one",
            )


def describe_each(config: Config) -> dict[str, dict[str, Any]]:
    """By the names that run.json gives them."""
    return {kind: describe(wanted) for kind, wanted in named(config).items()}


def named(config: Config) -> dict[str, LoraConfig]:
    return {f"{LORA}{number}": wanted for number, wanted in enumerate(config.generation.loras, start=1)}


def refuse_faulty(config: Config) -> None:
    """Raise what `check` raises for the LoRAs on this machine. Does not ask the hub."""
    for wanted in config.generation.loras:
        if (here := find(wanted)) is not None:
            check_file(here, wanted.model)


def _names_hub(model: str) -> bool:
    return not expanded(model).is_file() and hub.names_hub(model, "LoRA")


def _only_file(folder: Path, model: str) -> str:
    names = sorted(entry.name for entry in os.scandir(folder))
    fitting = [name for name in names if name.endswith(_SUFFIX)]
    if USUAL_FILE in fitting:
        return USUAL_FILE
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise _no_safetensors(model, names)
    raise _several(model, fitting)


def _several(model: str, names: list[str]) -> WeightsError:
    return WeightsError(
        f"{model}: which file has the weights? There are {listed(names, _LISTED)}",
        hint="name it in `file` of the entry in generation.loras",
    )


def _no_safetensors(model: str, names: list[str]) -> WeightsError:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        reason = f"only pickled weights ({pickles[0]}), which can run code when they are loaded"
        return WeightsError(f"{model}: {reason}", hint=_PICKLE_HINT)
    return IncompleteError(f"{model}: no .safetensors weights", hint=hub.place_hint("LoRA"))


def _on_hub(wanted: LoraConfig) -> tuple[str, hub.HubFile]:
    commit = hub.checked_commit(wanted.model, wanted.revision, "LoRA")
    there, name = hub.list_repository(wanted.model, commit, "LoRA"), wanted.file or USUAL_FILE
    if name in there:
        return name, there[name]
    fitting = sorted(each for each in there if each.endswith(_SUFFIX))
    if not fitting:
        raise _no_safetensors(wanted.model, sorted(there))
    raise _several(wanted.model, fitting)


# ---- what a file may say -----------------------------------------------------------------------------


def check_file(file: LoraFile, model: str) -> None:
    """Raise WeightsError if the file is missing or damaged, leads elsewhere, or has forbidden metadata."""
    check_files(file.folder, [file.name], model)
    try:
        metadata, tensors = read_metadata(own_path(file.folder, file.name, model))
        arguments = read_json((metadata.get(_ARGUMENTS) or "{}").encode())
    except (HeaderError, ValueError) as error:
        raise _forbidden(file, model, f"its metadata are damaged: {first_line(error)}") from error
    if not isinstance(arguments, dict):
        raise _forbidden(file, model, "its metadata are no JSON object")
    if len(tensors) > MAX_TENSORS:
        reason = f"it has {len(tensors):,} tensors, over the limit of {MAX_TENSORS:,}"
        raise _forbidden(file, model, reason)
    for name in tensors:
        if not _MODULE.fullmatch(name):
            raise _forbidden(file, model, f"{name[:80]!r} is no name of a tensor")
        if _LARGE_NUMBER.search(name):
            raise _forbidden(file, model, f"{name[:80]!r} has a number of 5 digits, as no layer has")
    for key, value in arguments.items():
        if value and not _is_allowed(key.rpartition(".")[2], value):
            reason = f"its metadata set {key[:80]!r} to {str(value)[:80]!r}, which is not supported"
            raise _forbidden(file, model, reason)


def _forbidden(file: LoraFile, model: str, reason: str) -> WeightsError:
    return WeightsError(f"{model}: {file.name}: {reason}", hint=HINT)


def _is_allowed(argument: str, value: Any) -> bool:
    if isinstance(value, bool):
        return argument in _SWITCHES
    if argument in _NUMBERS:
        return _is_number(value)
    if argument in _PATTERNS:
        return (
            isinstance(value, dict)
            and len(value) <= MAX_PATTERNS
            and all(_MODULE.fullmatch(module) and _is_number(number) for module, number in value.items())
        )
    if argument == "target_modules":
        return (
            isinstance(value, list)
            and len(value) <= MAX_TENSORS
            and all(isinstance(module, str) and _MODULE.fullmatch(module) for module in value)
        )
    return argument in _WORDS and isinstance(value, str) and _WORDS[argument].fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST  # NaN is not


@contextlib.contextmanager
def shown_to_loader(file: LoraFile, model: str) -> Iterator[Path]:
    """A private folder with nothing but the file; errors as `view.shown_to_loader` raises them."""
    check_file(file, model)
    with model_view.shown_to_loader(file.folder, [file.name], model, HINT) as view:
        yield view
