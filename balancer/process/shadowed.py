"""Refuse user files that shadow a package the run needs.

Ray's worker processes import from the script's folder and the working folder first. A file `actors.py` there
shadows the package `actors`, and the workers die with an error that names neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from balancer.errors import UnavailableError

OURS = ("actors", "balancer")
THEIRS = tuple(
    "PIL accelerate click diffusers duckdb grpc huggingface_hub jinja2 numpy open_clip pyarrow "
    "pydantic ray rich safetensors scipy sklearn tokenizers torch transformers yaml".split()
)
"""Packages that actors import."""

_HOME = Path(__file__).resolve().parents[2]


def refuse_shadowed() -> None:
    """Raise UnavailableError if a file in the working folder or beside the script shadows a package."""
    for folder in _user_folders():
        for name in (*OURS, *THEIRS):
            for file in (folder / f"{name}.py", folder / name / "__init__.py"):
                if file.is_file() and _is_elsewhere(name, file):
                    shown = file if file.stem == name else file.parent
                    raise UnavailableError(
                        f"{shown} would be imported instead of the package `{name}`, which a run needs",
                        hint="rename it, or work in another folder",
                    )


def _user_folders() -> Iterator[Path]:
    beside_script = [sys.path[0]] if sys.path and not getattr(sys.flags, "safe_path", False) else []
    for folder in dict.fromkeys((os.getcwd(), *beside_script)):
        path = Path(folder).resolve()
        if path != _HOME:
            yield path


def _is_elsewhere(name: str, file: Path) -> bool:
    """Whether the real package lives somewhere else than this file."""
    if name in OURS:
        return not _is_same(_HOME / name / "__init__.py", file)
    others = [entry for entry in sys.path if not _is_same(Path(entry or os.curdir), file.parent)]
    return _is_importable(name, file, others)


def _is_importable(name: str, file: Path, entries: Sequence[str]) -> bool:
    """Whether the package is importable from `entries`, from another file than this one."""
    spec = PathFinder.find_spec(name, list(entries))
    return spec is not None and spec.origin is not None and not _is_same(Path(spec.origin), file)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
