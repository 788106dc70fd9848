"""Take over accepted images of another run: judged by this run's rules and committed, without generating.

An image that was made from a real one is taken only if candidates of this run may be made from that one, too.
It might be a test image here. So might those that a LoRA was trained on: an image that one has made is taken
only if this run has the same, which was compared with what is kept apart.

An image goes to the next open slot of the cell that has its class and facet values, as that slot's next
attempt. One that does not pass costs no attempt and leaves no row. Rows name the run and the row they come
from.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY, Candidate, Cell, Slot
from balancer.config.schema import CopiesConfig
from balancer.dataset.near_duplicates import COMPARED, KnownImage, NearDuplicateIndex, known_images
from balancer.errors import ManifestError, UsageError
from balancer.images import UnreadableImage, decode_image
from balancer.manifest.columns import ORIGIN
from balancer.manifest.layout import image_stem
from balancer.manifest.log.view import read_log, read_rows
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.query.rows import ManifestRows, open_rows
from balancer.manifest.rows import ACCEPTED, SYNTHETIC, ImageFile, Row, RunFacts, candidate_row, utc_now
from balancer.manifest.runfile import RunInfo
from balancer.manifest.schema import GROWING
from balancer.manifest.status import refuse_running
from balancer.scheduling.prompts import Request, ladder
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage, open_storage
from balancer.text.quantities import counted
from balancer.verification.verdict import ImageFlags, Measurement, Nearest, criteria_for, judge

if TYPE_CHECKING:
    from balancer.images import Pixels

BATCH_IMAGES = 16

BATCH_PIXELS = 64_000_000
"""Of all images of a batch, which are in memory at once."""

RECENT = 256
"""Images just taken that are compared one by one, until they join the others."""

MAX_BYTES = 64_000_000

MAX_PIXELS = 64_000_000

_COPIED = (
    "negative_prompt", "model", "model_revision", "steps", "guidance", "width", "height", "generated_at"
)  # fmt: skip
"""Columns that say how the image was made."""

Measure = Callable[[Iterable[tuple[Any, ...]]], Iterable[tuple[int, list[Measurement]]]]
"""Calls the verifiers' `measure` with each of many arguments; yields the number and the result of each."""


@dataclass(frozen=True, slots=True)
class Source:
    """The run that images are taken from."""

    storage: Storage
    rows: ManifestRows


