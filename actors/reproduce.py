"""Images of a run made again on this machine, as their rows say they were made, and compared.

What a row records is all that goes in: words, seed, guidance, steps, size, parent and strength, and how many
images went through the pipeline together. With whom does not matter: images of a batch do not touch each
other, and a batch always has its full shape. So many rows are made again in one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.specs import GeneratorSpec, WorkerSpec, generator_for
from actors.weights import loras
from actors.weights import resolve as weights
from balancer.config.schema import Config, GenerationConfig
from balancer.errors import BalancerError, ManifestError, StorageError, UsageError
from balancer.manifest.columns import names_read_by
from balancer.manifest.rows import REAL, SYNTHETIC
from balancer.run_manifest import Manifest
from balancer.runs.reproduction import Outcome, Reproduction, compare, excused
from balancer.runs.resume import describe_loras
from balancer.scheduling.prompts import ParentImage, Request
from balancer.scheduling.schedule import in_batches
from balancer.text.quantities import size
from balancer.text.safetext import shortened
from balancer.training.images import Decoder

Row = dict[str, Any]

NO_GPU = ("cpu", "none")
"""Devices in rows that are no GPU; simulated actors have none."""

LOSSY = ".jpeg"
"""Of such a file only the hash of the pixels before it was encoded can be compared."""

MAX_PROMPT = 100_000
"""Characters; those of a config have up to 1,000 for each class, value and variation."""

_OF_THE_ROW = ("guidance", "batch_size")
"""Settings that may change from row to row."""

_OF_THE_RUN = ("steps", "width", "height")
"""Settings that all rows of a run share."""

BYTES_PER_PIXEL = 500
"""Memory for a pixel of a batch while it is decoded on a CPU, at the least: 64 channels in float32, twice."""

_STARTING_POINT = ("parent_id", "strength")

_PARENT = ("id", "file_name", "pixel_sha256", "source", "status")


@dataclass(frozen=True, slots=True)
class Maker:
    """What a generator is made for: rows with the same one are made again by the same generator."""

    device: str
    model: str
    model_revision: str | None
    batch_size: int
    loras: tuple[str, ...]

    @classmethod
    def of(cls, row: Row) -> Maker:
        adapters = tuple(row.get("loras") or ())
        return cls(row["device"], row["model"], row["model_revision"], row["batch_size"], adapters)


def rows_to_reproduce(manifest: Manifest, ids: Sequence[str] | None) -> list[Row]:
    """Rows of generated candidates: with these ids, accepted or not, or all that are accepted.

    UsageError for an id that is not there, or is of a real image.
    """
    columns = list(names_read_by("reproduce", manifest.run.format))
    if ids is None:
        return list(manifest.to_table(columns, pc.field("source") == SYNTHETIC).to_pylist())
    wanted = pc.field("id").isin(list(ids))
    rows = {row["id"]: row for row in manifest.to_table(columns, wanted, status="all").to_pylist()}
    for image_id in ids:
        if image_id not in rows:
            raise UsageError(
                f"no image {image_id!r} in {manifest.uri}",
                hint="`balancer query RUN --columns id` lists them",
            )
        if rows[image_id]["source"] != SYNTHETIC:
            raise UsageError(f"{image_id!r} is a real image, which nothing has generated")
    return list({image_id: rows[image_id] for image_id in ids}.values())


def reproduce(manifest: Manifest, rows: Sequence[Row]) -> Iterator[Reproduction]:
    """Make the images of these rows again, and say of each how it compares, in no particular order.

    WeightsError if the weights are not there. On CPU one thread computes, as in a run.
    """
    config = manifest.run.config_as(Config)
    decoder, parents = Decoder.of(manifest.uri, manifest.run), _read_parents(manifest, rows)
    makers: dict[Maker, list[Row]] = {}
    for row in rows:
        if problem := _impossible(row, config) or _lacks_parent(row, parents):
            yield Reproduction(row["id"], Outcome.INCOMPARABLE, problem)
        else:
            makers.setdefault(Maker.of(row), []).append(row)
    for maker, made_by_it in makers.items():
        generator, problem = _generator(maker, config, manifest.run.models["generator"], manifest.uri)
        if generator is None:
            yield from (Reproduction(row["id"], Outcome.INCOMPARABLE, problem) for row in made_by_it)
            continue
        for batch in in_batches(made_by_it, _in_one_call, maker.batch_size):
            for reproduction in _made_again(generator, maker.batch_size, batch, decoder, parents):
                yield excused(reproduction, manifest.run.versions)


def _in_one_call(row: Row) -> tuple[float | None, float | None]:
    return row["guidance"], row.get("strength")


def _read_parents(manifest: Manifest, rows: Sequence[Row]) -> dict[str, ParentImage]:
    """The real images that rows were made from, as far as the run still has them."""
    ids = sorted({row["parent_id"] for row in rows if row["parent_id"] is not None})
    if not ids:
        return {}
    found = manifest.to_table(list(_PARENT), pc.field("id").isin(ids), status="all").to_pylist()
    return {
        row["id"]: ParentImage(row["id"], row["file_name"], row["pixel_sha256"])
        for row in found
        if row["source"] == REAL and row["file_name"] is not None
    }


def _lacks_parent(row: Row, parents: Mapping[str, ParentImage]) -> str:
    """Why its parent is missing; empty if it is there, or there is none."""
    parent = parents.get(row["parent_id"])
    if row["parent_id"] is None or (parent and row["parent_pixel_sha256"] in (None, parent.pixel_sha256)):
        return ""
    return f"the image that it was made from, {row['parent_id']!r}, is no longer in the run"


class _Made(BaseModel):
    """What a row says of how its image was made, besides the settings that a config has, too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    prompt: str = Field(max_length=MAX_PROMPT)
    negative_prompt: str = Field(max_length=MAX_PROMPT)
    seed: int
    device: str
    model: str
    batch_size: int
    guidance: float | None
    strength: float | None = Field(default=None, gt=0, le=1)


