"""The log is the lock: rows are committed as numbered fragments, and whoever gets a number goes on.

    1  A driver reads the whole log, checks it, and claims epoch max + 1 by committing an empty fragment
       "open" under the next number. Creating a fragment succeeds for one driver only, whoever else tries.
    2  Every fragment holds the sha256 of the one before: to win a number, a driver must have read all
       fragments below it. So a driver that was taken over loses the number at which the other opened,
       reads why, and stops (FencedError). It cannot have repeated a row until then.
    3  A lost race is read back: a fragment of one's own (its acknowledgement was lost) is success; one of
       another driver means fenced, or, while opening, rows to take in before claiming the next number.

No leases, no heartbeats, no clocks: `committed_at` is for people only. Rows refer to images that were
published before, so a committed row is never dangling.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balancer.errors import FencedError, ManifestError
from balancer.manifest.fragment import (
    BrokenFragmentError,
    Event,
    Fragment,
    Stamp,
    State,
    check_successor,
    decode,
    encode,
)
from balancer.manifest.layout import LOG_DIR, fragment_path, fragment_seq
from balancer.manifest.rows import utc_now
from balancer.manifest.runfile import read_run
from balancer.manifest.schema import Row, rows_to_table
from balancer.storage import MissingFileError, Storage

if TYPE_CHECKING:
    Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True, slots=True)
class LogView:
    """A log as it was read. `last` and `opened_at` (when the last driver opened it) are None if no driver
    ever did."""

    table: pa.Table
    fragments: int
    last: Stamp | None
    opened_at: datetime.datetime | None

    @property
    def state(self) -> State | None:
        """How the last driver closed the log; None if it did not, or not yet."""
        return self.last.state if self.last else None


def read_log(storage: Storage) -> LogView:
    """Read a run's log without taking part in it; all committed rows, rejected ones included.

    Raises UsageError if there is no run, BrokenFragmentError if any fragment is damaged or missing.
    """
    info = read_run(storage)
    return _view(list(_chain(storage, info.schema(), info.run_id)), info.schema())


class ManifestLog:
    """A driver's hold on a log, for one thread. Made by `ManifestLog.open`.

    Any call that writes may raise StorageError; nothing is acknowledged then, and the same call may be
    made again (DiskFullError says that waiting helps).
    """

    def __init__(self, storage: Storage, schema: pa.Schema, run_id: str, now: Clock) -> None:
        self._storage = storage
        self._schema = schema
        self._run_id = run_id
        self._now = now
        self._writer = uuid.uuid4().hex
        self._epoch = 0
        self._last: Fragment | None = None
        self._ids: set[str] = set()
        self._table: pa.Table | None = None

    @classmethod
    def open(cls, storage: Storage, schema: pa.Schema, run_id: str, *, now: Clock = utc_now) -> ManifestLog:
        """Read and check the log, then take it over: any other driver of the run is fenced from here on."""
        log = cls(storage, schema, run_id, now)
        fragments = list(_chain(storage, schema, run_id))
        fragments += log._claim(fragments[-1] if fragments else None)
        log._table = _view(fragments, schema).table
        log._ids.update(log._table["id"].to_pylist())
        return log

    @property
    def epoch(self) -> int:
        return self._epoch

    def table(self) -> pa.Table:
        """All committed rows, those of earlier drivers included; read anew if any were added since."""
        if self._table is None:
            fragments = list(_chain(self._storage, self._schema, self._run_id))
            self._table = _view(fragments, self._schema).table
        return self._table

    def commit(self, rows: Sequence[Row]) -> None:
        """Add rows; when it returns they are durable. Publish the images they name before.

        Raises FencedError if another driver has taken the run over: the rows are then not committed.
        Raises ManifestError if an id is there already.
        """
        self._check_ids(rows)
        rest = list(rows)
        while rest:
            mine = self._append("rows", rows_to_table(rest, self._schema))
            # Either just now, or by an earlier call that ended in an error after its fragment had landed.
            committed = set(mine.table["id"].to_pylist())
            self._ids |= committed
            self._table = None
            rest = [row for row in rest if row["id"] not in committed]

    def close(self, state: State, detail: Mapping[str, Any] | None = None) -> None:
        """Say how this driver's part ended. `detail` is a small JSON object, such as cells left short."""
        empty = self._schema.empty_table()
        while self._append("close", empty, state, detail).stamp.event != "close":
            self._table = None

    def _claim(self, last: Fragment | None) -> list[Fragment]:
        """Commit "open" in an epoch of one's own; returns what others committed meanwhile, and that."""
        seen: list[Fragment] = []
        self._last = last
        while self._last is None or self._last.stamp.writer != self._writer:
            self._epoch = self._last.stamp.epoch + 1 if self._last else 1
            stamp = self._stamp("open")
            data = encode(self._schema.empty_table(), stamp)
            self._storage.create(fragment_path(stamp.seq), data)
            self._last = self._read(stamp.seq)
            seen.append(self._last)
        return seen

    def _append(
        self,
        event: Event,
        table: pa.Table,
        state: State | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Fragment:
        """Commit one fragment. Returns the one of this driver that now has the number: this, or an earlier
        one whose acknowledgement was lost."""
        stamp = self._stamp(event, state, detail)
        data = encode(table, stamp)
        fragment = decode(data, stamp.seq, self._schema)  # what readers would refuse is never committed
        if self._storage.create(fragment_path(stamp.seq), data):
            self._last = fragment
            return fragment
        winner = self._read(stamp.seq)
        if winner.stamp.writer != self._writer:
            raise self._fenced_by(winner.stamp)
        self._last = winner
        return winner

    def _stamp(
        self, event: Event, state: State | None = None, detail: Mapping[str, Any] | None = None
    ) -> Stamp:
        return Stamp(
            run_id=self._run_id,
            seq=self._last.stamp.seq + 1 if self._last else 1,
            epoch=self._epoch,
            writer=self._writer,
            commit=uuid.uuid4().hex,
            prev_sha256=self._last.sha256 if self._last else "",
            event=event,
            committed_at=self._now(),
            state=state,
            detail=detail,
        )

    def _read(self, seq: int) -> Fragment:
        """The fragment that has the number this driver tried for; a valid successor of the last one."""
        fragment = load_fragment(self._storage, seq, self._schema)
        check_successor(fragment, self._last, self._run_id)
        return fragment

    def _check_ids(self, rows: Sequence[Row]) -> None:
        seen: set[str] = set()
        for row in rows:
            row_id = row.get("id")
            if row_id is None:
                raise ManifestError("a row without id cannot be committed")
            if row_id in self._ids or row_id in seen:
                raise ManifestError(f"row {row_id!r} is committed already; an id is committed once")
            seen.add(row_id)

    def _fenced_by(self, stamp: Stamp) -> FencedError:
        return FencedError(
            f"another driver took run {self._run_id} over at {stamp.committed_at:%Y-%m-%d %H:%M:%S} UTC "
            f"(epoch {stamp.epoch}, this one is {self._epoch}); everything acknowledged so far is kept",
            hint="let the other one finish; `balancer status` shows how far it is",
        )


def _chain(storage: Storage, schema: pa.Schema, run_id: str) -> Iterator[Fragment]:
    """Every committed fragment in order, each checked."""
    previous: Fragment | None = None
    for seq in range(1, last_seq(storage) + 1):
        fragment = load_fragment(storage, seq, schema)
        check_successor(fragment, previous, run_id)
        yield fragment
        previous = fragment


def last_seq(storage: Storage) -> int:
    """The highest number committed. A listing made while others commit may lack lower ones that exist."""
    return max((seq for path in storage.list(LOG_DIR) if (seq := fragment_seq(path))), default=0)


def load_fragment(storage: Storage, seq: int, schema: pa.Schema) -> Fragment:
    """One fragment, checked by itself; BrokenFragmentError if it is damaged or missing."""
    path = fragment_path(seq)
    try:
        return decode(storage.read(path), seq, schema)
    except MissingFileError:
        raise BrokenFragmentError(path, "log without gaps", "it is missing, later ones are there") from None


def _view(fragments: Sequence[Fragment], schema: pa.Schema) -> LogView:
    tables = [schema.empty_table(), *(fragment.table for fragment in fragments)]
    opened = [f.stamp.committed_at for f in fragments if f.stamp.event == "open"]
    return LogView(
        table=pa.concat_tables(tables).unify_dictionaries().combine_chunks(),
        fragments=len(fragments),
        last=fragments[-1].stamp if fragments else None,
        opened_at=opened[-1] if opened else None,
    )
