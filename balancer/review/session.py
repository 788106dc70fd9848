"""One person's review of a run: what is asked, what was said, and what of it is in the log."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import Config
from balancer.errors import FencedError, UsageError
from balancer.manifest.image_files import ImageFiles
from balancer.manifest.layout import REJECTED_DIR, path_in_reason, rejected_paths
from balancer.manifest.log.view import LogView, read_log
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC
from balancer.manifest.rules import config_under
from balancer.manifest.runfile import RunInfo, read_run
from balancer.review import pending
from balancer.review.decisions import (
    REJECT_REASONS,
    Decision,
    Queue,
    from_details,
    last_words,
    not_undone,
    once_each,
)
from balancer.review.effects import REVIEWED
from balancer.review.estimates import bound_without_errors
from balancer.review.sampling import (
    Sample,
    as_shown,
    draw_sample,
    least_certain,
    still_to_decide,
    verified_images,
)
from balancer.review.summary import seed_of
from balancer.review.turn import LogInUseError, commit_waiting
from balancer.text.names import near
from balancer.text.quantities import counted
from balancer.text.safetext import shortened

if TYPE_CHECKING:
    from balancer.storage import Storage

__all__ = ["REJECT_REASONS", "Decision", "Item", "Progress", "ReviewSession"]

EXAMPLES = 6
"""Real images of its class that stand beside an image."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image to decide about. `file_name` is relative to the run folder, or absolute for a real image by
    reference; read it by `ReviewSession.read_image`. `real_examples` are file names of real images of the
    class, likewise."""

    id: str
    class_name: str
    facets: Mapping[str, str]
    file_name: str
    question: str
    real_examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one reviewer in one queue. `waiting` are decisions that are durable, but not in the log yet."""

    decided: int
    total: int
    waiting: int
    sentence: str


@dataclass(frozen=True, slots=True)
class _Material:
    """What was read of the run."""

    info: RunInfo
    config: Config
    rows: Mapping[str, Mapping[str, Any]]
    """Candidates that can be asked about, by id."""
    real: Mapping[str, Mapping[str, Any]]
    sample: Sample
    kept: Mapping[str, str]
    """Files of rejected candidates, by id."""
    sources: Mapping[str, str]
    """Of each image that can be shown, by file name."""
    examples: Mapping[str, Sequence[Mapping[str, Any]]]
    """Real images of each class, one more than are shown."""


