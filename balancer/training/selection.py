"""Which rows a split gives: the one door to them for training, evaluation and exports.

Three rules hold whatever the filter is. An image belongs where the image it was generated from belongs. A
generated image never tests a classifier, unless the caller says so. And a picture that is in a later split
too, or in the hold-out, is left out, and so is what was made from it: what is tested on has not been trained
on.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import CopiesConfig
from balancer.dataset.leakage import LOOKS, find_later_split_copies
from balancer.dataset.near_duplicates import KnownImage, known_images
from balancer.dataset.splits import EVALUATION, SPLITS, resolve_split
from balancer.errors import UsageError
from balancer.manifest.rows import REAL, SYNTHETIC
from balancer.text.quantities import counted
from balancer.training.recommended import read_recommended, without_harmful

if TYPE_CHECKING:
    from balancer.manifest.query.rows import ManifestRows
    from balancer.training.choice import Choice

_NEEDED = ("id", "source", "split", "parent_id", "nearest_id")

LEFT_OUT_COLUMNS = (*_NEEDED, "phash")


@dataclass(frozen=True, slots=True)
class Selection:
    """`rows` in the order of the manifest; their `split` is the one they belong to. `left_out` are rows that
    show what an image of a later split or of the hold-out shows: id -> that image."""

    rows: pa.Table
    left_out: Mapping[str, str]

    @property
    def remark(self) -> str:
        """A line on what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        one, other = next(iter(self.left_out.items()))
        return (
            f"left out: {counted(len(self.left_out), 'image')}, because a later split or the hold-out shows "
            f"the same: {one} is {other} (`balancer fsck` lists those between splits)"
        )


def select(
    manifest: ManifestRows,
    columns: Sequence[str],
    choice: Choice,
    *,
    quarantined: Sequence[str] = (),
    may_be_empty: bool = False,
) -> Selection:
    """The rows that are asked for with these columns and a few more. `quarantined` are cells that stay out.

    Raises UsageError for a split that is none, for a filter that cannot be read, if generated images would be
    in validation or test, without the evaluation that `recommended` needs, and unless `may_be_empty` if there
    are no rows.
    """
    split = choice.split
    _check_split(split)
    held_out = manifest.to_table(list(LOOKS), _is_held_out())
    looks = ("phash",) if held_out.num_rows else ()
    outcome = read_recommended(manifest) if choice.recommended else None
    by_class = (CLASS_PROPERTY,) if outcome else ()
    rows = manifest.to_table(list(dict.fromkeys([*columns, *_NEEDED, *looks, *by_class])), choice.filter)
    if outcome:
        rows = without_harmful(rows, outcome)
    rows = _followed(rows, manifest)
    rows = rows.filter(pc.field("split").is_valid() if split is None else pc.field("split") == split)
    if not choice.allow_synthetic_eval:
        _refuse_generated(rows)
    left_out = _copies(rows, held_out, manifest)
    if left_out:
        rows = rows.filter(~pc.field("id").isin(list(left_out)))
    if not rows.num_rows and not may_be_empty:
        raise _nothing(manifest, choice)
    if quarantined:
        rows = _without_cells(rows, manifest, quarantined)
    return Selection(rows, left_out)


def _without_cells(rows: pa.Table, manifest: ManifestRows, cells: Sequence[str]) -> pa.Table:
    ids = manifest.to_table(["id"], pc.field("cell").isin(list(cells)))["id"]
    others = rows.filter(~pc.field("id").isin(ids.combine_chunks()))
    if not others.num_rows:
        raise UsageError("all its cells are quarantined", hint="decide about them, or pass --quarantined")
    return others


def warn_of_left_out(selection: Selection) -> None:
    """For those who call from Python."""
    if selection.remark:
        warnings.warn(selection.remark, stacklevel=4)


def find_left_out(accepted: pa.Table, manifest: ManifestRows) -> dict[str, str]:
    """The `left_out` of selecting every accepted row, from rows that were read already: all of them, with
    LEFT_OUT_COLUMNS."""
    rows = _followed(accepted, manifest)
    return _copies(rows.filter(pc.field("split").is_valid()), accepted.filter(_is_held_out()), manifest)


def _copies(rows: pa.Table, held_out: pa.Table, manifest: ManifestRows) -> dict[str, str]:
    return _own_copies(rows, held_out, manifest) | _children_of_copies(rows, held_out, manifest)


def _own_copies(rows: pa.Table, held_out: pa.Table, manifest: ManifestRows) -> dict[str, str]:
    copies = _copies_of_holdout(rows)
    if held_out.num_rows:
        copies |= _copies_of_later_splits(rows, held_out.select(list(LOOKS)), manifest)
    return copies


