"""run.json: what a run is, written once when it starts and never changed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.cells import CLASS_PROPERTY
from balancer.errors import ManifestError, StorageError, UsageError
from balancer.manifest.layout import RUN_FILE
from balancer.storage import MissingFileError, Storage

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1

MAX_RUN_BYTES = 1_000_000_000
"""Over 400 bytes for each cell that a plan may have, with long names."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """`plan` has one dict per cell: "class", each facet (None where it does not apply), "cell", "quota",
    "priority". `real_counts` and `targets` are by class. `models` says of each model what was loaded,
    `versions` of each library which."""

    run_id: str
    created_at: str
    name: str
    config: dict[str, Any]
    fingerprint: str
    seed: int
    facets: list[str]
    plan: list[dict[str, Any]]
    real_counts: dict[str, int]
    targets: dict[str, int]
    embedding_dim: int
    versions: dict[str, str]
    models: dict[str, dict[str, str | None]]

    @property
    def wanted(self) -> int:
        return sum(cell["quota"] for cell in self.plan)

    @property
    def properties(self) -> dict[str, int]:
        """What candidates are scored on, and how many values each property has."""
        values = {name: len(self.config["facets"][name]["values"]) for name in self.facets}
        return {CLASS_PROPERTY: len(self.config["classes"]), **values}

    @property
    def max_attempts(self) -> int:
        """Attempts after which a slot is short, the fallback included."""
        attempts = self.config["attempts"]
        return int(attempts["max"]) + (attempts.get("fallback") is not None)

    @property
    def real_images_by_reference(self) -> bool:
        """Whether rows of real images name files outside the run folder."""
        return bool(self.config.get("output", {}).get("real_images") == "reference")

    def schema(self) -> pa.Schema:
        from balancer.manifest.schema import manifest_schema

        return manifest_schema(self.properties, self.embedding_dim)


def create_run(storage: Storage, info: RunInfo) -> RunInfo:
    """Start a run in an empty folder. Where one is already, also one that another start made just now,
    that one is returned: compare `run_id`, or `fingerprint` before going on with it."""
    document = {"format": FORMAT, **dataclasses.asdict(info)}
    data = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
    if not storage.create(RUN_FILE, data):
        return read_run(storage)
    from balancer.manifest.head import write_head

    with contextlib.suppress(StorageError):  # a run without a head is sound, if nobody wrote images either
        write_head(storage, info.run_id, None)
    return info


def read_run(storage: Storage) -> RunInfo:
    """Raises UsageError if there is no run in the folder, ManifestError if run.json is damaged or newer."""
    try:
        data = storage.read(RUN_FILE, MAX_RUN_BYTES)
    except MissingFileError:
        raise UsageError(
            f"{storage.uri} is not a run folder: it has no {RUN_FILE}",
            hint="give the folder that `balancer run` wrote",
        ) from None
    return _parse(data)


def _parse(data: bytes) -> RunInfo:
    try:
        document = json.loads(data)
        number = document.pop("format")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{RUN_FILE}: it is damaged: {error}") from error
    if isinstance(number, int) and number > FORMAT:
        raise ManifestError(
            f"{RUN_FILE}: format {number} is newer than {FORMAT}, the newest this version reads",
            hint="upgrade balancer",
        )
    fields = {field.name: field.type for field in dataclasses.fields(RunInfo)}
    if problem := _mismatch(document, fields):
        raise ManifestError(f"{RUN_FILE}: it is damaged: {problem}")
    info = RunInfo(**document)
    try:
        _ = info.wanted, info.max_attempts, info.properties, [cell["cell"] for cell in info.plan]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{RUN_FILE}: it is damaged: plan or config lacks {error}") from error
    return info


_JSON_TYPES = {"str": str, "int": int, "list": list, "dict": dict}


def _mismatch(document: dict[str, Any], fields: dict[str, Any]) -> str:
    if wrong := fields.keys() ^ document.keys():
        return f"{', '.join(sorted(wrong))} missing or unknown"
    for name, annotation in fields.items():
        wanted = _JSON_TYPES[annotation.partition("[")[0]]
        if not isinstance(document[name], wanted):
            return f"{name} is not {annotation}"
    return ""
