"""Where rows stand in the order of the manifest, and which of several rows of an id counts.

A row is placed where the first one of its id was committed, and the last one of its id counts. Only rows of
fragments that judge anew, and of candidates that these made void, have an id that was there before; so only
their ids are remembered, not those of a million others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from balancer.manifest.log.fragment import Fragment
from balancer.manifest.log.reader import ID, Entry, read_again
from balancer.storage import Storage


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A row whose id is there more than once, or could be: `index` is its place in its fragment."""

    id: str
    seq: int
    index: int


def ids_judged_anew(storage: Storage, entries: Sequence[Entry], schema: pa.Schema) -> pa.Array:
    """Ids of which there can be several rows, each once."""
    judging = [entry for entry in entries if entry.stamp.replaces_rows and entry.rows]
    columns = [fragment.table[ID] for fragment in read_again(storage, judging, schema, [ID])]
    return pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))


def find_occurrences(
    ids: pa.Array, storage: Storage, entries: Iterable[Entry], schema: pa.Schema
) -> Iterator[Occurrence]:
    """Every row that has one of `ids`, in the order of the log."""
    with_rows = [entry for entry in entries if entry.rows and len(ids)]
    for fragment in read_again(storage, with_rows, schema, [ID]):
        for index in found_in(fragment, ids):
            yield Occurrence(fragment.table[ID][index].as_py(), fragment.stamp.seq, index)


def found_in(fragment: Fragment, ids: pa.Array) -> list[int]:
    """Which rows of a fragment have one of `ids`."""
    if not len(ids):
        return []
    found: list[int] = np.flatnonzero(pc.is_in(fragment.table[ID], value_set=ids)).tolist()
    return found


class Places:
    """Places of rows for one pass through the log or its end, from the first of `entries` on.

    `ids` are those of which there can be several rows; `known` has the places of those that stand before
    `entries`, `start` is the number of all rows before.
    """

    def __init__(
        self,
        storage: Storage,
        entries: Sequence[Entry],
        schema: pa.Schema,
        ids: pa.Array,
        known: Mapping[str, int] | None = None,
        start: int = 0,
    ) -> None:
        self._ids = ids
        self._last = {one.id: one for one in find_occurrences(ids, storage, entries, schema)}
        self._first = dict(known or {})
        self._next = start

    @property
    def found(self) -> Collection[str]:
        """Those of `ids` of which there is a row in `entries`."""
        return self._last.keys()

    @property
    def next(self) -> int:
        """Where the next new id will stand: so many were placed so far."""
        return self._next

    def of(self, fragment: Fragment) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The place of each row of the next fragment, and whether the row counts."""
        rows = fragment.table.num_rows
        places = np.arange(self._next, self._next + rows)
        counts = np.ones(rows, np.bool_)
        self._next += rows
        for index in found_in(fragment, self._ids):
            row_id = fragment.table[ID][index].as_py()
            counts[index] = self._last[row_id] == Occurrence(row_id, fragment.stamp.seq, index)
            if row_id in self._first:
                places[index + 1 :] -= 1
                places[index] = self._first[row_id]
                self._next -= 1
            else:
                self._first[row_id] = int(places[index])
        return places, counts