def _impossible(row: Row, config: Config) -> str:
    """Why the row is not tried: the config of the run does not allow its settings, or memory is too small.
    Empty if it can be."""
    of_row = {name: row[name] for name in _OF_THE_ROW if row[name] is not None}
    settings = config.generation.model_dump() | of_row
    try:
        _Made.model_validate({name: row.get(name) for name in _Made.model_fields})
        GenerationConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        return f"its row has {problem['loc'][0]} {shortened(repr(problem['input']))}: {problem['msg']}"
    made_from = [name for name in _STARTING_POINT if row.get(name) is not None]
    if len(made_from) == 1:
        return f"its row has {made_from[0]}, and lacks the other of {' and '.join(_STARTING_POINT)}"
    if made_from and config.generation.conditioning == "text":
        return "its row has a parent, and the run's config makes images from text alone"
    if made_from and not 1 <= (row["steps"] or 0) <= config.generation.steps:
        return f"its row has {row['steps']} steps, and the run's config {config.generation.steps} at most"
    for name in _OF_THE_RUN[bool(made_from) :]:  # with a parent fewer steps are run
        if row[name] != (expected := getattr(config.generation, name)):
            return f"its row has {name} {row[name]}, and the run's config {expected}"
    return _exceeds_memory(row)


def _exceeds_memory(row: Row) -> str:
    """Only on a CPU, where a batch that does not fit takes the machine with it. A GPU refuses by itself."""
    needed = row["batch_size"] * row["width"] * row["height"] * BYTES_PER_PIXEL
    free = psutil.virtual_memory().available
    if row["device"] not in NO_GPU or needed <= free:
        return ""
    return (
        f"a batch of {row['batch_size']} images of {row['width']} x {row['height']} pixels takes"
        f" {size(needed)} of memory at least, and {size(free)} are free"
    )


