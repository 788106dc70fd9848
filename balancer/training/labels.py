"""Classes and facet values as numbers, in the order of the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.manifest.runfile import RunInfo

NO_LABEL = -1
"""Of a facet that does not apply, or that nobody has said of a real image."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Names whose places are the numbers."""

    classes: tuple[str, ...]
    facets: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, run: RunInfo) -> Labels:
        facets = {name: tuple(run.config["facets"][name]["values"]) for name in run.facets}
        return cls(tuple(run.config["classes"]), facets)

    def check(self, facets: Sequence[str]) -> None:
        """UsageError for one that the run does not have."""
        if unknown := [name for name in facets if name not in self.facets]:
            there = ", ".join(self.facets) or "none"
            raise UsageError(f"no facet {unknown[0]!r}", hint=f"the facets of this run are {there}")

    def numbers(self, rows: pa.Table, column: str) -> NDArray[np.int64]:
        """int64, one a row: of `class`, or of a facet, where it may be NO_LABEL."""
        names = self.classes if column == CLASS_PROPERTY else self.facets[column]
        found = pc.index_in(plain(rows[column]), value_set=pa.array(names, pa.string()))
        return np.asarray(pc.fill_null(found, NO_LABEL)).astype(np.int64)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a dictionary, which not everything can read."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
