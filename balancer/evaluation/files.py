"""The files of an evaluation, in the run folder under `evaluation/`.

    evaluation.json            the rule: settings, arms and what counts as a difference, before any training
    FINGERPRINT/rule.json      the same, which stays when another experiment is made
    FINGERPRINT/images.json    which images tested and chose, with their labels
    FINGERPRINT/results/*.json what one training predicted: written as it ends, so that a killed one goes on
    FINGERPRINT/outcome.json   its decision
    outcome.json               the decision of the experiment that ended last

The fingerprint is that of the rule and the images, so the results of two experiments never mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from balancer.errors import ManifestError, first_problem
from balancer.storage import MissingFileError, Storage
from balancer.text.json_reading import InvalidJSONError, read_json

if TYPE_CHECKING:
    from balancer.evaluation.arms import Job

FOLDER = "evaluation"
RULE_FILE = f"{FOLDER}/evaluation.json"
OUTCOME_FILE = f"{FOLDER}/outcome.json"

_ENDED = re.compile(rf"{FOLDER}/[0-9a-f]{{16}}/outcome\.json")

MAX_BYTES = 500_000_000

Difference = Annotated[float, Field(ge=-1, le=1)]

Note = Annotated[str, Field(max_length=100_000)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


class Estimate(_Read):
    mean: Difference
    low: Difference
    high: Difference

    @model_validator(mode="after")
    def _has_its_bounds_in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high, {self.high:g}")
        return self


class ClassOutcome(_Read):
    decision: Literal["help", "harm", "equivalent", "cannot_tell"]
    difference: Difference | None = None
    low: Difference | None = None
    high: Difference | None = None
    test_images: int = Field(ge=0)
    needed: int | None = Field(default=None, ge=1)
    """Test images that would tell; null if they alone never suffice."""

    needed_seeds: int | None = Field(default=None, ge=1)
    needed_together: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """Test images and seeds, if neither alone suffices."""


class Recommended(_Read):
    """`classes` are those whose generated images are to be left out."""

    real_share: float = Field(gt=0, lt=1)
    classes: list[str]


class Outcome(_Read):
    """What `balancer evaluate` found."""

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_images: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the images of the run."""

    decision: Literal["add", "do_not_add", "cannot_tell"]
    sentence: str = Field(max_length=5000)
    margin: float = Field(gt=0, lt=1)
    metric: str = Field(max_length=100)
    seeds: int = Field(ge=1, le=1000)
    arms: dict[str, Estimate] = Field(min_length=1, max_length=100)
    difference: Estimate
    baseline: str
    classes: dict[str, ClassOutcome]
    recommended: Recommended
    notes: list[Note] = Field(default=[], max_length=100)


def fingerprint(rule: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encoded(rule)).hexdigest()


def write_rule(storage: Storage, rule: Mapping[str, Any], key: str) -> None:
    document = _encoded({"fingerprint": key, **rule})
    storage.replace(f"{_folder(key)}/rule.json", document)
    storage.replace(RULE_FILE, document)


def write_images(storage: Storage, key: str, images: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    storage.replace(f"{_folder(key)}/images.json", _encoded(images))


def write_outcome(storage: Storage, outcome: Mapping[str, Any]) -> None:
    document = _encoded(outcome)
    storage.replace(f"{_folder(outcome['fingerprint'])}/outcome.json", document)
    storage.replace(OUTCOME_FILE, document)


def other_outcomes(storage: Storage, key: str, run_images: str) -> list[Outcome]:
    """Of the experiments with other settings that have ended on the same images of the run. A damaged one is
    left out."""
    paths = (path for path in storage.list(FOLDER) if _ENDED.fullmatch(path))
    found = []
    for path in sorted(paths):
        with contextlib.suppress(ManifestError, MissingFileError):
            found.append(_read_outcome(storage, path))
    return [each for each in found if each.run_images == run_images and each.fingerprint != key]


def result_path(key: str, job: Job) -> str:
    return f"{_folder(key)}/results/{job.name}.json"


def _folder(key: str) -> str:
    return f"{FOLDER}/{key[:16]}"


def write_result(storage: Storage, key: str, job: Job, predicted: Sequence[int], classes: int) -> list[int]:
    """What a job predicted; if another process wrote a result first, that one holds, and is returned."""
    path = result_path(key, job)
    if storage.create(path, _encoded({"job": job.as_dict(), "predicted": list(predicted)})):
        return list(predicted)
    found = read_result(storage, key, job, len(predicted), classes)
    return list(predicted) if found is None else found


def read_result(storage: Storage, key: str, job: Job, images: int, classes: int) -> list[int] | None:
    """What a job predicted of so many images; None if it has not ended. ManifestError for a damaged file."""
    path = result_path(key, job)
    try:
        document = _document(storage, path)
    except MissingFileError:
        return None
    predicted = document.get("predicted") if isinstance(document, dict) else None
    if isinstance(document, dict) and document.get("job") != job.as_dict():
        raise _damaged(path, "it is the result of another training")
    if not (
        isinstance(predicted, list)
        and len(predicted) == images
        and all(type(each) is int and 0 <= each < classes for each in predicted)
    ):
        raise _damaged(path, f"it does not hold {images} predictions of {classes} classes")
    return predicted


def read_outcome(storage: Storage) -> Outcome | None:
    """None if the run has not been evaluated; ManifestError for a damaged file."""
    try:
        return _read_outcome(storage, OUTCOME_FILE)
    except MissingFileError:
        return None


def _read_outcome(storage: Storage, path: str) -> Outcome:
    document = _document(storage, path)
    try:
        return Outcome.model_validate(document)
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from error


def _document(storage: Storage, path: str) -> Any:
    try:
        return read_json(storage.read(path, MAX_BYTES))
    except InvalidJSONError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: str, problem: str) -> ManifestError:
    return ManifestError(
        f"{path} is damaged: {problem}", hint="delete this file; `balancer evaluate RUN` makes it again"
    )


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
