"""Load a transformers model and its processor from a folder: complete safetensors, no custom code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import modeling_utils

from actors.weights import resolve as weights
from actors.weights.file_rules import INCOMPLETE_HINT, ModelKind
from balancer.errors import WeightsError
from balancer.text.quantities import counted

_UNUSED = ("lm_head.",)
"""Of text encoders, which are not asked for words."""


class Pretrained(NamedTuple):
    """`model` is in evaluation mode; `revision` tells its weights from any others."""

    model: Any
    processor: Any
    folder: Path
    revision: str


def load_pretrained(
    model_class: Any,
    processor_class: Any,
    model: str,
    revision: str | None,
    kind: ModelKind,
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Pretrained:
    """`wanted` is the hint of errors."""
    folder = weights.resolve(model, revision, None, kind)
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it warns of missing weights, which are an error here
    try:
        with weights.shown_to_loader(folder, model, None, kind, wanted) as view:
            loaded, report = model_class.from_pretrained(
                view,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=dtype,
            )
            processor = processor_class.from_pretrained(view, local_files_only=True, trust_remote_code=False)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers.
        raise lacking_weights(f"{model}: the weights in {folder}", missing, wanted)
    identity = weights.identity(model, revision, folder)
    return Pretrained(loaded.eval().to(device), processor, folder, identity)


def lacking_weights(which: str, missing: Sequence[str], hint: str) -> WeightsError:
    return WeightsError(f"{which} lack {counted(len(missing), 'tensor')}, such as {missing[0]}", hint=hint)


@contextlib.contextmanager
def refuse_missing_weights(model: str) -> Iterator[None]:
    """WeightsError if a component of a pipeline, which says nothing of it, lacks weights: transformers fills
    them with random numbers, others in each process. Not with versions that report otherwise."""
    report = getattr(modeling_utils, "log_state_dict_report", None)
    if report is None:
        yield
        return

    def checked(**given: Any) -> None:
        missing = sorted(name for name in given["loading_info"].missing_keys if not name.startswith(_UNUSED))
        if missing and sys.exc_info()[0] is None:
            part = type(given["model"]).__name__
            raise lacking_weights(f"{model}: the weights of its {part}", missing, INCOMPLETE_HINT)
        report(**given)

    vars(modeling_utils)["log_state_dict_report"] = checked
    try:
        yield
    finally:
        vars(modeling_utils)["log_state_dict_report"] = report
