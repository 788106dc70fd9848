"""Superseded rows, and where the rows of its newest fragments stand.

Readers have compacted rows with their places, and fragments that came later, which may judge rows anew: those
that were compacted, or each other's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from balancer.manifest.log.reader import ID, Entry, read_again
from balancer.manifest.snapshot.places import Places, found_in
from balancer.storage import Storage

FILE = "__file"
"""A column that no file has: the number of a fragment, or of a compacted file, below zero."""

PLACE = "__place"
"""A column that compacted files have: where a row stands in the order of commits."""


@functools.cache
def has_its_place() -> pc.Expression:
    """True of every row. It makes Arrow read that column with any other: where the head of a page is damaged,
    which no checksum covers, a column can be too short, and that is noticed beside another one only.

        Made on use: to compare a field with a number imports pandas where that is installed.
    """
    return (pc.field(FILE) > 0) | pc.field(PLACE).is_valid()


@dataclass(frozen=True, slots=True)
class Survey:
    """`keys` are `FILE/id` of the superseded rows, all in `files`. `starts` has the place of the
    first new row of each fragment. Rows of fragments in which any was replaced, or replaces one, stand at
    `places`, by `ids`."""

    files: pa.Array
    keys: pa.Array
    ids: pa.Array
    places: NDArray[np.int64]
    sequences: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def condition(self) -> pc.Expression:
        """Whether a row counts."""
        if not len(self.keys):
            return has_its_place()
        key = pc.binary_join_element_wise(pc.field(FILE).cast(pa.string()), pc.field(ID), "/")
        # The files first: in all others nothing is looked up.
        return has_its_place() & ~(pc.field(FILE).isin(self.files) & key.isin(self.keys))

    @property
    def moves_rows(self) -> bool:
        return len(self.ids) > 0

    def find_places(self, table: pa.Table) -> NDArray[np.int64]:
        """Where rows stand, by their FILE and PLACE, and their ID if any row moves. Those of a fragment must
        be in its order; which of its rows they are cannot be seen, and need not be."""
        numbers = table[FILE].to_numpy()
        found: NDArray[np.int64] = table[PLACE].fill_null(-1).to_numpy().copy()
        newest = np.flatnonzero(numbers > 0)
        newest = newest[np.argsort(numbers[newest], kind="stable")]
        sequences = numbers[newest]
        rank = np.arange(len(sequences)) - np.searchsorted(sequences, sequences)
        found[newest] = self.starts[np.searchsorted(self.sequences, sequences)] + rank
        if self.moves_rows:
            known = pc.index_in(table[ID], value_set=self.ids).combine_chunks()
            found[np.flatnonzero(known.is_valid())] = self.places[known.drop_null().to_numpy()]
        return found


def survey(
    storage: Storage, entries: Sequence[Entry], schema: pa.Schema, ids: pa.Array, before: pa.Table, rows: int
) -> Survey:
    """`entries` are fragments with rows, `ids` those of which there can be several rows. `before` has ID,
    FILE and PLACE of those that are compacted, `rows` is how many rows are."""
    sequences = np.array([entry.stamp.seq for entry in entries], np.int64)
    sizes = np.array([entry.rows for entry in entries], np.int64)
    if not len(ids):
        none = pa.array([], pa.string())
        starts = rows + np.cumsum(sizes) - sizes
        return Survey(pa.array([], pa.int64()), none, none, np.empty(0, np.int64), sequences, starts)
    known = dict(zip(before[ID].to_pylist(), before[PLACE].to_pylist(), strict=True))
    places = Places(storage, entries, schema, ids, known, rows)
    dead = [
        (file, row_id)
        for file, row_id in zip(before[FILE].to_pylist(), before[ID].to_pylist(), strict=True)
        if row_id in places.found
    ]
    moved: list[tuple[pa.ChunkedArray, NDArray[np.int64]]] = []
    starts = np.empty(len(entries), np.int64)
    for number, fragment in enumerate(read_again(storage, entries, schema, [ID])):
        starts[number] = places.next
        where, counts = places.of(fragment)
        if found_in(fragment, ids):
            column, counting = fragment.table[ID], pa.array(counts)
            dead += [
                (fragment.stamp.seq, row_id) for row_id in column.filter(pc.invert(counting)).to_pylist()
            ]
            moved.append((column.filter(counting), where[counts]))
    chunks = [chunk for column, _ in moved for chunk in column.chunks]
    return Survey(
        files=pa.array(sorted({file for file, _ in dead}), pa.int64()),
        keys=pa.array([f"{file}/{row_id}" for file, row_id in dead], pa.string()),
        ids=pa.chunked_array(chunks, pa.string()).combine_chunks(),
        places=np.concatenate([where for _, where in moved]) if moved else np.empty(0, np.int64),
        sequences=sequences,
        starts=starts,
    )