def _made_again(
    generator: Any,
    batch_size: int,
    rows: Sequence[Row],
    decoder: Decoder,
    parents: Mapping[str, ParentImage],
) -> Iterator[Reproduction]:
    """`rows` have one guidance and one strength, and are one batch at most."""
    try:
        pixels, _ = generator.generate([_request(row, parents) for row in rows], rows[0]["guidance"])
    except (ManifestError, StorageError) as error:  # of a parent
        yield from (Reproduction(row["id"], Outcome.INCOMPARABLE, error.message) for row in rows)
        return
    for row, made in zip(rows, pixels, strict=True):
        if generator.batch_size != batch_size:
            problem = f"batches of {batch_size} do not fit into the memory of this GPU, as they did then"
            yield Reproduction(row["id"], Outcome.INCOMPARABLE, problem)
            continue
        try:
            kept = decoder.pixels(row["file_name"], row["source"]) if _keeps_every_pixel(row) else None
        except BalancerError as error:
            yield Reproduction(row["id"], Outcome.INCOMPARABLE, error.message)
        else:
            yield compare(row["id"], made, kept, row["pixel_sha256"])


def _keeps_every_pixel(row: Row) -> bool:
    """Whether the file, if there is one, has the pixels as they were made."""
    return row["file_name"] is not None and not row["file_name"].endswith(LOSSY)


def _request(row: Row, parents: Mapping[str, ParentImage]) -> Request:
    parent = parents.get(row["parent_id"])
    return Request(
        row["prompt"],
        row["negative_prompt"],
        row["seed"],
        row["wording"] or 0,
        tuple(row["changes"] or ()),
        parent=parent,
        strength=None if parent is None else row.get("strength"),
    )


def _generator(maker: Maker, config: Config, kept: Mapping[str, Any], uri: str) -> tuple[Any, str]:
    """The generator, or None and why images that it makes could not be compared."""
    # Rows of a simulated run name the config's model where an earlier version wrote them.
    if maker.model not in (config.generator_name, config.generation.model):
        return None, f"it was made by {maker.model}, and run.json is about {config.generator_name}"
    if problem := _missing_gpu(maker, config) or _other_weights(maker, config, kept):
        return None, problem
    generator: Any = _spec(maker, config, uri).load()
    here: Mapping[str, str] = generator.describe()
    if here["device"] != maker.device:
        return None, _other("device", maker.device, here["device"])
    if (here["revision"] or None) != maker.model_revision:
        return None, _other("revision of the weights", maker.model_revision, here["revision"])
    return generator, ""


def _spec(maker: Maker, config: Config, uri: str) -> WorkerSpec:
    spec = generator_for(config, maker.device not in NO_GPU, uri)
    spec = dataclasses.replace(spec, batch_size=maker.batch_size)
    # The config of a run has every default, which nobody asked for.
    return dataclasses.replace(spec, asked=None) if isinstance(spec, GeneratorSpec) else spec


def _missing_gpu(maker: Maker, config: Config) -> str:
    """Checked before loading: without a GPU, a large model can exhaust memory."""
    if maker.device in NO_GPU or config.actors.kind == "simulated":
        return ""
    from actors.models.device import device_name, pick_device

    here = device_name(pick_device("auto"))
    return "" if here == maker.device else _other("device", maker.device, here)


def _other_weights(maker: Maker, config: Config, kept: Mapping[str, Any]) -> str:
    """Looked at before anything is loaded: a run may come from anywhere, and names its model itself."""
    if config.actors.kind == "simulated":
        return ""
    wanted = config.generation
    here = weights.describe(wanted.model, wanted.revision, wanted.variant, "generator")
    if here["revision"] != maker.model_revision:
        return _other("revision of the weights", maker.model_revision, here["revision"])
    sha256 = kept.get("sha256") or here["sha256"]  # a run has none if the hub had none
    if here["sha256"] != sha256:
        return _other("sha256 of the weights", sha256, here["sha256"])
    loras_here = describe_loras(loras.describe_each(config))
    return "" if loras_here == maker.loras else _other("LoRAs", *map(", ".join, (maker.loras, loras_here)))


def _other(what: str, then: str | None, now: str | None) -> str:
    was, are = ("were", "are") if what == "LoRAs" else ("was", "is")
    return f"the {what} {was} {then or 'none'}, and {are} {now or 'none'} here"
