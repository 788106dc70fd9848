"""Files of models on the hub, at one commit."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from actors.weights.file_rules import ModelKind, is_weights
from balancer.config.schema import EMBEDDED_MODEL
from balancer.errors import ConfigError, WeightsError, first_line
from balancer.storage.user_paths import expanded

_T = TypeVar("_T")

Kind = ModelKind | Literal["LoRA"]

HUB_PREFIX = "hf-hub:"
METADATA_TIMEOUT_S = 5.0
SECTION: Mapping[Kind, str] = {
    "generator": "generation",
    "verifier": "verification",
    "second judge": "verification.second_judge",
    "safety checker": "verification.safety",
    "backbone": "verification.backbone",
    "LoRA": "generation.loras",
}
LAYOUT: Mapping[Kind, str] = {
    "generator": "diffusers",
    "verifier": "open_clip",
    "second judge": "transformers",
    "safety checker": "transformers",
    "backbone": "transformers",
    "LoRA": "LoRA",
}
EMBEDDED_KINDS: frozenset[Kind] = frozenset({"generator", "verifier"})

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """`sha256` comes from the hub, for large files only."""

    num_bytes: int
    sha256: str | None


def names_hub(model: str, kind: Kind) -> bool:
    if model.startswith(HUB_PREFIX):
        return True
    path = expanded(model)
    if path.is_file():
        raise WeightsError(f"{model}: is a file; models are loaded from folders", hint=place_hint(kind))
    return kind != "verifier" and not path.is_dir() and _HUB_ID.fullmatch(model) is not None


def checked_commit(model: str, revision: str | None, kind: Kind) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    given = "is missing" if revision is None else f"{revision!r} is not a commit"
    raise ConfigError(
        [f"{SECTION[kind]}.revision: {given}; the hub model {model} needs the 40 hex digits of one"],
        hint="tags and branches can move; the commit is on the model's page under Files, History",
    )


def list_repository(model: str, commit: str, kind: Kind) -> dict[str, HubFile]:
    """All files of a repository, from one metadata request."""
    import huggingface_hub

    info = from_hub(
        lambda: huggingface_hub.HfApi().model_info(
            hub_id(model), revision=commit, files_metadata=True, timeout=METADATA_TIMEOUT_S
        ),
        model,
        commit,
        kind,
    )
    return {
        file.rfilename: HubFile(file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }


def cached_file(model: str, commit: str, name: str) -> Path | None:
    """A file of a repository that was downloaded before; does not ask the hub."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(hub_id(model), name, revision=commit)
    return Path(cached) if isinstance(cached, str) else None


def download(model: str, commit: str, kind: Kind, files: Sequence[str]) -> Path:
    import huggingface_hub

    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]  # public, but not re-exported
    folder = ""
    # Small files first: then a folder with weights is complete, even after an interrupted download.
    for part in ([name for name in files if not is_weights(name)], list(filter(is_weights, files))):
        if part:
            fetch = functools.partial(
                huggingface_hub.snapshot_download,
                hub_id(model),
                revision=commit,
                allow_patterns=[glob.escape(name) for name in part],
            )
            folder = from_hub(fetch, model, commit, kind)
    return Path(folder)


def from_hub(request: Callable[[], _T], model: str, commit: str, kind: Kind) -> _T:
    """Turn the dozen unrelated errors of the hub client into one-line WeightsErrors."""
    from huggingface_hub import errors

    at = f"{model} at revision {commit}"
    try:
        return request()
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{at} is gated", hint="accept its terms on the hub, then log in with `hf auth login`"
        ) from error
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise WeightsError(
            f"{at} does not exist on the hub, or is private",
            hint=f"correct {SECTION[kind]}.model and {SECTION[kind]}.revision",
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{at} is not on this machine and cannot be downloaded: {first_line(error)}",
            hint=f"run once with access to the hub, or set {SECTION[kind]}.model to a folder with"
            f" the model in {LAYOUT[kind]} layout"
            + (f", or to {EMBEDDED_MODEL!r}" if kind in EMBEDDED_KINDS else ""),
        ) from error


def hub_id(model: str) -> str:
    return model.removeprefix(HUB_PREFIX)


def place_hint(kind: Kind) -> str:
    prefix = HUB_PREFIX if kind == "verifier" else ""
    embedded = f"{EMBEDDED_MODEL!r}, to " if kind in EMBEDDED_KINDS else ""
    return (
        f"set {SECTION[kind]}.model to {embedded}a folder in {LAYOUT[kind]} layout,"
        f" or to a hub model ({prefix}organisation/name)"
    )
