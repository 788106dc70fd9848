"""Adapters in `generation.loras`, compared with the dataset."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.adapters import compare_adapters
from balancer.config.schema import Config
from balancer.errors import UsageError


def compared(path: Path, **metadata: str) -> list[str]:
    save_file({"unet.to_q.lora_A.weight": torch.ones(4, 8)}, path, metadata)
    document = {
        "classes": {"cat": {"prompts": ["a cat"]}},
        "target": {"per_class": 2},
        "generation": {"loras": [{"model": str(path)}]},
    }
    nothing: Any = SimpleNamespace(images=(), path=path.parent)
    return compare_adapters(Config.model_validate(document), nothing, None, {})


def test_an_adapter_of_ours_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path):
    path = tmp_path / "l.safetensors"
    for damaged in ("{", '{"format": 99}'):
        with pytest.raises(UsageError, match="what it was trained on cannot be read"):
            compared(path, balancer_adapter=damaged)
    assert compared(path, made_by="others") == []
