"""Load LoRAs into a pipeline, and refuse those of which a part has no effect.

diffusers warns of weights that have no place in a pipeline, and goes on without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from actors.weights import loras as weights
from balancer.config.loras import LoraConfig
from balancer.errors import BalancerError, WeightsError, first_line

_NO_PART = "No LoRA keys associated to"
"""diffusers says so of each text encoder that a LoRA leaves alone."""

_OF_ADAPTERS = ("lora_", "lokr_")
_LOG = "diffusers"
_LONGEST_REASON = 300


def load_loras(pipeline: Any, wanted: Sequence[LoraConfig], dtype: torch.dtype) -> None:
    """They act together, each with its weight. WeightsError if one does not fit the pipeline."""
    if not wanted:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise WeightsError(
            f"{wanted[0].model}: diffusers loads no LoRA into {type(pipeline).__name__}", hint=weights.HINT
        )
    names = [f"adapter{number}" for number, _ in enumerate(wanted)]
    for name, lora in zip(names, wanted, strict=True):
        _load(pipeline, name, lora, dtype)
    pipeline.set_adapters(names, [lora.weight for lora in wanted])


def _load(pipeline: Any, name: str, wanted: LoraConfig, dtype: torch.dtype) -> None:
    file = weights.resolve(wanted)
    with weights.shown_to_loader(file, wanted.model) as view, _warnings() as warned:
        given = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
        try:
            converted = pipeline.lora_state_dict(str(view), **given)
            pipeline.load_lora_weights(str(view), adapter_name=name, **given)
        except BalancerError:
            raise
        except Exception as error:  # of a dozen types, by what does not fit
            reason = " ".join(str(error).split())[:_LONGEST_REASON]
            raise _misfit(pipeline, wanted, file, f"{type(error).__name__}: {reason}") from error
    alphas: Mapping[str, Any] = {}
    if isinstance(converted, tuple):  # with the alphas of kohya's layout
        converted, alphas = converted[0], converted[1] or {}
    tensors = {key: tensor for key, tensor in converted.items() if not key.endswith(".alpha")}
    loaded = list(_adapter_parameters(pipeline, name))
    for parameter in loaded:
        parameter.data = parameter.data.to(dtype)
    problem = warned[:1] or _find_problem(pipeline, tensors, loaded) or _find_nonfinite(loaded, alphas)
    if problem:
        raise _misfit(pipeline, wanted, file, problem[0])
    for part in _parts(pipeline):
        part.eval()  # peft adds its dropout in training mode


def _misfit(pipeline: Any, wanted: LoraConfig, file: weights.LoraFile, reason: str) -> WeightsError:
    name = f"{wanted.model}: {file.name}" if file.name not in wanted.model else wanted.model
    return WeightsError(f"{name} does not fit {type(pipeline).__name__}: {reason}", hint=weights.HINT)


def _find_problem(
    pipeline: Any, tensors: Mapping[str, torch.Tensor], loaded: Sequence[torch.nn.Parameter]
) -> list[str]:
    """Why a part of the weights would have no effect; empty if all act."""
    prefixes = tuple(f"{name}." for name in pipeline._lora_loadable_modules)
    if homeless := [name for name in tensors if not name.startswith(prefixes)]:
        return [f"{len(homeless)} of {len(tensors)} tensors have no place in it, such as {homeless[0]}"]
    if len(loaded) != len(tensors):
        return [f"the file has {len(tensors)} tensors, {len(loaded)} were loaded"]
    there = Counter(_digest(parameter.data) for parameter in loaded)
    for name, tensor in tensors.items():
        digest = _digest(tensor.to(loaded[0].dtype))
        if not there[digest]:
            return [f"{name} was not loaded"]
        there[digest] -= 1
    return []


def _find_nonfinite(loaded: Sequence[torch.nn.Parameter], alphas: Mapping[str, Any]) -> list[str]:
    """One such number turns every image black, which a run would go on making until its budget is spent."""
    if not all(bool(parameter.isfinite().all()) for parameter in loaded):
        return [f"some of its numbers are not finite, or too large for {loaded[0].dtype}"]
    if not all(math.isfinite(float(alpha)) for alpha in alphas.values()):
        return ["some of its alphas are not finite"]
    return []


def _digest(tensor: torch.Tensor) -> bytes:
    numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + numbers.tobytes()).digest()


def _adapter_parameters(pipeline: Any, name: str) -> Iterator[torch.nn.Parameter]:
    for part in _parts(pipeline):
        for key, parameter in part.named_parameters():
            if name in key.split(".") and any(mark in key for mark in _OF_ADAPTERS):
                yield parameter


def _parts(pipeline: Any) -> Iterator[torch.nn.Module]:
    parts = (getattr(pipeline, name, None) for name in pipeline._lora_loadable_modules)
    return (part for part in parts if isinstance(part, torch.nn.Module))


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What diffusers warns of, but for parts without weights. Nothing is printed."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if not message.startswith(_NO_PART):
                collected.append(first_line(ValueError(message))[:_LONGEST_REASON])

    logger = logging.getLogger(_LOG)
    handlers, level = logger.handlers, logger.level
    logger.handlers = [Collector(logging.WARNING)]
    logger.setLevel(logging.WARNING)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it reports weights as missing that it loads later
    try:
        with warnings.catch_warnings():
            # peft warns of a second adapter.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            yield collected
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
        transformers.utils.logging.set_verbosity(verbosity)