def _children_of_copies(rows: pa.Table, held_out: pa.Table, manifest: ManifestRows) -> dict[str, str]:
    """Images made from a copy: no run draws one as parent, but the image it copies may have come later."""
    children = rows.filter(rows["parent_id"].is_valid())
    if not children.num_rows:
        return {}
    parents = {name: parent for name, (_, parent) in _ancestry(children, manifest).items()}
    ancestors = pa.array(sorted({parent for parent in parents.values() if parent}), pa.string())
    among = manifest.to_table([*LEFT_OUT_COLUMNS], pc.field("id").isin(ancestors), status="all")
    copies = _own_copies(_followed(among, manifest), held_out, manifest)
    shown: dict[str, str] = {}
    for child in children["id"].to_pylist():
        name, passed = parents[child], {child}
        while name is not None and name not in passed:
            if name in copies:
                shown[child] = copies[name]
                break
            passed.add(name)
            name = parents.get(name)
    return shown


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1)
        question = f", did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no split {split!r}{question}", hint=f"the splits are {', '.join(SPLITS)}")


def _is_held_out() -> pc.Expression:
    return (pc.field("source") == REAL) & pc.field("split").isin(list(EVALUATION))


def _followed(rows: pa.Table, manifest: ManifestRows) -> pa.Table:
    """Rows with the split they belong to; null where a parent is not to be found."""
    has_parent = rows["parent_id"].is_valid()
    if not pc.any(has_parent).as_py():
        return rows
    known = _ancestry(rows.filter(has_parent), manifest)
    splits = rows["split"].to_pylist()
    for place, row_id in enumerate(rows["id"].to_pylist()):
        if row_id in known:
            splits[place] = resolve_split(row_id, known)
    return rows.set_column(rows.column_names.index("split"), "split", pa.array(splits, pa.string()))


def _ancestry(rows: pa.Table, manifest: ManifestRows) -> dict[str, tuple[str | None, str | None]]:
    """Own split and parent of these rows and of all that they were made from."""
    known: dict[str, tuple[str | None, str | None]] = {}
    while rows.num_rows:
        columns = (rows[name].to_pylist() for name in ("id", "split", "parent_id"))
        known |= {row_id: (split, parent) for row_id, split, parent in zip(*columns, strict=True)}
        parents = {parent for _, parent in known.values() if parent is not None and parent not in known}
        is_parent = pc.field("id").isin(pa.array(sorted(parents), pa.string()))
        rows = manifest.to_table(["id", "split", "parent_id"], is_parent, status="all")
    return known


def _refuse_generated(rows: pa.Table) -> None:
    tested_on = pc.field("split").isin(list(EVALUATION))
    found = rows.filter((pc.field("source") == SYNTHETIC) & tested_on)
    if found.num_rows:
        one = found.select(["id", "split"]).slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"{counted(found.num_rows, 'generated image')} would be in {one['split']!r}, such as {one['id']}:"
            " a classifier is tested on real ones",
            hint="leave them out by the filter source = 'real', or pass allow_synthetic_eval=True "
            "(--allow-synthetic-eval)",
        )


def _copies_of_holdout(rows: pa.Table) -> dict[str, str]:
    found = rows.filter((pc.field("source") == REAL) & pc.field("nearest_id").is_valid())
    return dict(zip(found["id"].to_pylist(), found["nearest_id"].to_pylist(), strict=True))


def _copies_of_later_splits(rows: pa.Table, held_out: pa.Table, manifest: ManifestRows) -> dict[str, str]:
    limits = manifest.run.config_as(CopiesConfig, "verification", "copies")

    def load(ids: Sequence[str]) -> list[KnownImage]:
        columns = ["id", "phash", "pixel_sha256", "embedding"]
        return known_images(manifest.to_table(columns, pc.field("id").isin(list(ids))))

    found = find_later_split_copies(rows.select(list(LOOKS)), held_out, load, limits)
    return {row_id: nearest.id for row_id, nearest in found.items()}


def _nothing(manifest: ManifestRows, choice: Choice) -> UsageError:
    split, filter = choice.split, choice.filter
    counts = {row["split"]: row["count"] for row in manifest.count_by("split").to_pylist()}
    there = ", ".join(f"{name} ({count})" for name, count in counts.items())
    wanted = " and ".join(
        [f"split {split!r}"] * (split is not None) + [f"filter {str(filter)!r}"] * (filter is not None)
    )
    by_split = f"its images by split: {there or 'none at all'}; dataset.splits deals out the real ones"
    by_filter = (
        f"the filter leaves none of {counted(sum(counts.values()), 'image')};"
        " `balancer query RUN --count-by class,source` counts them"
    )
    hint = by_split if split is not None or filter is None else by_filter
    if choice.recommended:
        wanted = f"{wanted} that the evaluation recommends" if wanted else "this run that are recommended"
        hint = "it may advise against all of them: try without recommended=True (--recommended)"
    return UsageError(f"no images of {wanted or 'this run'}", hint=hint)