@dataclass(slots=True)
class ReviewSession:
    """Made by `open`. Its methods may be called by several threads."""

    storage: Storage
    reviewer: str
    queue: str
    """`estimate`, `correct` or the name of a class."""
    _material: _Material
    _decisions: list[Decision]
    _waiting: tuple[tuple[str, ...], int] = ((), 0)
    _order: Sequence[str] | None = None
    """What is shown, until the run is read again."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(cls, storage: Storage, reviewer: str, queue: str) -> ReviewSession:
        """UsageError if the folder holds no run, or for a queue that is neither `estimate`, `correct` nor one
        of its classes."""
        material, decisions = _read(storage)
        classes = material.info.config["classes"]
        if queue not in ("estimate", "correct", *classes):
            choices = ["estimate", "correct", *classes]
            meant = near(queue, choices)
            raise UsageError(
                f"no queue {queue!r}",
                hint=f"did you mean {meant!r}?" if meant else f"there are {', '.join(choices)}",
            )
        return cls(storage, reviewer, queue, material, decisions)

    @property
    def kind(self) -> Queue:
        """What its decisions say in `queue`."""
        return "estimate" if self.queue == "estimate" else "correct"

    @property
    def info(self) -> RunInfo:
        return self._material.info

    def refresh(self) -> None:
        """Read the run again: it may have new images, and others may have decided."""
        material, decisions = _read(self.storage)
        with self._lock:
            self._material, self._order = material, None
            self._decisions = once_each([*decisions, *self._decisions])

    def items(self, most: int | None = None) -> Sequence[Item]:
        """What is still to be decided by this reviewer, in order, or the first of it. In the queue `estimate`
        an image can come twice, and images of the dataset are among them: the page must not show which."""
        with self._lock:
            return [_item(self._material, item) for item in self._left()[:most]]

    def save(self, decisions: Sequence[Decision]) -> None:
        """Write decisions down; they are durable when it returns, and once only however often they are sent.
        StorageError if they are not."""
        with self._lock:
            known = {decision.key for decision in self._decisions}
            new = [decision for decision in once_each(decisions) if decision.key not in known]
            if new:
                pending.save(self.storage, self._material.info.run_id, new)
                self._decisions += new

    def progress(self) -> Progress:
        with self._lock:
            left, total = len(self._left()), len(self._shown())
            waiting = self._count_waiting()
            return Progress(total - left, total, waiting, self._sentence(left))

    def commit(self) -> int:
        """Take what waits into the log, unless somebody else holds it: a driver takes it in then. Returns how
        many decisions were taken in."""
        with self._lock:
            try:
                return commit_waiting(self.storage).decisions
            except (LogInUseError, FencedError):
                return 0

    def read_image(self, file_name: str) -> bytes:
        """The bytes of an image that an item names; UsageError for any other file, StorageError if it is not
        there."""
        material = self._material
        if file_name not in material.sources:
            raise UsageError(f"no image of this review is called {shortened(file_name)}")
        files = ImageFiles.of(self.storage.uri, material.info)
        return files.read_from(self.storage, file_name, material.sources[file_name])

    def standing(self) -> Mapping[str, Decision]:
        """What this reviewer last said of each item."""
        with self._lock:
            words = last_words(self._decisions)
            return {item: of[self.reviewer] for item, of in words.items() if self.reviewer in of}

    def _count_waiting(self) -> int:
        """The files are read only if they are others than before."""
        paths = tuple(pending.list_pending(self.storage))
        if paths != self._waiting[0]:
            files = pending.read_pending(self.storage, self.info.run_id, paths)
            self._waiting = paths, sum(len(file.decisions) for file in files)
        return self._waiting[1]

    def _shown(self) -> Sequence[str]:
        if self._order is None:
            self._order = self._ordered()
        return self._order

    def _ordered(self) -> Sequence[str]:
        material = self._material
        if self.queue == "estimate":
            known = _like_the_sample(material)
            return as_shown(material.sample.ids, known, self.reviewer, seed_of(material.info))
        apart = set(material.sample.ids)
        rows = [
            row
            for row in material.rows.values()
            if row["id"] not in apart
            and self.queue in ("correct", row["class"])
            and (row["status"] == ACCEPTED or row["id"] in material.kept)
        ]
        return [row["id"] for row in least_certain(rows)]

    def _left(self) -> Sequence[str]:
        mine = [decision for decision in not_undone(self._decisions) if decision.reviewer == self.reviewer]
        if self.queue == "estimate":
            mine = [decision for decision in mine if decision.queue == "estimate"]
        return still_to_decide(self._shown(), Counter(decision.item for decision in mine))

    def _sentence(self, left: int) -> str:
        if self.queue != "estimate":
            return f"{counted(left, 'image')} left, the least certain first"
        size, population = len(self._material.sample.ids), self._material.sample.population
        return describe_sample(size, population)


def _like_the_sample(material: _Material) -> list[str]:
    """Real images that are asked about as generated ones are: a shorter question would tell them apart."""
    facets = {
        item["class"]: [name for name in material.info.facets if item[name] is not None]
        for item in material.info.plan
        if item["quota"]
    }
    return [
        row["id"]
        for row in material.real.values()
        if row["class"] in facets and all(row[name] is not None for name in facets[row["class"]])
    ]


def describe_sample(size: int, population: int) -> str:
    """What a sample of that size can show, before anybody has looked at it."""
    if not size:
        return "no image is marked for review: review.fraction or review.margin draws a sample"
    return (
        f"{counted(size, 'image')} of {population:,} and no error would still allow "
        f"{bound_without_errors(size):.0%} wrong labels (95 % confidence)"
    )


def question(class_words: str, facet_words: Sequence[str]) -> str:
    """In words, as the generator was asked: "Is this a burnt pizza: dim light, charred spots?"."""
    asked = f"{class_words}: {', '.join(facet_words)}" if facet_words else class_words
    return f"Is this {asked}?"


def _item(material: _Material, item: str) -> Item:
    row = material.rows.get(item) or material.real[item]
    facets = {name: row[name] for name in material.info.facets if row[name] is not None}
    return Item(
        id=item,
        class_name=row["class"],
        facets=facets,
        file_name=row["file_name"] or material.kept[item],
        question=_question_of(material.config, row["class"], facets),
        real_examples=_examples(material, row),
    )


def _question_of(config: Config, class_name: str, facets: Mapping[str, str]) -> str:
    wordings = config.properties()

    def first(name: str, value: str) -> str:
        return next(iter(wordings.get(name, {}).get(value, ())), value)

    return question(first(CLASS_PROPERTY, class_name), [first(name, value) for name, value in facets.items()])


def _examples(material: _Material, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Real images of the class, but not the image itself, which may be one of them."""
    others = (real for real in material.examples.get(row["class"], ()) if real["id"] != row["id"])
    return tuple(real["file_name"] for real in others)[:EXAMPLES]


