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

After each commit `head.json` is renewed. It says how far the log reaches, so a reader misses what is lost
later (`head`). Before each commit it shows whether the folder is still the run's. Whoever closes the log
writes `current.parquet` for readers that do not know the log (`current`).

A fragment "rows" adds rows. A fragment "verdicts" judges rows anew that are there: each of its rows
replaces the earlier one of its id, at that one's place, for every reader. A row whose status is `void`
waits for its candidate to be made again, and the next fragment "rows" with its id replaces it.

A fragment "gc" names files that its writer is about to delete, because no row names them (`balancer gc`).
Until that writer closes its epoch it may still be at it, though another driver has taken the log over since:
so these names are not used again (`free_name`). A fragment "repair" stands in for one that was lost.

Whoever writes reads and checks every fragment. A driver keeps the columns it needs to go on, not the rest.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balancer.errors import BalancerError, FencedError, ManifestError, StorageError
from balancer.manifest.layout import HEAD_FILE, fragment_path
from balancer.manifest.log.fragment import (
    BrokenFragmentError,
    Event,
    Fragment,
    Link,
    Stamp,
    State,
    check_successor,
    decode,
    encode,
)
from balancer.manifest.log.head import read_head, write_head
from balancer.manifest.log.reader import (
    ID,
    Entry,
    joined,
    load_fragment,
    read_again,
    read_chain,
    with_id,
)
from balancer.manifest.row_values import Known
from balancer.manifest.rows import VOID, utc_now
from balancer.manifest.rules import Rules, rules_of
from balancer.manifest.runfile import read_run
from balancer.manifest.schema import Row, rows_to_table, rows_with_ids
from balancer.storage import Storage

if TYPE_CHECKING:
    Clock = Callable[[], datetime.datetime]

KEPT = ("id", "source", "cell", "slot", "attempt", "status", "reason", "wording", "split")
"""What a driver goes on from."""


@dataclass(frozen=True, slots=True)
class LogView:
    """A log as it was read. `table` has the columns that were asked for and `id`, each row as its last
    verdict has it. `last` is None if no driver ever opened it, `opened` are the stamps of all that did.
    `rules` are the changes of the config under which verdicts were judged again."""

    table: pa.Table
    fragments: int
    last: Stamp | None
    opened: tuple[Stamp, ...]
    rules: Rules

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
    return view_of([entry.stamp for entry in chain.entries], chain.table)


