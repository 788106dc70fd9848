"""What is kept of adapters: `adapters.json`, the metadata of the weights, and whether they are stale."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from balancer.adaptation.images import TrainingImage
from balancer.adaptation.plan import Task
from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates_across
from balancer.errors import UsageError, first_problem
from balancer.storage import MissingFileError, Storage
from balancer.text.json_reading import InvalidJSONError, read_json
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.config.schema import CopiesConfig

INDEX = "adapters.json"
PAGE = "adapters.html"
METADATA_KEY = "balancer_adapter"
"""The key in the metadata of the weights file."""

FORMAT = 1
DIGITS = 32
"""Of the hash of each picture: the header of a weights file is limited."""

MAX_IMAGES = 300_000
"""Of one adapter: the hashes of more do not fit into the header of a weights file that a run reads."""

MAX_INDEX_BYTES = 500_000_000
MAX_METADATA_CHARS = 50_000_000

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class TrainedOn(BaseModel):
    """What an adapter was trained on, as its weights file says. `pictures` are the first digits of the hashes
    of the pixels, by class; `phashes` are the perceptual hashes of the same images, in the same order."""

    model_config = ConfigDict(strict=True, frozen=True)

    format: int = Field(ge=1, le=FORMAT)
    name: str = Field(max_length=200)
    data: str = Sha256
    pictures: dict[str, list[str]] = Field(max_length=100_000)
    phashes: dict[str, list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]] = {}
    config: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    steps: int = Field(ge=1)


class TrainedAdapter(BaseModel):
    """An adapter in `adapters.json`. `identity` is the sha256 of all that the weights follow from."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str = Field(max_length=200)
    file: str = Field(pattern=r"^[a-z0-9_-]{1,100}\.safetensors$")
    sha256: str = Sha256
    identity: str = Sha256
    classes: list[str]
    images: dict[str, int]
    steps: int = Field(ge=1)
    losses: list[float] = Field(min_length=1)


class Index(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    adapters: list[TrainedAdapter] = Field(max_length=100_000)

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False).encode()


def file_of(name: str) -> str:
    """Of an adapter's weights."""
    return f"{name}.safetensors"


def read_index(storage: Storage) -> Index:
    """Empty if there is none. UsageError for one that this version cannot read."""
    try:
        data = storage.read(INDEX, MAX_INDEX_BYTES)
    except MissingFileError:
        return Index(adapters=[])
    try:
        return Index.model_validate(read_json(data))
    except (InvalidJSONError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(
            f"{storage.uri}/{INDEX} is not what `balancer adapt` writes: {problem}",
            hint="choose another --out",
        ) from error


def describe(task: Task, identity: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a weights file: what it was trained on, and with what. UsageError for more images than
    it can name."""
    if len(task.images) > MAX_IMAGES:
        raise UsageError(
            f"{task.name}: {len(task.images):,} training images, and one adapter takes {MAX_IMAGES:,} at"
            " most",
            hint="set adaptation.scope: class, or leave images out by dataset.exclude",
        )
    pictures: dict[str, list[str]] = {name: [] for name in task.classes}
    phashes: dict[str, list[str]] = {name: [] for name in task.classes}
    for image in task.images:
        pictures[image.class_name].append(image.picture[:DIGITS])
        phashes[image.class_name].append(image.phash)
    trained = TrainedOn(
        format=FORMAT,
        name=task.name,
        data=task.data_sha256,
        pictures=pictures,
        phashes=phashes,
        config=identity["settings"] | {"width": task.width, "height": task.height},
        model=identity["model"],
        versions=identity["versions"],
        steps=task.steps,
    )
    return {METADATA_KEY: json.dumps(trained.model_dump(mode="json"), sort_keys=True)}


def trained_on(metadata: Mapping[str, str]) -> TrainedOn | None:
    """None for an adapter that something else has trained, or whose metadata are damaged."""
    text = metadata.get(METADATA_KEY, "")
    if not text or len(text) > MAX_METADATA_CHARS:
        return None
    try:
        return TrainedOn.model_validate(read_json(text))
    except (InvalidJSONError, ValidationError):
        return None


@dataclass(frozen=True, slots=True)
class Staleness:
    """How the training images of an adapter differ from those there are now. `held_out` are images that it
    was trained on, and that are kept apart by now."""

    new: int
    gone: int
    held_out: int

    def __str__(self) -> str:
        """Empty if it is not stale."""
        parts = [f"{counted(self.new, 'training image')} more"] if self.new else []
        if gone := self.gone - self.held_out:
            parts.append(f"{gone} gone")
        if self.held_out:
            parts.append(f"{self.held_out} in validation, test or hold-out by now, or like an image there")
        return ", ".join(parts)


def compare(
    trained: TrainedOn, images: Sequence[TrainingImage], apart: Sequence[KnownImage], limits: CopiesConfig
) -> Staleness:
    """`images` are those that adapters would be trained on now, `apart` those that are kept apart."""
    now = {(one.class_name, one.picture[:DIGITS]) for one in images if one.class_name in trained.pictures}
    then = {(name, picture) for name, pictures in trained.pictures.items() for picture in pictures}
    gone = then - now
    held = {image.pixel_sha256[:DIGITS] for image in apart}
    held_out = {one for one in gone if one[1] in held} | (gone & _alike(trained, apart, limits))
    return Staleness(len(now - then), len(gone), len(held_out))


def _alike(
    trained: TrainedOn, apart: Sequence[KnownImage], limits: CopiesConfig
) -> frozenset[tuple[str, str]]:
    """Class and picture of those like an image that is kept apart: one that was saved again has other
    pixels."""
    seen = {
        f"{name}/{picture}": (name, picture, phash)
        for name, pictures in trained.pictures.items()
        for picture, phash in zip(pictures, trained.phashes.get(name, ()), strict=False)
    }
    known = [KnownImage(key, phash, "") for key, (_, _, phash) in seen.items()]
    near = find_near_duplicates_across(known, apart, limits) if known and apart else ()
    return frozenset(seen[key][:2] for key in near)