def _examples_by_class(real: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in real:
        of_class = found.setdefault(row["class"], [])
        if len(of_class) <= EXAMPLES:
            of_class.append(row)
    return found


def _read(storage: Storage) -> tuple[_Material, list[Decision]]:
    begun = read_run(storage)
    view = read_log(storage, columns_of_review(begun))
    info = begun.under(view.rules)
    config = config_under(info, view.rules.overrides)
    made = _rows(view, (pc.field("source") == SYNTHETIC) & pc.field("status").isin([ACCEPTED, REJECTED]))
    real = _rows(view, (pc.field("source") == REAL) & (pc.field("status") == ACCEPTED))
    filled = {row["slot"] for row in made if row["status"] == ACCEPTED}
    images = verified_images(made)
    sample = draw_sample(images, seed_of(info), config.review.margin)
    kept = _kept_images(storage, info, [row for row in made if row["slot"] not in filled])
    asked = {row["id"]: row for row in made if row["status"] == ACCEPTED or row["id"] in kept}
    asked |= {row["id"]: row for row in images}
    sources = {row["file_name"]: row["source"] for row in (*asked.values(), *real) if row["file_name"]}
    sources |= dict.fromkeys(kept.values(), SYNTHETIC)
    material = _Material(
        info=info,
        config=config,
        rows=asked,
        real={row["id"]: row for row in real},
        sample=sample,
        kept=kept,
        sources=sources,
        examples=_examples_by_class(real),
    )
    return material, pending.all_decisions(storage, info.run_id, from_details(view.details))


def columns_of_review(info: RunInfo) -> tuple[str, ...]:
    names = "id class cell slot attempt source status reason review score threshold file_name".split()
    return (*names, *info.facets, *((REVIEWED,) if info.has_reviewed else ()))


def _rows(view: LogView, where: pc.Expression) -> list[dict[str, Any]]:
    table: pa.Table = view.table.filter(where)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _kept_images(storage: Storage, info: RunInfo, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The files of candidates that the verifier rejected for what they show, by id, as far as they were
    kept."""
    properties = {CLASS_PROPERTY, *info.facets}
    there = {path_in_reason(path): path for path in storage.list(REJECTED_DIR)}
    found = {}
    for row in rows:
        if info.has_reviewed and row["status"] == REJECTED and row["reason"] in properties:
            paths = (there.get(path_in_reason(path)) for path in rejected_paths(row["id"], row["reason"]))
            if path := next(filter(None, paths), None):
                found[row["id"]] = path
    return found
