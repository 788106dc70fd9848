"""A balanced dataset beside what it was made of: before, as planned, and after, by class, facet and cell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.dataset.splits import EVALUATION
from balancer.report.criteria import Criterion, check_criteria
from balancer.report.facts import Facts, gather_facts

if TYPE_CHECKING:
    from balancer.dataset.decoding.watching import Watch
    from balancer.manifest.query.rows import ManifestRows
    from balancer.storage import Storage


@dataclass(frozen=True, slots=True)
class Step:
    """Training images of a class, a facet value or a cell: `before` are real, `planned` and `after` are those
    with what the plan adds, and with what was accepted. Real images whose values nobody knows count for their
    class only."""

    name: str
    before: int
    planned: int
    after: int

    @property
    def real_share(self) -> float | None:
        return self.before / self.after if self.after else None


@dataclass(frozen=True, slots=True)
class Balance:
    """`images` is what was found when the files were read, None if they were not."""

    classes: tuple[Step, ...]
    facets: Mapping[str, tuple[Step, ...]]
    cells: tuple[Step, ...]
    criteria: tuple[Criterion, ...]
    images: ImageAudit | None = None

    @property
    def whole(self) -> Step:
        """All classes together."""
        return Step("all", *(sum(getattr(step, name) for step in self.classes) for name in STAGES))

    @property
    def imbalance(self) -> dict[str, float | None]:
        """The largest class by the smallest, at each stage; None while a class has no image."""
        return {name: _ratio([getattr(step, name) for step in self.classes]) for name in STAGES}

    def as_dict(self) -> dict[str, Any]:
        return {
            "classes": _by_name(self.classes),
            "facets": {name: _by_name(steps) for name, steps in self.facets.items()},
            "cells": _by_name(self.cells),
            "all": _of(self.whole),
            "imbalance": self.imbalance,
            "criteria": [asdict(criterion) for criterion in self.criteria],
            "images": None if self.images is None else asdict(self.images),
        }


STAGES = ("before", "planned", "after")


@dataclass(frozen=True, slots=True)
class ImageAudit:
    """What reading every image of the balanced dataset showed. `changed` are files that no longer have the
    content that their row says."""

    read: int
    unreadable: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    """Names of files with the same bytes."""


def weigh(manifest: ManifestRows, facts: Facts, images: ImageAudit | None = None) -> Balance:
    """The balance of a run whose `facts` were gathered from the same rows."""
    real = _real_by_values(manifest, facts.run.facets)
    cells = [_cell(facts, real, position) for position in range(len(facts.cells))]
    return Balance(
        classes=tuple(
            Step(each.name, each.real, each.real + each.planned, each.total) for each in facts.classes
        ),
        facets={name: _facet(facts, real, axis) for axis, name in enumerate(facts.run.facets)},
        cells=tuple(cells),
        criteria=check_criteria(facts, manifest),
        images=images,
    )


def audit_run(storage: Storage, watch: Watch | None = None) -> Balance:
    """Audit the balanced dataset of a run: count its rows, and read its images if they are in a folder."""
    from balancer.manifest.query.rows import open_rows
    from balancer.manifest.rows import utc_now
    from balancer.manifest.status import read_status

    manifest = open_rows(storage)
    facts = gather_facts(manifest, read_status(storage, utc_now()))
    return weigh(manifest, facts, _read_images(storage, manifest, watch))


# ---- counting ------------------------------------------------------------------------------------

_Values = tuple[str | None, ...]
_Real = Mapping[str, Counter[_Values]]
"""Real training images of each class by their facet values."""


def _real_by_values(manifest: ManifestRows, facets: Sequence[str]) -> _Real:
    import pyarrow.compute as pc

    real: defaultdict[str, Counter[_Values]] = defaultdict(Counter)
    for row in manifest.count_by("class", "split", *facets, filter=pc.field("source") == "real").to_pylist():
        if row["split"] not in EVALUATION:
            real[row["class"]][tuple(row[name] for name in facets)] += row["count"]
    return real


def _cell(facts: Facts, real: _Real, position: int) -> Step:
    cell = facts.cells[position]

    def is_alike(values: _Values) -> bool:
        pairs = zip(cell.values, values, strict=True)
        return all(wanted is None or wanted == value for wanted, value in pairs)

    return _step(cell.key, _count(real[cell.class_name], is_alike), cell.wanted, cell.accepted)


def _facet(facts: Facts, real: _Real, axis: int) -> tuple[Step, ...]:
    values = facts.config.facets[facts.run.facets[axis]].values
    before = Counter[str | None]()
    for counts in real.values():
        for known, count in counts.items():
            before[known[axis]] += count
    made = {value: [cell for cell in facts.cells if cell.values[axis] == value] for value in values}
    return tuple(
        _step(
            value,
            before[value],
            sum(cell.wanted for cell in made[value]),
            sum(cell.accepted for cell in made[value]),
        )
        for value in values
    )


def _step(name: str, before: int, wanted: int, accepted: int) -> Step:
    return Step(name, before, before + wanted, before + accepted)


def _count(counts: Mapping[_Values, int], is_alike: Callable[[_Values], bool]) -> int:
    return sum(count for values, count in counts.items() if is_alike(values))


def _ratio(counts: Sequence[int]) -> float | None:
    return max(counts) / min(counts) if counts and min(counts) else None


def _by_name(steps: Iterable[Step]) -> dict[str, dict[str, float | None]]:
    return {step.name: _of(step) for step in steps}


def _of(step: Step) -> dict[str, float | None]:
    return {name: getattr(step, name) for name in (*STAGES, "real_share")}


# ---- reading -------------------------------------------------------------------------------------


def _read_images(storage: Storage, manifest: ManifestRows, watch: Watch | None) -> ImageAudit | None:
    """As a dataset is audited: in processes with limits, and from the cache where nothing changed."""
    from balancer.dataset.decoding.fact_cache import read_known_images
    from balancer.dataset.decoding.image_info import DecodeLimits
    from balancer.dataset.decoding.watching import unwatched
    from balancer.manifest.image_files import max_image_bytes, max_image_pixels
    from balancer.storage import LocalStorage

    if not isinstance(storage, LocalStorage):
        return None
    rows = manifest.to_table(["file_name", "sha256"])
    expected = dict(zip(*(rows[name].to_pylist() for name in ("file_name", "sha256")), strict=True))
    names = [name for name in expected if name is not None]
    limits = DecodeLimits(max_image_bytes(manifest.run), max_image_pixels(manifest.run))
    with (watch or unwatched)(len(names)) as count:
        infos = read_known_images(Path(storage.uri), names, limits, count)
    by_hash: defaultdict[str, list[str]] = defaultdict(list)
    unreadable, changed = [], []
    for name, info in zip(names, infos, strict=True):
        if isinstance(info, str):
            unreadable.append((name, info))
            continue
        by_hash[info.sha256].append(name)
        if info.sha256 != expected[name]:
            changed.append(name)
    same = tuple(tuple(names) for names in by_hash.values() if len(names) > 1)
    return ImageAudit(len(names) - len(unreadable), tuple(unreadable), tuple(changed), same)