def rows_of(storage: Storage, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Some columns of the rows with these ids, in this order; each must be there."""
    info = read_run(storage)
    chain = read_chain(storage, info.schema(), info.run_id, [ID])
    return rows_in(chain.entries, storage, info.schema(), ids, columns)


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
        self._entries: list[Entry] = []
        self._ids: set[str] = set()
        self._void: set[str] = set()
        self._doomed: frozenset[str] = frozenset()
        self._kept: pa.Table | None = None
        self.rules = Rules()
        """Those under which verdicts were taken when the log was opened."""
        self.taken_from: Stamp | None = None
        """The last word of the driver before this one, if it did not say how it ended."""

    @classmethod
    def open(
        cls,
        storage: Storage,
        schema: pa.Schema,
        run_id: str,
        *,
        now: Clock = utc_now,
        detail: Mapping[str, Any] | None = None,
    ) -> ManifestLog:
        """Read and check the log, then take it over: any other driver of the run is fenced from here on.

        `detail` is a small JSON object that says what the driver works with.
        """
        log = cls(storage, schema, run_id, now)
        chain = read_chain(storage, schema, run_id, KEPT)
        log._entries = list(chain.entries)
        tables = [chain.table, *(fragment.table.select(KEPT) for fragment in log._claim(detail))]
        stamps = [entry.stamp for entry in log._entries]
        log.taken_from = _left_open([stamp for stamp in stamps if stamp.writer != log._writer])
        view = view_of(stamps, joined(tables, schema, KEPT))
        log._kept, log.rules = view.table, view.rules
        log._doomed = _doomed(stamps)
        log._ids.update(view.table[ID].to_pylist())
        log._void.update(view.table.filter(pc.field("status") == VOID)[ID].to_pylist())
        return log

    @property
    def epoch(self) -> int:
        return self._epoch

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._ids

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All committed rows, those of earlier drivers included; of them all columns, or these and `id`.

        Right after opening, the columns in KEPT are there; any others, and rows added since, are read anew.
        """
        names = with_id(self._schema.names if columns is None else columns)
        if self._kept is not None and set(names) <= set(KEPT):
            return self._kept.select(names)
        fragments = read_again(self._storage, self._entries, self._schema, names)
        table = joined([fragment.table for fragment in fragments], self._schema, names)
        return view_of([entry.stamp for entry in self._entries], table).table

    def rows(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows with these ids, in this order; of them all columns, or these. Each must be there."""
        names = self._schema.names if columns is None else columns
        return rows_in(self._entries, self._storage, self._schema, ids, names)

    def free_name(self, stem: str) -> str:
        """The beginning of a file name: `stem`, or one like it where an unfinished gc may still delete files
        whose names begin so."""
        if any(path.startswith(stem) for path in self._doomed):
            return f"{stem}-e{self._epoch}"
        return stem

    def commit(self, rows: Sequence[Row]) -> None:
        """Add rows; when it returns they are durable. Publish the images they name before.

        Raises FencedError if another driver has taken the run over: the rows are then not committed.
        Raises ManifestError if an id is there already, and not void.
        """
        self._check_new(rows)
        rest = list(rows)
        while rest:
            mine = self._append(self._stamp("rows"), rows_to_table(rest, self._schema))
            if mine.stamp.event == "rows":
                # Either just now, or by an earlier call that ended in an error after its fragment had landed.
                committed = set(mine.table["id"].to_pylist())
                rest = [row for row in rest if row["id"] not in committed]

    def commit_verdicts(self, rows: Sequence[Row], detail: Mapping[str, Any] | None = None) -> None:
        """Judge rows anew that are there: whole rows, each of which replaces the one of its id.

        Durable when it returns, and fenced, as `commit` is; raises ManifestError if an id is not there.
        `detail` is a small JSON object that says why; with one, a fragment is written even for no rows.
        """
        self._check_known(rows)
        if not rows and detail is None:
            return
        table = rows_to_table(rows, self._schema)
        while True:
            stamp = self._stamp("verdicts", detail=detail)
            mine = self._append(stamp, table)
            # A fragment whose answer was lost before may be repeated: the same verdicts twice are the same.
            if mine.stamp.commit == stamp.commit:
                return

    def close(self, state: State, detail: Mapping[str, Any] | None = None) -> None:
        """Say how this driver's part ended. `detail` is a small JSON object, such as cells left short."""
        empty = self._schema.empty_table()
        while self._append(self._stamp("close", state, detail), empty).stamp.event != "close":
            pass
        self._write_current()

    def doom(self, paths: Sequence[str]) -> None:
        """Say which files are about to be deleted; when it returns, no driver will use their names any more,
        those that have taken the log over by then excepted: FencedError."""
        stamp = self._stamp("gc", detail={"deleting": list(paths)})
        while self._append(stamp, self._schema.empty_table()).stamp.commit != stamp.commit:
            stamp = self._stamp("gc", detail={"deleting": list(paths)})

    @property
    def _last(self) -> Link | None:
        return self._entries[-1] if self._entries else None

    def _claim(self, detail: Mapping[str, Any] | None) -> list[Fragment]:
        """Commit "open" in an epoch of one's own; returns what others committed meanwhile, and that."""
        seen: list[Fragment] = []
        while self._last is None or self._last.stamp.writer != self._writer:
            self._epoch = self._last.stamp.epoch + 1 if self._last else 1
            stamp = self._stamp("open", detail=detail)
            data = encode(self._schema.empty_table(), stamp)
            self._storage.create(fragment_path(stamp.seq), data)
            seen.append(self._take_in(self._read(stamp.seq)))
        self._renew_head()
        return seen

    def _append(self, stamp: Stamp, table: pa.Table) -> Fragment:
        """Commit one fragment. Returns the one of this driver that now has the number: this, or an earlier
        one whose acknowledgement was lost."""
        data = encode(table, stamp)
        mine = decode(data, stamp.seq, self._schema)  # what readers would refuse is never committed
        self._refuse_another_folder()
        if not self._storage.create(fragment_path(stamp.seq), data):
            mine = self._read(stamp.seq)
            if mine.stamp.writer != self._writer:
                raise self._fenced_by(mine.stamp)
        self._take_in(mine)
        self._renew_head()
        self._kept = None
        for row_id, status in zip(*(mine.table[name].to_pylist() for name in ("id", "status")), strict=True):
            self._ids.add(row_id)
            (self._void.add if status == VOID else self._void.discard)(row_id)
        return mine

    def _take_in(self, fragment: Fragment) -> Fragment:
        self._entries.append(Entry.of(fragment))
        return fragment

    def _renew_head(self) -> None:
        with contextlib.suppress(StorageError):  # what is committed is committed, and the head may be behind
            write_head(self._storage, self._run_id, self._last)

    def _write_current(self) -> None:
        from balancer.manifest.snapshot.current import (
            write_current,  # which imports much, pandas by way of Arrow
        )

        # Of Arrow's own errors, too: the log is closed, and `status` and `fsck` tell that the file is behind.
        with contextlib.suppress(BalancerError, OSError, ValueError):
            write_current(self._storage)

    def _refuse_another_folder(self) -> None:
        """StorageError if the run's folder was exchanged for another one since the last commit."""
        last = self._last
        try:
            head = read_head(self._storage, self._run_id)
        except BrokenFragmentError as error:
            raise self._exchanged(f"{HEAD_FILE}: {error.detail}") from error
        if last is None or (head is not None and head.seq >= last.stamp.seq):
            return
        path = fragment_path(last.stamp.seq)
        if not self._storage.exists(path):
            raise self._exchanged(f"{path}, which is committed, is missing")

    def _exchanged(self, sign: str) -> StorageError:
        return StorageError(
            f"{self._storage.uri} is no longer the folder of run {self._run_id} as it was opened: {sign}; "
            "nothing more was committed",
            hint="if the folder was moved or replaced, put it back and run the same command again; "
            "`balancer fsck RUN` tells what is there",
        )

    def _stamp(
        self, event: Event, state: State | None = None, detail: Mapping[str, Any] | None = None
    ) -> Stamp:
        last = self._last
        return Stamp(
            run_id=self._run_id,
            seq=last.stamp.seq + 1 if last else 1,
            epoch=self._epoch,
            writer=self._writer,
            commit=uuid.uuid4().hex,
            prev_sha256=last.known_as if last else "",
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

    def _check_new(self, rows: Sequence[Row]) -> None:
        seen: set[str] = set()
        for row in rows:
            row_id = row.get("id")
            if row_id is None:
                raise ManifestError("a row without id cannot be committed")
            if (row_id in self._ids and row_id not in self._void) or row_id in seen:
                raise ManifestError(f"row {row_id!r} is committed already; an id is committed once")
            seen.add(row_id)

    def _check_known(self, rows: Sequence[Row]) -> None:
        seen: set[str] = set()
        for row in rows:
            row_id = row.get("id")
            if row_id not in self._ids:
                raise ManifestError(f"row {row_id!r} has no verdict that could be changed")
            if row_id in seen:
                raise ManifestError(f"row {row_id!r} is there twice; a fragment judges a row once")
            seen.add(row_id)

    def _fenced_by(self, stamp: Stamp) -> FencedError:
        return FencedError(
            f"another driver took run {self._run_id} over at {stamp.committed_at:%Y-%m-%d %H:%M:%S} UTC "
            f"(epoch {stamp.epoch}, this one is {self._epoch}); everything acknowledged so far is kept",
            hint="let the other one finish; `balancer status` shows how far it is",
        )


def view_of(stamps: Sequence[Stamp], table: pa.Table) -> LogView:
    """A log as readers see it. `table` has the rows of all its fragments, replaced ones included."""
    replaced = any(stamp.replaces_rows for stamp in stamps)
    return LogView(
        table=latest(table) if replaced else table,
        fragments=len(stamps),
        last=stamps[-1] if stamps else None,
        opened=tuple(stamp for stamp in stamps if stamp.event == "open"),
        rules=rules_of(stamps),
    )


def latest(table: pa.Table) -> pa.Table:
    """The last row of each id, where the first one stood."""
    ids = pc.dictionary_encode(table[ID].combine_chunks(), null_encoding="encode")
    numbers = ids.indices.to_numpy()  # ids numbered in the order in which they first occur
    last = np.empty(len(ids.dictionary), dtype=np.int64)
    last[numbers] = np.arange(len(numbers))  # of several rows, the last one assigned stays
    return table.take(last)


def rows_in(
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


def _left_open(stamps: Sequence[Stamp]) -> Stamp | None:
    return stamps[-1] if stamps and stamps[-1].event not in ("close", "repair") else None


def _doomed(stamps: Iterable[Stamp]) -> frozenset[str]:
    """Files that an unfinished gc may still delete."""
    doomed: dict[int, set[str]] = {}
    for stamp in stamps:
        if stamp.event == "gc":
            doomed.setdefault(stamp.epoch, set()).update((stamp.detail or {}).get("deleting", ()))
        elif stamp.event == "close":
            doomed.pop(stamp.epoch, None)
    return frozenset().union(*doomed.values())
