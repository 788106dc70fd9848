"""Load a transformers model and its processor from a folder: complete safetensors, no custom code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from actors.weights import resolve as weights
from actors.weights.file_rules import ModelKind
from balancer.errors import WeightsError


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
        raise WeightsError(
            f"{model}: the weights in {folder} lack {len(missing)} tensors, such as {missing[0]}", hint=wanted
        )
    identity = weights.identity(model, revision, folder)
    return Pretrained(loaded.eval().to(device), processor, folder, identity)
