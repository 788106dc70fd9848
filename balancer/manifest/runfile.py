"""run.json: what a run is, written once when it starts and never changed.

A later plan revision is a whole document of the same kind in a file of its own, which the log names by its
sha256. It has no effect before the log does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import BEGUN, MAX_EMBEDDING_DIM, SIMULATED
from balancer.errors import ManifestError, StorageError, UsageError, first_line, first_problem
from balancer.manifest.columns import ADAPTED, CONDITIONED, REVIEWED
from balancer.manifest.layout import (
    REVISIONS_DIR,
    RUN_FILE,
    head_path,
    revision_path,
    revision_sha256,
    typicality_path,
)
from balancer.storage import MissingFileError, Storage
from balancer.text.json_reading import MOST_VALUES, count_values, read_json
from balancer.verification.verdict import DomainLimits

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.rules import Rules
    from balancer.verification.heads import Head
    from balancer.verification.typicality import Typicality

FORMAT = 6
"""Earlier versions refuse fields that they do not know. Format 1 has no `challenge`; until format 2 a run has
no `heads`, and keeps its classes and facet values (`schema.GROWING`); until format 3 it has no `parents`
(`columns.CONDITIONED`), until format 4 rows have no `loras` (`columns.ADAPTED`), until format 5 no
`reviewed` (`columns.REVIEWED`)."""

_Section = TypeVar("_Section", bound=BaseModel)
_Loaded = TypeVar("_Loaded")

MAX_REVISIONS = 10_000
"""Every reader reads them all: somebody else's run may have any number."""

