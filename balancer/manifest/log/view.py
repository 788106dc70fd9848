"""A log as readers see it: each row as its last verdict has it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.manifest.log.fragment import Stamp, State
from balancer.manifest.log.reader import ID, Entry, joined, read_again, read_chain, with_id
from balancer.manifest.row_values import Known
from balancer.manifest.rules import Revision, Rules, collect_rules, list_revisions
from balancer.manifest.runfile import read_run
from balancer.manifest.schema import rows_with_ids
from balancer.storage import Storage


@dataclass(frozen=True, slots=True)
class LogView:
    """A log as it was read. `table` has the columns that were asked for and `id`, each row as its last
    verdict has it. `last` is None if no driver ever opened it, `opened` are the stamps of all that did,
    `closed` those with which drivers said how they ended.
    `rules` are the changes of the config under which verdicts were judged again, `revisions` the plan
    revisions after the first, each with the fragment that committed it. `stamps` are all there are."""

    table: pa.Table
    fragments: int
    last: Stamp | None
    opened: tuple[Stamp, ...]
    rules: Rules
    revisions: tuple[tuple[Revision, Stamp], ...] = ()
    closed: tuple[Stamp, ...] = ()
    stamps: tuple[Stamp, ...] = ()

    @property
    def details(self) -> list[Mapping[str, Any] | None]:
        """What its fragments say besides their rows."""
        return [stamp.detail for stamp in self.stamps]

    @property
    def opened_at(self) -> datetime.datetime | None:
        """When the last driver opened the log."""
        return self.opened[-1].committed_at if self.opened else None

    @property
    def state(self) -> State | None:
        """How the last driver closed the log; None if it did not, or not yet."""
        return self.last.state if self.last else None


def read_log(storage: Storage, columns: Sequence[str] | None = None) -> LogView:
    """Read a run's log without taking part in it; all committed rows, rejected ones included. `columns` are
    those to keep; without, all of them, embeddings included.

    Raises UsageError if there is no run, BrokenFragmentError if any fragment is damaged or missing.
    """
    info = read_run(storage)
    chain = read_chain(storage, info.schema(), info.run_id, columns, known=Known.of(info))
    return build_view([entry.stamp for entry in chain.entries], chain.table)


def read_rows(storage: Storage, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Some columns of the rows with these ids, in this order; each must be there."""
    info = read_run(storage)
    chain = read_chain(storage, info.schema(), info.run_id, [ID])
    return reread_rows(chain.entries, storage, info.schema(), ids, columns)


def build_view(stamps: Sequence[Stamp], table: pa.Table) -> LogView:
    """A log as readers see it. `table` has the rows of all its fragments, replaced ones included."""
    replaced = any(stamp.replaces_rows for stamp in stamps)
    return LogView(
        table=latest(table) if replaced else table,
        fragments=len(stamps),
        last=stamps[-1] if stamps else None,
        opened=tuple(stamp for stamp in stamps if stamp.event == "open"),
        rules=collect_rules(stamps),
        revisions=tuple(list_revisions(stamps)),
        closed=tuple(stamp for stamp in stamps if stamp.event == "close"),
        stamps=tuple(stamps),
    )


def latest(table: pa.Table) -> pa.Table:
    """The last row of each id, where the first one stood."""
    ids = pc.dictionary_encode(table[ID].combine_chunks(), null_encoding="encode")
    numbers = ids.indices.to_numpy()  # ids numbered in the order in which they first occur
    last = np.empty(len(ids.dictionary), dtype=np.int64)
    last[numbers] = np.arange(len(numbers))  # of several rows, the last one assigned stays
    return table.take(last)


def reread_rows(
    entries: Sequence[Entry],
    storage: Storage,
    schema: pa.Schema,
    ids: Sequence[str],
    columns: Sequence[str],
) -> pa.Table:
    """The log is gone through once more; only the rows that are wanted stay in memory."""
    names, wanted = with_id(columns), pa.array(ids, pa.string())
    fragments = read_again(storage, [entry for entry in entries if entry.rows], schema, names)
    found = (fragment.table.filter(pc.is_in(fragment.table[ID], value_set=wanted)) for fragment in fragments)
    rows = joined([table for table in found if table.num_rows], schema, names)
    return rows_with_ids(latest(rows), ids).select(list(columns))
