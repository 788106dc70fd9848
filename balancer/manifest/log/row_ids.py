"""Which ids a log has, so that none is committed twice."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from balancer.errors import ManifestError
from balancer.manifest.log.reader import ID
from balancer.manifest.rows import VOID
from balancer.manifest.schema import Row


class RowIds:
    """The ids of a log, and which of them are void: these may be committed again."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._void: set[str] = set()

    def __contains__(self, row_id: object) -> bool:
        return row_id in self.ids

    def add(self, rows: pa.Table) -> None:
        """Take in rows that were committed, verdicts included; no id is in them twice."""
        committed = rows[ID].to_pylist()
        self.ids.update(committed)
        self._void.difference_update(committed)
        self._void.update(rows.filter(pc.field("status") == VOID)[ID].to_pylist())

    def check_new(self, rows: Sequence[Row]) -> None:
        """ManifestError unless each of these rows can be added."""
        seen: set[str] = set()
        for row in rows:
            row_id = row.get("id")
            if row_id is None:
                raise ManifestError("a row without id cannot be committed")
            if (row_id in self.ids and row_id not in self._void) or row_id in seen:
                raise ManifestError(f"row {row_id!r} is committed already; an id is committed once")
            seen.add(row_id)

    def check_known(self, rows: Sequence[Row]) -> None:
        """ManifestError unless each of these rows can be judged anew."""
        seen: set[str] = set()
        for row in rows:
            row_id = row.get("id")
            if row_id not in self.ids:
                raise ManifestError(f"row {row_id!r} has no verdict that could be changed")
            if row_id in seen:
                raise ManifestError(f"row {row_id!r} is there twice; a fragment judges a row once")
            seen.add(row_id)