MAX_RUN_BYTES = 1_000_000_000
"""Over 400 bytes for each cell that a plan may have, with long names."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """`plan` has one dict per cell: "class", each facet (None where it does not apply), "cell", "quota",
    "priority". `real_counts` and `targets` are by class. `models` says of each model what was loaded,
    `versions` of each library which. `challenge` is what the pre-flight found out about images of none of the
    classes (`DomainProof.as_dict`), `heads` what judges each property (`Heads.as_dict`); either is None if it
    did not ask. `parents` are the real images that candidates were drawn from when the run began
    (`ParentPool.describe`), None without conditioning. `format` is that of the file. `revision` numbers the
    plan revision; `later` are all that there are files of, by sha256, also those that never came into
    effect."""

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
    challenge: dict[str, Any] | None = None
    heads: dict[str, dict[str, Any]] | None = None
    parents: dict[str, Any] | None = None
    format: int = FORMAT
    revision: int = 1
    later: Mapping[str, RunInfo] = field(default_factory=dict, compare=False, repr=False)

    def under(self, rules: Rules) -> RunInfo:
        """The run in the plan revision that the log names; ManifestError if its file is missing."""
        if (named := rules.revision) is None:
            return self
        if named.sha256 not in self.later:
            raise ManifestError(
                f"{revision_path(named.sha256)}: it is missing, and the log names it as plan revision"
                f" {named.number}",
                hint="restore the file from a copy of the run",
            )
        return dataclasses.replace(self.later[named.sha256], revision=named.number, later=self.later)

    def encode(self) -> bytes:
        """The content of run.json, or of the file of a revision; UsageError if it is too large to be read."""
        names = [one.name for one in dataclasses.fields(self) if one.name not in ("revision", "later")]
        document = {"format": self.format} | {name: getattr(self, name) for name in names}
        data = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
        if count_values(data) > MOST_VALUES:
            raise UsageError(
                f"the plan has more than {MOST_VALUES:,} values, and no reader would take it",
                hint="plan fewer cells, or fewer facets",
            )
        return data

    @property
    def simulated(self) -> bool:
        """Whether nothing was generated or judged: pixels are noise, and scores random numbers."""
        return bool(self.config.get("actors", {}).get("kind") == SIMULATED)

    @property
    def domain_limits(self) -> DomainLimits:
        limits = self.challenge or {}
        return DomainLimits(limits.get("min_typicality"), limits.get("min_domain_score"))

    @property
    def typicality(self) -> str | None:
        """The sha256 of the file with what candidates are compared with."""
        return (self.challenge or {}).get("typicality")

    @property
    def head_files(self) -> dict[str, str]:
        """The sha256 of the head of each property that one judges."""
        return {name: head["sha256"] for name, head in (self.heads or {}).items() if head["taken"]}

    @property
    def has_parents(self) -> bool:
        """Whether rows say what they were made from; those of earlier versions do not."""
        return self.format >= CONDITIONED

    @property
    def has_loras(self) -> bool:
        """Whether rows say which LoRAs their images were made with."""
        return self.format >= ADAPTED

    @property
    def has_reviewed(self) -> bool:
        """Whether rows say what people decided; those of earlier versions say only what they rejected."""
        return self.format >= REVIEWED

    @property
    def conditioned_classes(self) -> frozenset[str]:
        """Classes whose candidates are made from real images."""
        pool = self.parents or {}
        made = self.config.get("generation")
        if isinstance(made, dict) and made.get("contexts") == "dataset" and pool.get("count"):
            return frozenset(self.config["classes"])
        return frozenset(name for name, count in pool.get("by_class", {}).items() if count)

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

    def config_as(self, model: type[_Section], *section: str) -> _Section:
        """The config, or a section of it, as this version understands it; ManifestError if it does not."""
        part: Any = self.config
        for name in section:
            part = part.get(name, {}) if isinstance(part, dict) else part
        try:
            return model.model_validate(part, context=BEGUN)
        except ValidationError as error:
            _damaged(f"config: {first_problem(error, *section)}")

    def schema(self) -> pa.Schema:
        from balancer.manifest.schema import manifest_schema

        return manifest_schema(self.properties, self.embedding_dim, self.format)


def create_run(storage: Storage, info: RunInfo) -> RunInfo:
    """Start a run in an empty folder. Where one is already, also one that another start made just now,
    that one is returned: compare `run_id`, or `fingerprint` before resuming it.

    UsageError if the plan is too large to be read again.
    """
    if not storage.create(RUN_FILE, info.encode()):
        return read_run(storage)
    from balancer.manifest.log.head import write_head

    with contextlib.suppress(StorageError):  # a run without a head is sound, if nobody wrote images either
        write_head(storage, info.run_id, None)
    return info


def read_run(storage: Storage) -> RunInfo:
    """As run.json has it; `RunInfo.under` gives a later plan revision.

    Raises UsageError if there is no run in the folder, ManifestError if run.json is damaged or newer.
    """
    try:
        data = storage.read(RUN_FILE, MAX_RUN_BYTES)
    except MissingFileError:
        raise UsageError(
            f"{storage.uri} is not a run folder: it has no {RUN_FILE}",
            hint="give the folder that `balancer run` wrote",
        ) from None
    return dataclasses.replace(_parse(data), later=_read_revisions(storage))


def publish_revision(storage: Storage, info: RunInfo) -> str:
    """Write the file of a plan revision; returns its sha256, for the log to name."""
    data = info.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    storage.publish(revision_path(sha256), data)
    return sha256


def _read_revisions(storage: Storage) -> dict[str, RunInfo]:
    paths = [path for path in storage.list(REVISIONS_DIR) if revision_sha256(path)]
    if len(paths) > MAX_REVISIONS:
        raise ManifestError(
            f"{REVISIONS_DIR}: there are {len(paths):,} files, over the limit of {MAX_REVISIONS:,}"
        )
    return {revision_sha256(path) or "": _read_revision(storage, path) for path in paths}


def _read_revision(storage: Storage, path: str) -> RunInfo:
    data = storage.read(path, MAX_RUN_BYTES)
    if hashlib.sha256(data).hexdigest() != revision_sha256(path):
        raise ManifestError(
            f"{path}: its content is not what was written", hint="restore the file from a copy of the run"
        )
    return _parse(data)


def check_challenge(document: Any) -> None:
    """ValueError unless it is what `RunInfo.challenge` may be."""
    _Challenge.model_validate(document)


def check_heads(document: Any) -> None:
    """ValueError unless it is what `RunInfo.heads` may be."""
    _HEADS.validate_python(document)


def load_typicality(storage: Storage, info: RunInfo) -> Typicality | None:
    """What candidates are compared with, None if they are not; ManifestError unless it is as written."""
    if info.typicality is None:
        return None
    from balancer.verification.typicality import MAX_TYPICALITY_BYTES, read_typicality

    def read(data: bytes) -> Typicality:
        return read_typicality(data, info.typicality or "")

    return _load(storage, typicality_path(info.typicality), MAX_TYPICALITY_BYTES, read)


def load_heads(storage: Storage, info: RunInfo) -> dict[str, Head]:
    """What judges properties besides the words; ManifestError unless all are as written."""
    return {name: load_head(storage, info, name) for name in info.head_files}


def load_head(storage: Storage, info: RunInfo, name: str) -> Head:
    """The head of a property that has one; ManifestError unless it is as written."""
    from balancer.verification.heads import MAX_HEAD_BYTES, read_head

    sha256 = info.head_files[name]
    values = info.config["classes"] if name == CLASS_PROPERTY else info.config["facets"][name]["values"]
    return _load(storage, head_path(sha256), MAX_HEAD_BYTES, lambda data: read_head(data, sha256, values))


def _load(storage: Storage, path: str, max_bytes: int, read: Callable[[bytes], _Loaded]) -> _Loaded:
    try:
        return read(storage.read(path, max_bytes))
    except MissingFileError:
        problem = "it is missing"
    except ValueError as error:
        problem = str(error)
    raise ManifestError(f"{path}: {problem}", hint="restore the file, or begin another run")


def _parse(data: bytes) -> RunInfo:
    try:
        document = read_json(data)
        number = document["format"]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ManifestError(f"{RUN_FILE}: it is damaged: {error}") from error
    if isinstance(number, int) and number > FORMAT:
        raise ManifestError(
            f"{RUN_FILE}: format {number} is newer than {FORMAT}, the newest this version reads",
            hint="upgrade balancer",
        )
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        _damaged(first_problem(error))
    info = RunInfo(**document)
    _check_names(info)
    return info


def _check_names(info: RunInfo) -> None:
    classes = info.config["classes"].keys()
    if lacking := set(info.facets) - info.config["facets"].keys():
        _damaged(f"config.facets lacks {min(lacking)!r}")
    if unknown := {cell["class"] for cell in info.plan if cell["quota"]} - classes:
        _damaged(f"plan has class {min(unknown)!r}, which the config lacks")
    if unknown := (info.heads or {}).keys() - {CLASS_PROPERTY, *info.facets}:
        _damaged(f"heads has {min(unknown)!r}, which is no property")
    keys = Counter(cell["cell"] for cell in info.plan)
    if twice := [key for key, count in keys.items() if count > 1]:
        _damaged(f"plan has cell {min(twice)!r} twice")
    if lacking := classes - info.targets.keys():
        _damaged(f"targets lack class {min(lacking)!r}")
    for cell in info.plan:
        if wrong := [facet for facet in info.facets if not isinstance(cell.get(facet), str | None)]:
            _damaged(f"plan: {wrong[0]} of cell {cell['cell']!r} is no text")


def _damaged(problem: str) -> NoReturn:
    raise ManifestError(f"{RUN_FILE}: it is damaged: {first_line(ValueError(problem))}")


_Count = Annotated[int, Field(ge=0, le=10**12)]
_Named = Annotated[dict[str, Any], Field(min_length=1)]


class _Open(BaseModel):
    """Other keys may be there: by other versions."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Cell(_Open):
    class_name: str = Field(alias="class")
    cell: str
    quota: _Count
    priority: Literal["critical", "high", "medium"]


