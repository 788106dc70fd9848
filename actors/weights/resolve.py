"""Find a model's files: in the package, in a folder, or on the hub at one commit.

A model is data: safetensors, vocabularies, and configs that name neither code nor files elsewhere. Hub models
need a full commit hash. `check` finds a model without downloading it; `resolve` downloads missing files and
returns the folder; `shown_to_loader` is the only way to load it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from actors.weights import hub
from actors.weights import view as model_view
from actors.weights.file_rules import (
    MARKER,
    IncompleteError,
    ModelKind,
    is_config,
    needed_files,
    small_files,
)
from actors.weights.hashes import combine_hashes, weight_files, weights_sha256
from actors.weights.packages import refuse_missing_packages
from actors.weights.view import check_files, list_files, read_checked_config, read_config
from balancer.config.schema import EMBEDDED_MODEL, MAX_EMBEDDING_DIM, Config
from balancer.errors import WeightsError
from balancer.storage.regular_files import NotRegularError, open_regular
from balancer.storage.user_paths import expanded
from balancer.text.quantities import size

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Availability:
    """`folder` is None only if `place` is `hub`; then `missing_bytes` must be downloaded."""

    place: Literal["embedded", "folder", "cache", "hub"]
    folder: Path | None
    missing_bytes: int = 0


def wanted_models(config: Config) -> dict[ModelKind, tuple[str, str | None, str | None]]:
    """Model, revision and variant of every model in a config: the arguments of `check` and `resolve`."""
    made, judged = config.generation, config.verification
    wanted: dict[ModelKind, tuple[str, str | None, str | None]] = {
        "generator": (made.model, made.revision, made.variant),
        "verifier": (judged.model, judged.revision, None),
    }
    if judged.second_judge is not None:
        wanted["second judge"] = (judged.second_judge.model, judged.second_judge.revision, None)
    if judged.safety is not None:
        wanted["safety checker"] = (judged.safety.model, judged.safety.revision, None)
    if judged.backbone is not None:
        wanted["backbone"] = (judged.backbone.model, judged.backbone.revision, None)
    return wanted


def check(model: str, revision: str | None, variant: str | None, kind: ModelKind) -> Availability:
    """Find a model without downloading it. Raises within seconds what `resolve` would raise."""
    if model == EMBEDDED_MODEL and kind in hub.EMBEDDED_KINDS:
        folder = Path(str(resources.files("balancer").joinpath("embedded", kind)))
        return Availability("embedded", _checked_folder(folder, model, variant, kind))
    if not hub.names_hub(model, kind):
        return Availability("folder", _checked_folder(expanded(model), model, variant, kind))
    commit = hub.checked_commit(model, revision, kind)
    cached = _cached(model, commit, variant, kind)
    if cached is not None:
        return Availability("cache", cached)
    files = _files_on_hub(model, commit, variant, kind)
    return Availability("hub", None, sum(file.num_bytes for file in files.values()))


def is_here(model: str, revision: str | None, kind: ModelKind) -> bool:
    """Whether a model can be loaded without a download. Does not ask the hub."""
    if model == EMBEDDED_MODEL and kind in hub.EMBEDDED_KINDS:
        return True
    if hub.names_hub(model, kind):
        return _cached(model, hub.checked_commit(model, revision, kind), None, kind) is not None
    return expanded(model).is_dir()


def configs_folder(model: str, revision: str | None, variant: str | None, *, ask_hub: bool) -> Path | None:
    """A folder with the configs of a generator, whose weights may still be on the hub; None if the hub would
    have to be asked and is not. Raises what `check` raises."""
    if hub.names_hub(model, "generator") and model != EMBEDDED_MODEL:
        commit = hub.checked_commit(model, revision, "generator")
        cached = _cached(model, commit, variant, "generator")
        if cached is not None or not ask_hub:
            return cached
        _files_on_hub(model, commit, variant, "generator")  # downloads the configs
        return hub.download(model, commit, "generator", [MARKER["generator"]])
    return check(model, revision, variant, "generator").folder


def refuse_faulty(config: Config) -> None:
    """Raise what `check` raises for the models on this machine. Does not ask the hub, and ignores missing and
    incomplete models."""
    for kind, (model, revision, variant) in wanted_models(config).items():
        if model == EMBEDDED_MODEL and kind in hub.EMBEDDED_KINDS:
            continue
        if hub.names_hub(model, kind):
            _cached(model, hub.checked_commit(model, revision, kind), variant, kind)
        elif expanded(model).is_dir():
            with contextlib.suppress(IncompleteError):
                _checked_folder(expanded(model), model, variant, kind)


def resolve(model: str, revision: str | None, variant: str | None, kind: ModelKind) -> Path:
    """The folder with the model's files, downloaded if necessary. Raises WeightsError."""
    available = check(model, revision, variant, kind)
    if available.folder is not None:
        return available.folder
    commit = hub.checked_commit(model, revision, kind)
    files = _files_on_hub(model, commit, variant, kind)
    log.info("downloading %s, %s", model, size(sum(file.num_bytes for file in files.values())))
    return _checked_folder(hub.download(model, commit, kind, list(files)), model, variant, kind)


@contextlib.contextmanager
def shown_to_loader(
    folder: Path, model: str, variant: str | None, kind: ModelKind, hint: str
) -> Iterator[Path]:
    """A private folder to load a resolved model from; see `view.shown_to_loader`."""
    with model_view.shown_to_loader(folder, _needed(folder, model, variant, kind), model, hint) as view:
        yield view


