"""What travels with a submitted run: its config in one document, and the small files that it names.

A path that only this machine sees is carried if it is a small file, and refused otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balancer.config.schema import EMBEDDED_MODEL, SAMPLE_DATASET, Config
from balancer.dataset.location import find_dataset
from balancer.dataset.readers.labelled import TABLE_SUFFIXES
from balancer.errors import ConfigError
from balancer.storage import slug
from balancer.storage.regular_files import NotRegularError, TooLargeError, read_regular
from balancer.storage.user_paths import expanded
from balancer.submission.places import SharedFolders
from balancer.text.quantities import size

CONFIG_NAME = "job.json"
"""JSON, because every JSON string is the same string in YAML 1.1 and 1.2."""

_PLAIN_TABLES = (".csv", ".jsonl")

SHARE_HINT = (
    "put it on the cluster and name it by its absolute path there, with --shared FOLDER for the folder where"
    " that file system is mounted"
)
DATASET_HINT = f"{SHARE_HINT}; or give a table whose rows name images in a bucket"
MODEL_HINT = f"name a model of the hub with its revision, or {SHARE_HINT}"


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes` of all carried files together; 0 carries none. `reason` says whose limit that is."""

    max_bytes: int
    reason: str


JOB_API = Limits(100_000_000, "Ray keeps what a job carries in the memory of its head")
CONFIG_MAP = Limits(700_000, "a ConfigMap of Kubernetes holds no more")
NOTHING = Limits(0, "a batch script carries no files")


@dataclass(frozen=True, slots=True)
class Parcel:
    """`document` is the config as it is sent, `files` the content of each carried file by its name."""

    config: Config
    document: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """`CONFIG_NAME`, as `load_config` reads it."""
        return json.dumps(self.document, indent=1, ensure_ascii=True) + "\n"

    def fingerprint(self) -> str:
        """Changes with the images that the run makes, not with its speed."""
        contents = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        return json.dumps([self.config.fingerprint(), sorted(contents.items())])


def pack(config: Config, shared: SharedFolders, limits: Limits, folder: str = "") -> Parcel:
    """Everything that the run needs from this machine. `folder` is where the files will be, by default the
    working folder of the job. ConfigError for a path that the cluster could not see."""
    document = config.model_dump(mode="json", exclude_unset=True)
    packing = _Packing(config, shared, limits, folder)
    _dataset(packing, document)
    _evaluation(packing, document)
    _calibration(packing, document)
    _loras(packing, document)
    _models(packing, document)
    sent = Config.model_validate_json(json.dumps(document), strict=True)
    return Parcel(sent, document, packing.files)


@dataclass(slots=True)
class _Packing:
    config: Config
    shared: SharedFolders
    limits: Limits
    folder: str
    files: dict[str, bytes] = field(default_factory=dict)

    def on_cluster(self, path: str) -> str | None:
        """The absolute path if every node sees it."""
        absolute = os.path.abspath(expanded(path))
        return absolute if self.shared.has(absolute) else None

    def carry(self, setting: str, path: Path, name: str, hint: str = SHARE_HINT) -> str:
        """The place of the carried file, as the config names it."""
        left = self.limits.max_bytes - sum(map(len, self.files.values()))
        if not self.limits.max_bytes:
            raise _unseen(setting, str(path), hint)
        try:
            self.files[name] = read_regular(path, max_bytes=left, follow_links=True)
        except TooLargeError as error:
            limit = f"files of {size(self.limits.max_bytes)} together are carried: {self.limits.reason}"
            raise ConfigError(
                [f"{setting}: {path} has {size(error.num_bytes)}; {limit}"], hint=hint
            ) from error
        except NotRegularError as error:
            raise ConfigError([f"{setting}: {path} is {error.strerror}"], hint=hint) from error
        except OSError as error:
            raise ConfigError([f"{setting}: {path} cannot be read: {error.strerror}"], hint=hint) from error
        return os.path.join(self.folder, name)


def _unseen(setting: str, path: str, hint: str) -> ConfigError:
    return ConfigError([f"{setting}: {path} is on this machine, where the cluster cannot see it"], hint=hint)


def _dataset(packing: _Packing, document: dict[str, Any]) -> None:
    given = packing.config.dataset
    for key, path in (("path", given.path), ("holdout", given.holdout)):
        if path is None or path == SAMPLE_DATASET:
            continue
        setting = f"dataset.{key}"
        if "://" in path:
            find_dataset(path)
            continue
        local = packing.config.resolve_path(setting, path)
        place = packing.on_cluster(path if os.path.isabs(expanded(path)) else os.fspath(local))
        if place is None and local.suffix.lower() in TABLE_SUFFIXES and local.is_file():
            place = packing.carry(setting, local, f"{key}{local.suffix.lower()}", DATASET_HINT)
            _refuse_local_rows(setting, local, packing.files[os.path.basename(place)])
        if place is None:
            raise _unseen(setting, path, DATASET_HINT)
        document["dataset"][key] = place


def _refuse_local_rows(setting: str, path: Path, data: bytes) -> None:
    """A table without any address names files beside it. Parquet is compressed, and so not looked through."""
    if path.suffix.lower() in _PLAIN_TABLES and b"://" not in data:
        raise ConfigError(
            [f"{setting}: {path} names images of this machine, where the cluster cannot see them"],
            hint=DATASET_HINT,
        )


def _evaluation(packing: _Packing, document: dict[str, Any]) -> None:
    path = packing.config.target.evaluation
    if path is None or "://" in path:
        return
    local = packing.config.resolve_path("target.evaluation", path)
    place = packing.on_cluster(os.fspath(local))
    if place is None:
        raise _unseen("target.evaluation", path, f"give a run in a bucket, or {SHARE_HINT}")
    document["target"]["evaluation"] = place


def _calibration(packing: _Packing, document: dict[str, Any]) -> None:
    path = packing.config.verification.calibration
    if path is None:
        return
    setting = "verification.calibration"
    local = packing.config.resolve_path(setting, path)
    place = packing.on_cluster(os.fspath(local))
    document["verification"]["calibration"] = place or packing.carry(setting, local, "calibration.json")


def _loras(packing: _Packing, document: dict[str, Any]) -> None:
    for number, lora in enumerate(packing.config.generation.loras):
        if not _is_local(lora.model):
            continue
        setting, path = f"generation.loras.{number}.model", expanded(lora.model)
        place = packing.on_cluster(lora.model)
        if place is None and path.is_dir():
            raise _unseen(
                setting, f"the folder {lora.model}", "name the .safetensors file in it, which is carried"
            )
        if place is None:
            place = packing.carry(setting, path, f"lora-{number}-{slug(path.stem)}.safetensors")
        document["generation"]["loras"][number]["model"] = place


MODELS = (
    ("generation",),
    ("verification",),
    ("verification", "backbone"),
    ("verification", "safety"),
    ("verification", "second_judge"),
)
"""Sections with a setting `model`."""


def _models(packing: _Packing, document: dict[str, Any]) -> None:
    for path in MODELS:
        section = document
        for key in path:
            section = section.get(key) or {}
        model = section.get("model")
        if model is None or model == EMBEDDED_MODEL or not _is_local(model):
            continue
        place = packing.on_cluster(model)
        if place is None:
            raise _unseen(".".join((*path, "model")), model, MODEL_HINT)
        section["model"] = place


def _is_local(model: str) -> bool:
    """Whether a model is a path: there is one here, or it is written as one."""
    return model.startswith(("/", "./", "../", "~")) or os.path.lexists(expanded(model))
