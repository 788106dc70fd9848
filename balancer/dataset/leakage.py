"""Find leaks: training rows that show a classifier what it is tested on.

Three rules keep test figures honest, whoever wrote the rows. Generated images are for training. An image
generated from another one belongs to that one's split. No image is in two splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates_across, hash_numbers, near_any
from balancer.dataset.splits import EVALUATION, SPLITS, TEST, TRAIN, VALIDATION, resolve_split
from balancer.manifest.rows import ACCEPTED, SYNTHETIC

if TYPE_CHECKING:
    from balancer.config.schema import CopiesConfig
    from balancer.verification.verdict import Nearest

LATER = {TRAIN: EVALUATION, VALIDATION: (TEST,)}
"""For each split, the later splits whose images it must not show. Of two copies, the later one stays."""

LOOKS = ("id", "split", "phash")

Load = Callable[[Sequence[str]], list[KnownImage]]
"""Loads images with embeddings by their ids."""


class ManifestRow(Protocol):
    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Leak:
    """A rule that a row breaks. `listed` leaks are only reported: two images may look alike by chance, and
    readers by split never get both."""

    row_id: str
    rule: str
    detail: str
    listed: bool = False


def find_later_split_copies(
    rows: pa.Table, held_out: pa.Table, load: Load, limits: CopiesConfig
) -> dict[str, Nearest]:
    """The `rows` that duplicate an image of a later split in `held_out`: id -> the nearest of those images.

    Both tables have the columns LOOKS. Images without a hash are skipped. `load` gets only ids whose hashes
    are close.
    """
    nearest: dict[str, Nearest] = {}
    for split, later in LATER.items():
        ones, others = _select_splits(rows, (split,)), _select_splits(held_out, later)
        near, other_near = near_any(_hashes(ones), _hashes(others), limits.max_distance)
        if near.any():
            nearest |= find_near_duplicates_across(
                load(_ids(ones, near)), load(_ids(others, other_near)), limits
            )
    return nearest


def find_leaks(rows: Sequence[ManifestRow], load: Load, limits: CopiesConfig) -> Iterator[Leak]:
    """Yield every leak among manifest rows with id, source, status, split, parent_id and phash."""
    accepted = [row for row in rows if row["status"] == ACCEPTED]
    known = {row["id"]: (row["split"], row["parent_id"]) for row in rows}
    for row in accepted:
        if row["split"] is not None and row["split"] not in SPLITS:
            yield Leak(row["id"], "known splits", f"is of split {row['split']!r}")
        yield from _lineage(row, known)
    looks = pa.table({name: pa.array([row[name] for row in accepted], pa.string()) for name in LOOKS})
    for row_id, copied in find_later_split_copies(looks, looks, load, limits).items():
        where = f"{copied.id!r} of split {known[copied.id][0]!r}, itself in {known[row_id][0]!r}"
        if copied.same_pixels:
            yield Leak(row_id, "no picture in two splits", f"is the same picture as {where}")
        else:
            alike = f"{copied.distance} bits apart, cosine {copied.similarity:.3f}"
            yield Leak(row_id, "no copies across splits", f"looks like {where} ({alike})", listed=True)


def _lineage(row: ManifestRow, known: Mapping[str, tuple[str | None, str | None]]) -> Iterator[Leak]:
    """Yield the leaks of an accepted row that its own split or its parent's reveals."""
    belongs, parent = resolve_split(row["id"], known), row["parent_id"]
    if parent is not None and belongs is None:
        yield Leak(row["id"], "parents are there", f"was generated from {parent!r}, which leads to no image")
    elif belongs != row["split"]:
        detail = f"is of split {row['split']!r}, and {parent!r}, of which it was generated, of {belongs!r}"
        yield Leak(row["id"], "children follow their parents", detail)
    if row["source"] == SYNTHETIC and belongs in EVALUATION:
        yield Leak(row["id"], "generated images are for training", f"belongs to split {belongs!r}")


def _select_splits(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    return rows.filter(pc.field("split").isin(list(splits)) & pc.field("phash").is_valid())


def _hashes(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return hash_numbers(rows["phash"].to_pylist())


def _ids(rows: pa.Table, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> list[str]:
    ids: list[str] = rows["id"].filter(pa.array(chosen)).to_pylist()
    return ids