@dataclass(frozen=True, slots=True)
class Target:
    """The run that takes them. `references` are real and hold-out images that none may copy; `learned` is
    what verifiers judge with besides the images. `parents` are the real images that candidates may be made
    from, id by hash of the pixels."""

    facts: RunFacts
    log: ManifestLog
    storage: Storage
    references: NearDuplicateIndex
    learned: tuple[Any, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reused:
    """How many images were `offered` for open slots, how many of them `taken`, how many fit no cell, and how
    many were made with LoRAs that this run does not have."""

    offered: int
    taken: int
    without_cell: int
    with_other_loras: int = 0

    def __str__(self) -> str:
        text = (
            f"took over {self.taken} of {counted(self.offered, 'image')} of the other run that were offered"
            f" for open slots; {self.without_cell} fit no open cell"
        )
        others = self.with_other_loras
        return f"{text}; {others} made with LoRAs that are not in generation.loras" if others else text


def find_source(uri: str | os.PathLike[str] | None, info: RunInfo | None) -> Source | None:
    """The run to take images from, None if none is named. UsageError for a run that is going on, for the run
    itself, and if the rows of this one cannot name it."""
    if uri is None:
        return None
    storage = open_storage(uri, create=False)
    refuse_running(storage, read_log(storage, ["id"]).last, utc_now(), "its images can be taken over")
    rows = open_rows(storage)
    if info is not None and rows.run.run_id == info.run_id:
        raise UsageError("--reuse names the run itself", hint="name another run folder")
    if info is not None and info.format < GROWING:
        raise UsageError(
            "an earlier version began this run: its rows have no place for where an image comes from",
            hint="choose another --out",
        )
    return Source(storage, rows)


class _Known:
    """What an image may copy: the references, and the images of this run, those just taken included."""

    def __init__(
        self, references: NearDuplicateIndex, own: Sequence[KnownImage], limits: CopiesConfig
    ) -> None:
        self._references, self._own, self._limits = references, [*own], limits
        self._before, self._recent = NearDuplicateIndex(self._own, limits), NearDuplicateIndex([], limits)

    def nearest(self, measurement: Measurement, besides: str | None = None) -> Nearest | None:
        indexes = (self._references, self._before, self._recent)
        near = [found for index in indexes if (found := index.nearest(measurement, besides)) is not None]
        return next(filter(self._references.is_duplicate, near), near[0] if near else None)

    def add(self, name: str, measurement: Measurement) -> None:
        self._own.append(KnownImage(name, measurement.phash, measurement.pixel_sha256, measurement.embedding))
        settled = len(self._before)
        if len(self._own) - settled > RECENT:
            self._before, settled = NearDuplicateIndex(self._own, self._limits), len(self._own)
        self._recent = NearDuplicateIndex(self._own[settled:], self._limits)


def take_over(source: Source, target: Target, schedule: Schedule, measure: Measure) -> Reused:
    """Offer the accepted images of `source`, in the order of its rows, to the open slots of `schedule`."""
    facts = target.facts
    table = target.log.table([*ORIGIN, "id", "slot", "attempt", "status", "source"])
    rows, with_other_loras = _list_rows(source, facts)
    offers, without_cell = _list_offers(source, rows, table, schedule, facts.facets, target.parents)
    slots = _open_slots(schedule, table, len(ladder(facts.config)))
    known = _Known(target.references, _own_images(table, target.storage), facts.config.verification.copies)
    offered = taken = 0
    while batches := _next_batches(offers, slots):
        arguments = (_arguments(batch, source, target.learned) for batch in batches)
        measured = dict(measure(arguments))
        for number, batch in enumerate(batches):  # in order: which slot an image gets must not depend on time
            offered += len(batch)
            taken += _commit(batch, measured[number], slots, source, target, known)
    return Reused(offered, taken, without_cell, with_other_loras)


@dataclass(frozen=True, slots=True)
class _Offer:
    """`row` has the `parent_id` that its parent has in this run."""

    row: Row
    cell: Cell


def _list_rows(source: Source, facts: RunFacts) -> tuple[list[Row], int]:
    """Rows of images that were made without LoRAs, or with some of those of this run, whatever their weights;
    the number of all others."""
    rows = source.rows.to_table(filter=f"source = '{SYNTHETIC}'").drop_columns(["embedding"]).to_pylist()
    ours = _lora_hashes(facts.loras)
    fitting = [row for row in rows if _lora_hashes(row.get("loras")) <= ours]
    return fitting, len(rows) - len(fitting)


def _lora_hashes(loras: Sequence[str] | None) -> set[str]:
    """Of the column `loras`, whose entries are `sha256=weight`."""
    return {entry.partition("=")[0] for entry in loras or ()}


def _list_offers(
    source: Source,
    rows: Sequence[Row],
    table: pa.Table,
    schedule: Schedule,
    facets: Sequence[str],
    parents: Mapping[str, str],
) -> tuple[dict[Cell, deque[Row]], int]:
    """Rows by the open cell that they fit, without those that were taken over before."""
    before = {row["origin_id"] for row in table.to_pylist() if row["origin_run_id"] == source.rows.run.run_id}
    cells = {_key(cell.class_name, {name: cell.value(name) for name in facets}, facets): cell
             for cell, quota, _ in schedule.quotas if quota}  # fmt: skip
    offers: dict[Cell, deque[Row]] = defaultdict(deque)
    others = 0
    for row in rows:
        if row["parent_id"] is not None:
            row["parent_id"] = parents.get(row["parent_pixel_sha256"])
            if row["parent_id"] is None:
                others += 1
                continue
        cell = cells.get(_key(row[CLASS_PROPERTY], row, facets))
        if cell is None:
            others += 1
        elif row["id"] not in before:
            offers[cell].append(row)
    return offers, others


def _key(class_name: str, values: Mapping[str, Any], facets: Sequence[str]) -> tuple[str | None, ...]:
    return (class_name, *(values.get(name) for name in facets))


def _open_slots(schedule: Schedule, table: pa.Table, attempts: int) -> dict[Cell, deque[Candidate]]:
    """The next attempts of open slots; none of slots in which a candidate is to be made again."""
    tried: dict[str, int] = {}
    void: set[str] = set()
    for row in table.to_pylist():
        if row["source"] == SYNTHETIC:
            tried[row["slot"]] = max(tried.get(row["slot"], 0), row["attempt"])
            void |= {row["slot"]} if row["status"] == "void" else set()
    slots: dict[Cell, deque[Candidate]] = defaultdict(deque)
    for cell, quota, _ in schedule.quotas:
        for slot in (Slot(cell, index) for index in range(quota)):
            attempt = tried.get(slot.key, 0) + 1
            is_settled = slot in schedule.accepted or slot in schedule.short
            if not is_settled and slot.key not in void and attempt <= attempts:
                slots[cell].append(Candidate(slot, attempt))
    return slots


def _next_batches(
    offers: Mapping[Cell, deque[Row]], slots: Mapping[Cell, deque[Candidate]]
) -> list[list[_Offer]]:
    """For each open cell as many offers as it has slots, in parts of one size each that a verifier takes."""
    by_size: dict[tuple[int, int], list[_Offer]] = defaultdict(list)
    for cell, rows in offers.items():
        for _ in range(min(len(rows), len(slots.get(cell, ())))):
            row = rows.popleft()
            by_size[row["height"], row["width"]].append(_Offer(row, cell))
    batches = []
    for (height, width), part in by_size.items():
        count = max(1, min(BATCH_IMAGES, BATCH_PIXELS // max(1, height * width)))
        batches += [part[at : at + count] for at in range(0, len(part), count)]
    return batches


def _arguments(offers: Sequence[_Offer], source: Source, learned: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of `measure`. The safety score of a generator's own checker is kept."""
    pixels = np.stack([_pixels(offer.row, source) for offer in offers])
    flags = [ImageFlags(offer.row["nonfinite"], offer.row["unsafe"]) for offer in offers]
    return (pixels, flags, [offer.cell for offer in offers], *learned)


def _pixels(row: Row, source: Source) -> Pixels:
    try:
        pixels = decode_image(_read(row, source), max_pixels=MAX_PIXELS)
    except UnreadableImage as error:
        raise ManifestError(f"{source.storage.uri}: {row['file_name']}: {error.reason}") from error
    height, width = pixels.shape[:2]
    if (height, width) != (row["height"], row["width"]):
        raise ManifestError(
            f"{source.storage.uri}: {row['file_name']} has {width} x {height} pixels, and its row names"
            f" {row['width']} x {row['height']}",
            hint="`balancer fsck` lists everything that is wrong",
        )
    return pixels


def _read(row: Row, source: Source) -> bytes:
    data = source.storage.read(row["file_name"], MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ManifestError(
            f"{source.storage.uri}: {row['file_name']} is not the image that its row names",
            hint="`balancer fsck` lists everything that is wrong",
        )
    return data


def _commit(
    offers: Sequence[_Offer],
    measurements: Sequence[Measurement],
    slots: Mapping[Cell, deque[Candidate]],
    source: Source,
    target: Target,
    known: _Known,
) -> int:
    """Commit those that pass; returns their number."""
    rows = []
    for offer, measurement in zip(offers, measurements, strict=True):
        row = _judged(offer, measurement, slots[offer.cell][0], source, target, known)
        if row is not None:
            known.add(row["id"], measurement)
            slots[offer.cell].popleft()
            rows.append(row)
    target.log.commit(rows)
    return len(rows)


def _own_images(table: pa.Table, storage: Storage) -> list[KnownImage]:
    generated = table.filter((pc.field("source") == SYNTHETIC) & (pc.field("status") == ACCEPTED))
    return known_images(read_rows(storage, generated["id"].to_pylist(), COMPARED))


def _judged(
    offer: _Offer,
    measurement: Measurement,
    candidate: Candidate,
    source: Source,
    target: Target,
    known: _Known,
) -> Row | None:
    """The row of an image that passes, whose file is there by then."""
    facts, row = target.facts, offer.row
    rung = ladder(facts.config)[candidate.attempt - 1]
    criteria = criteria_for(offer.cell, rung.threshold, facts.config, facts.domain)
    nearest = known.nearest(measurement, row["parent_id"])
    parent = row["parent_id"] and target.references.compare(measurement, row["parent_id"])
    verdict = judge(measurement, offer.cell, criteria, nearest, parent)
    if not verdict.accepted:
        return None
    changes = tuple(row["changes"] or ())
    words = row["prompt"], row["negative_prompt"] or ""
    request = Request(*words, row["seed"], changes=changes, strength=row.get("strength"))
    judged = candidate_row(
        candidate,
        rung,
        request,
        measurement,
        verdict,
        _publish(row, candidate, source, target),
        nearest=nearest,
        parent=parent,
        device=row["device"],
        batch_size=row["batch_size"],
        facts=facts,
    )
    made_from = {} if parent is None else {"parent_pixel_sha256": row["parent_pixel_sha256"]}
    adapted = {} if facts.loras is None else {"loras": row.get("loras")}
    origin = {"origin_run_id": source.rows.run.run_id, "origin_id": row["id"], "wording": None}
    return judged | {name: row[name] for name in _COPIED} | made_from | adapted | origin


def _publish(row: Row, candidate: Candidate, source: Source, target: Target) -> ImageFile:
    """The same bytes: the mark in the image tells of the run that made it."""
    data = _read(row, source)
    stem = target.log.free_name(image_stem(candidate, target.facts.facets))
    name = f"{stem}-{row['sha256'][:12]}.{row['file_name'].rpartition('.')[2]}"
    target.storage.publish(name, data)
    return ImageFile(name, row["sha256"], len(data))
