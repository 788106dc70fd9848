"""Small runs for the tests of the manifest, and storages that fail on purpose."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from balancer.config.schema import Config
from balancer.errors import StorageError
from balancer.manifest import ManifestLog, RunInfo, create_run
from balancer.storage import FileInfo, MissingFileError, OtherContentError, Storage
from balancer.storage.contract import check_path, check_size

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
FACETS = ["lighting", "burn_level"]
DIM = 4
CONFIG: dict[str, Any] = Config.model_validate(
    {
        "classes": {name: {"prompts": [name]} for name in ("basic", "burnt")},
        "facets": {
            "lighting": {"values": {name: {"prompts": [name]} for name in ("dim", "harsh")}},
            "burn_level": {
                "classes": ["burnt"],
                "values": {name: {"prompts": [name]} for name in ("slight", "moderate", "severe")},
            },
        },
        "target": {"per_class": 3},
        "attempts": {"max": 3, "fallback": {"threshold": 0.5}},
        "output": {"rejected_per_reason": 0},
    }
).model_dump(mode="json")


HEAD: dict[str, Any] = {
    "taken": True,
    "why": "better than the words alone",
    "examples": {"basic": 20, "burnt": 20},
    "features": ["final"],
    "sha256": "a" * 64,
    "bytes": 840,
    "out_of_fold": {
        "folds": 5,
        "values": {"basic": {"examples": 20, "words_auc": 0.5, "auc": 0.9}},
        "log_loss": {"words": 0.7, "head": 0.2, "gain_error": 0.01},
        "calibration_error": {"words": 0.1, "head": 0.01},
    },
}
NO_HEAD = HEAD | {"taken": False, "sha256": None, "bytes": 0, "features": [], "out_of_fold": None}
"""What run.json says of a property that a head judges, and of another."""


def at(minutes: float) -> datetime.datetime:
    """Minutes after noon."""
    return NOON + datetime.timedelta(minutes=minutes)


def run_info(run_id: str = "run-1", **changes: Any) -> RunInfo:
    values: dict[str, Any] = {
        "run_id": run_id,
        "created_at": NOON.isoformat(),
        "name": "",
        "config": CONFIG,
        "fingerprint": "f" * 64,
        "seed": 7,
        "facets": FACETS,
        "plan": [
            planned("basic/dim", 3),
            planned("burnt/dim/severe", 2),
        ],
        "real_counts": {"basic": 1, "burnt": 0},
        "targets": {"basic": 4, "burnt": 2},
        "embedding_dim": DIM,
        "versions": {"pyarrow": "1"},
        "models": {kind: {"model": "embedded", "revision": None} for kind in ("generator", "verifier")},
    }
    return RunInfo(**{**values, **changes})


def planned(cell: str, quota: int) -> dict[str, Any]:
    class_name, lighting, *burn_level = cell.split("/")
    return {
        "class": class_name,
        "lighting": lighting,
        "burn_level": burn_level[0] if burn_level else None,
        "cell": cell,
        "quota": quota,
        "priority": "high",
    }


def row(slot: str, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """An accepted candidate of a slot such as `burnt/dim/severe/0001`."""
    cell = slot.rpartition("/")[0]
    names = planned(cell, 0)
    data = image_bytes(f"{slot}-{attempt}")
    values = {
        "id": f"{slot}-{attempt}",
        "file_name": f"images/{slot}-{attempt}.png",
        "class": names["class"],
        "lighting": names["lighting"],
        "burn_level": names["burn_level"],
        "cell": cell,
        "slot": slot,
        "attempt": attempt,
        "source": "synthetic",
        "status": "accepted",
        "score": 0.75,
        "scores": {"class": 0.75, "lighting": 0.875} | ({"burn_level": 0.875} if names["burn_level"] else {}),
        "threshold": 0.6,
        "seed": 2**64 - attempt,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "brightness": 0.5,
        "deviation": 0.25,
        "nonfinite": 0,
        "embedding": b"\0" * (2 * DIM),
        "generated_at": NOON,
        "run_id": "run-1",
    }
    return {**values, **changes}


def rejected(slot: str, attempt: int = 1, reason: str = "lighting", **changes: Any) -> dict[str, Any]:
    accepted = row(slot, attempt)
    scores = {name: 0.25 if name == reason else score for name, score in accepted["scores"].items()}
    values = {"status": "rejected", "reason": reason, "score": 0.25, "scores": scores}
    no_image = {"file_name": None, "sha256": None, "num_bytes": None}
    return {**accepted, **values, **no_image, **changes}


def void(slot: str, attempt: int = 1) -> dict[str, Any]:
    return {**rejected(slot, attempt), "status": "void", "reason": None}


def real(name: str, class_name: str = "basic", **changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("cell", "slot", "attempt", "score", "scores", "threshold", "seed", "embedding"))
    values = {"id": f"real/{name}", "source": "real", "class": class_name, "generated_at": None}
    return {**row(f"{class_name}/dim/{name}"), **nothing, **values, **changes}


def image_bytes(name: str) -> bytes:
    """Stands for the image of the row named so."""
    return f"image of {name}".encode()


def start(
    storage: Storage, now: Callable[[], datetime.datetime] = lambda: NOON, **changes: Any
) -> ManifestLog:
    """Start a run, or go on with it, as another driver."""
    info = create_run(storage, run_info(**changes))
    return ManifestLog.open(storage, info.schema(), info.run_id, now=now)


def ids(log: ManifestLog) -> list[str]:
    found: list[str] = log.table()["id"].to_pylist()
    return found


@dataclass
class MemoryStorage:
    """Files in a dict, written at noon unless `modified` says when. `before_create` runs before the next
    create, `after_create` once it has landed."""

    uri: str = "memory"
    files: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, datetime.datetime] = field(default_factory=dict)
    before_create: Callable[[], None] | None = None
    after_create: Callable[[], None] | None = None

    def publish(self, path: str, data: bytes) -> None:
        check_path(path, self.uri)
        if self.files.setdefault(path, data) != data:
            raise OtherContentError(f"{path} holds other bytes")

    def replace(self, path: str, data: bytes) -> None:
        check_path(path, self.uri)
        self.files[path] = data

    def create(self, path: str, data: bytes) -> bool:
        check_path(path, self.uri)
        before, self.before_create = self.before_create, None
        if before:
            before()
        created = self.files.setdefault(path, data) is data
        after, self.after_create = self.after_create, None
        if after:
            after()
        return created

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        check_path(path, self.uri)
        if path not in self.files:
            raise MissingFileError(f"no {path}")
        check_size(path, len(self.files[path]), max_bytes)
        return self.files[path]

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self.read(path)[start : start + length]

    def info(self, path: str) -> FileInfo:
        return FileInfo(len(self.read(path)), self.modified.get(path, NOON))

    def exists(self, path: str) -> bool:
        check_path(path, self.uri)
        return path in self.files

    def list(self, prefix: str) -> list[str]:
        check_path(prefix or "all", self.uri)
        return sorted(path for path in self.files if not prefix or path.startswith(f"{prefix}/"))

    def delete(self, path: str) -> None:
        check_path(path, self.uri)
        self.files.pop(path, None)


def lose_the_answer() -> None:
    raise StorageError("the connection broke before the answer came")
