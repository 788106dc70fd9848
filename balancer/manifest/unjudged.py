"""Which properties of generated images nobody judged, as the column `unjudged` of their rows has it.

An entry that names a property was not asked of the image. An entry such as `class=mixed` was: it says only
that labelled images did not prove the verifier on that value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from balancer.text.quantities import counted

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN = "unjudged"


def count_unjudged(rows: pa.Table, properties: Iterable[str]) -> dict[str, int]:
    """How many of these rows were not judged on each property, without those judged in all of them."""
    entries = Counter(pc.list_flatten(rows[COLUMN]).to_pylist())
    return {name: entries[name] for name in properties if entries[name]}


def count_unproven(rows: pa.Table, properties: Iterable[str]) -> dict[str, int]:
    """How many of these rows have each value that was judged without proof, such as `class=mixed`."""
    entries = Counter(pc.list_flatten(rows[COLUMN]).to_pylist())
    return {name: entries[name] for name in sorted(entries.keys() - set(properties))}


def lacks_a_score(scores: Mapping[str, float | None] | None, unjudged: Collection[str] | None) -> bool:
    """Whether a row has no `score` because none of its properties was judged."""
    scored = [name for name, score in (scores or {}).items() if score is not None]
    return bool(scored) and all(name in (unjudged or ()) for name in scored)


def count_judged(rows: pa.Table) -> int:
    """How many of these rows were judged on at least one property."""
    marked = rows.filter(pc.greater(pc.list_value_length(rows[COLUMN]), 0)).select(["scores", COLUMN])
    total: int = rows.num_rows
    return total - sum(lacks_a_score(row["scores"], row[COLUMN]) for row in marked.to_pylist())


def unjudged_text(counts: Mapping[str, int], images: int) -> str:
    """`class in 62, lighting in 10 of 62 generated images`."""
    properties = ", ".join(f"{name} in {count}" for name, count in counts.items())
    return f"{properties} of {counted(images, 'generated image')}"