class _Facet(_Open):
    values: _Named


class _Attempts(_Open):
    max: Annotated[int, Field(ge=1, le=10**6)]


class _Config(_Open):
    """What is read of the config as it stands; `RunInfo.config_as` checks the rest."""

    classes: _Named
    facets: dict[str, _Facet]
    attempts: _Attempts
    output: dict[str, Any] = {}
    verification: dict[str, Any] = {}


_Told = dict[str, str | int | float | None]


class _Model(_Open):
    __pydantic_extra__: _Told
    model: str
    revision: str | None


class _Models(BaseModel):
    """What every run has, besides others that it may have."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, _Told]

    generator: _Model
    verifier: _Model


_Share = Annotated[float, Field(ge=0, le=1)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Challenged(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    images: _Count
    before: _Share
    accepted: _Share


class _Challenge(_Open):
    accepted_share: _Share
    images: _Count
    by_kind: dict[str, _Challenged]
    true_lost: _Share | None
    true_lost_unseen: _Share | None = None
    labelled_images: _Count
    by_class: dict[str, _Count]
    typicality: _Hash | None
    features: list[str]
    min_typicality: _Share | None
    min_domain_score: _Share | None
    notes: list[str]

    @model_validator(mode="after")
    def _typicality_has_its_limit(self) -> Self:
        if (self.typicality is None) != (self.min_typicality is None):
            raise ValueError("typicality and min_typicality are there together, or neither is")
        return self


_Loss = Annotated[float, Field(ge=0, le=1e6)]


class _ProvenValue(_Open):
    examples: _Count
    words_auc: _Share | None
    auc: _Share | None


class _LogLoss(_Open):
    words: _Loss
    head: _Loss
    gain_error: _Loss


class _CalibrationError(_Open):
    words: _Share
    head: _Share


class _OutOfFold(_Open):
    folds: _Count
    values: dict[str, _ProvenValue]
    log_loss: _LogLoss
    calibration_error: _CalibrationError


class _Head(_Open):
    taken: bool
    why: str
    examples: dict[str, _Count]
    features: list[str]
    sha256: _Hash | None
    bytes: _Count
    out_of_fold: _OutOfFold | None

    @model_validator(mode="after")
    def _is_there_if_taken(self) -> Self:
        if self.taken != (self.sha256 is not None) or (self.taken and self.out_of_fold is None):
            raise ValueError("a head that is taken has a file and figures, and no other has a file")
        return self


class _Parents(_Open):
    count: _Count
    sha256: _Hash
    by_class: dict[str, _Count]


_HEADS: TypeAdapter[dict[str, _Head]] = TypeAdapter(dict[str, _Head])


class _Document(BaseModel):
    """The fields of RunInfo, as others may have written them."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    format: Annotated[int, Field(ge=1)]
    run_id: str
    created_at: str
    name: str
    config: _Config
    fingerprint: str
    seed: int
    facets: list[str]
    plan: list[_Cell]
    real_counts: dict[str, _Count]
    targets: dict[str, _Count]
    embedding_dim: Annotated[int, Field(ge=1, le=MAX_EMBEDDING_DIM)]
    versions: dict[str, str]
    models: _Models
    challenge: _Challenge | None = None
    heads: dict[str, _Head] | None = None
    parents: _Parents | None = None