def describe(model: str, revision: str | None, variant: str | None, kind: ModelKind) -> dict[str, Any]:
    """The facts about a model that a run records before loading it: `model`, `revision` (None for a folder),
    the `sha256` of its weights (from the hub if they are not here yet; None if the hub has none) and, for a
    verifier, `embedding_dim`. Raises what `check` raises."""
    folder = check(model, revision, variant, kind).folder
    if folder is None:
        commit = hub.checked_commit(model, revision, kind)
        sha256 = _sha256_on_hub(_files_on_hub(model, commit, variant, kind))
        folder = hub.download(model, commit, kind, [MARKER[kind]])
    else:
        sha256 = weights_sha256(folder, _needed(folder, model, variant, kind))
    described: dict[str, Any] = {
        "model": model,
        "revision": identity(model, revision, folder) or None,
        "sha256": sha256,
    }
    if kind == "verifier":
        described["embedding_dim"] = _embedding_dim(read_config(folder, MARKER[kind], model), model)
    return described


def _sha256_on_hub(files: Mapping[str, hub.HubFile]) -> str | None:
    hashes = {name: files[name].sha256 for name in weight_files(files)}
    known = {name: sha256 for name, sha256 in hashes.items() if sha256 is not None}
    return combine_hashes(known) if len(known) == len(hashes) else None


def _embedding_dim(config: Mapping[str, Any], model: str) -> int:
    dim = config.get("model_cfg", {}).get("embed_dim")
    if type(dim) is not int or not 1 <= dim <= MAX_EMBEDDING_DIM:
        raise WeightsError(
            f"{model}: open_clip_config.json names no embed_dim from 1 to {MAX_EMBEDDING_DIM:,}",
            hint=hub.place_hint("verifier"),
        )
    return dim


def identity(model: str, revision: str | None, folder: Path) -> str:
    """The version of these weights: the commit; 40 hex digits over the content for the embedded models, which
    change with the package; empty for a folder."""
    return _content_digest(folder) if model == EMBEDDED_MODEL else revision or ""


def fingerprint(model: str, revision: str | None, kind: ModelKind) -> str:
    """A key for cached measurements of these weights: the commit, or 40 hex digits over a folder's content.
    Raises what `check` raises."""
    available = check(model, revision, None, kind)
    if available.folder is None or available.place in ("cache", "hub"):
        return hub.checked_commit(model, revision, kind)
    return _content_digest(available.folder)


def fingerprints_of_eyes(config: Config) -> list[str | None]:
    """Of the verifier and of its backbone, which together decide what is seen in an image."""
    judged = config.verification
    backbone = judged.backbone
    return [
        fingerprint(judged.model, judged.revision, "verifier"),
        None if backbone is None else fingerprint(backbone.model, backbone.revision, "backbone"),
    ]


def _content_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json"}:
            with contextlib.suppress(NotRegularError), open_regular(path, follow_links=True) as file:
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
                while part := file.read(_READ_BYTES):
                    digest.update(part)
    return digest.hexdigest()[:40]


def pipeline_class(folder: Path) -> str:
    """The pipeline class that a diffusers folder names."""
    return str(read_config(folder, MARKER["generator"], str(folder))["_class_name"])


def named_pipeline(model: str, revision: str | None, variant: str | None) -> str:
    """The pipeline class of a generator. Raises what `check` raises, and downloads no weights."""
    folder = check(model, revision, variant, "generator").folder
    if folder is None:
        folder = hub.download(
            model, hub.checked_commit(model, revision, "generator"), "generator", [MARKER["generator"]]
        )
    return pipeline_class(folder)


def _checked_folder(folder: Path, model: str, variant: str | None, kind: ModelKind) -> Path:
    marker = folder / MARKER[kind]
    if not marker.is_file():
        missing = "no such folder" if not folder.is_dir() else f"the folder has no {marker.name}"
        raise WeightsError(f"{model}: {missing}", hint=hub.place_hint(kind))
    check_files(folder, _needed(folder, model, variant, kind), model)
    return folder.absolute()


def _needed(folder: Path, model: str, variant: str | None, kind: ModelKind) -> list[str]:
    names = list_files(folder)
    marker = read_config(folder, MARKER[kind], model)
    # Refuse bad configs even if files are missing.
    small = small_files(names, marker, kind, model)
    _check_small(folder, small, model)
    return needed_files(names, marker, variant, kind, model)


def _check_small(folder: Path, small: Sequence[str], model: str) -> None:
    configs = {name: read_checked_config(folder, name, model) for name in filter(is_config, small)}
    refuse_missing_packages(small, configs, model)


def _cached(model: str, commit: str, variant: str | None, kind: ModelKind) -> Path | None:
    marker = hub.cached_file(model, commit, MARKER[kind])
    if marker is None:
        return None
    try:
        return _checked_folder(marker.parent, model, variant, kind)
    except IncompleteError:
        return None  # an interrupted download


def _files_on_hub(model: str, commit: str, variant: str | None, kind: ModelKind) -> dict[str, hub.HubFile]:
    """The files to download, from one metadata request and the configs."""
    there = hub.list_repository(model, commit, kind)
    if MARKER[kind] not in there:
        raise WeightsError(
            f"{model}: the repository has no {MARKER[kind]}, so it is not in {hub.LAYOUT[kind]} layout",
            hint=hub.place_hint(kind),
        )
    marker = read_config(hub.download(model, commit, kind, [MARKER[kind]]), MARKER[kind], model)
    small = small_files(there, marker, kind, model)
    _check_small(hub.download(model, commit, kind, [*filter(is_config, small)]), small, model)
    return {name: there[name] for name in needed_files(there, marker, variant, kind, model)}
