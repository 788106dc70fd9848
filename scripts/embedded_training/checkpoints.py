"""Write training state and exported models atomically, by a rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then move its files to `folder`, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        write(partial)
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            if file.suffix == ".json":
                _tidy_config(file)
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            target.chmod(0o644)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tidy_config(file: Path) -> None:
    content = json.loads(file.read_text())
    content.pop("_name_or_path", None)
    if "dtype" in content:
        # Weights are stored in half precision to be small, and are for use in single precision.
        content["dtype"] = "float32"
    if content.get("_class_name") == "AutoencoderTiny":
        # Set by the constructor, which warns of it when it comes from a file.
        content.pop("block_out_channels", None)
    file.write_text(json.dumps(content, indent=2) + "\n")
