"""What a driver does with the log: add rows, judge them anew, say which files go, and say how it ended.

`appender` says how fragments are committed and what becomes of a driver that was taken over. Rows refer to
images that were published before, so a committed row is never dangling.

A fragment "rows" adds rows. A fragment "verdicts" judges rows anew that are there: each of its rows
replaces the earlier one of its id, at that one's place, for every reader. A row whose status is `void`
waits for its candidate to be made again, and the next fragment "rows" with its id replaces it.

A fragment "gc" names files that its writer is about to delete, because no row names them (`balancer gc`).
Until that writer closes its epoch it may still be at it, though another driver has taken the log over since:
so these names are not used again (`free_name`). A fragment "repair" stands in for one that was lost.

Whoever closes the log writes `current.parquet` for readers that do not know the log (`current`). Whoever
writes reads and checks every fragment. A driver keeps the columns it needs to go on, not the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balancer.errors import BalancerError
from balancer.manifest.columns import names_read_by
from balancer.manifest.log.appender import Appender
from balancer.manifest.log.fragment import Fragment, Stamp, State
from balancer.manifest.log.reader import joined, read_again, read_chain, with_id
from balancer.manifest.log.row_ids import RowIds
from balancer.manifest.log.view import build_view, reread_rows
from balancer.manifest.rows import utc_now
from balancer.manifest.rules import Rules
from balancer.manifest.schema import GROWING, Row, rows_to_table
from balancer.storage import Storage

if TYPE_CHECKING:
    from balancer.manifest.log.appender import CheckFree, Clock


class ManifestLog:
    """A driver's hold on a log, for one thread. Made by `ManifestLog.open`.

    Any call that writes may raise StorageError; nothing is acknowledged then, and the same call may be
    made again (DiskFullError says that waiting helps).
    """

    def __init__(self, storage: Storage, schema: pa.Schema, appender: Appender) -> None:
        self._storage = storage
        self._schema = schema
        self._appender = appender
        self._ids = RowIds()
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
        check_free: CheckFree = lambda stamps: None,
    ) -> ManifestLog:
        """Read and check the log, then take it over: any other driver of the run is fenced from here on.

        `detail` is a small JSON object that says what the driver works with. `check_free` is shown the log as
        it would be taken over, and raises if it must not be.
        """
        kept = _kept_columns(schema)
        chain = read_chain(storage, schema, run_id, kept)
        appender = Appender(storage, schema, run_id, now, chain.entries)
        log = cls(storage, schema, appender)
        tables = [
            chain.table,
            *(fragment.table.select(kept) for fragment in appender.claim(detail, check_free)),
        ]
        stamps = log.stamps
        log.taken_from = _left_open([stamp for stamp in stamps if stamp.writer != appender.writer])
        view = build_view(stamps, joined(tables, schema, kept))
        log._kept, log.rules = view.table, view.rules
        log._doomed = _doomed(stamps)
        log._ids.add(view.table)
        return log

    @property
    def epoch(self) -> int:
        return self._appender.epoch

    @property
    def stamps(self) -> list[Stamp]:
        """Those of the log, as far as this driver has read or written it."""
        return [entry.stamp for entry in self._appender.entries]

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._ids

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All committed rows, those of earlier drivers included; of them all columns, or these and `id`.

        Right after opening, the columns of `kept` are there; any others, and rows added since, are read anew.
        """
        names = with_id(self._schema.names if columns is None else columns)
        if self._kept is not None and set(names) <= set(self._kept.column_names):
            return self._kept.select(names)
        entries = self._appender.entries
        fragments = read_again(self._storage, entries, self._schema, names)
        table = joined([fragment.table for fragment in fragments], self._schema, names)
        return build_view([entry.stamp for entry in entries], table).table

    def kept(self) -> pa.Table:
        """All committed rows, with the columns that a driver goes on from."""
        return self.table(_kept_columns(self._schema))

    def rows(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows with these ids, in this order; of them all columns, or these. Each must be there."""
        names = self._schema.names if columns is None else columns
        return reread_rows(self._appender.entries, self._storage, self._schema, ids, names)

    def free_name(self, stem: str) -> str:
        """The beginning of a file name: `stem`, or one like it where an unfinished gc may still delete files
        whose names begin so."""
        if any(path.startswith(stem) for path in self._doomed):
            return f"{stem}-e{self.epoch}"
        return stem

    def commit(self, rows: Sequence[Row]) -> None:
        """Add rows; when it returns they are durable. Publish the images they name before.

        Raises FencedError if another driver has taken the run over: the rows are then not committed.
        Raises ManifestError if an id is there already, and not void.
        """
        self._ids.check_new(rows)
        rest = list(rows)
        while rest:
            mine = self._append(self._appender.stamp("rows"), rows_to_table(rest, self._schema))
            if mine.stamp.event == "rows":
                # Either just now, or by an earlier call that ended in an error after its fragment had landed.
                committed = set(mine.table["id"].to_pylist())
                rest = [row for row in rest if row["id"] not in committed]

    def commit_verdicts(self, rows: Sequence[Row], detail: Mapping[str, Any] | None = None) -> None:
        """Judge rows anew that are there: whole rows, each of which replaces the one of its id.

        Durable when it returns, and fenced, as `commit` is; raises ManifestError if an id is not there.
        `detail` is a small JSON object that says why; with one, a fragment is written even for no rows.
        """
        self._ids.check_known(rows)
        if not rows and detail is None:
            return
        table = rows_to_table(rows, self._schema)
        while True:
            stamp = self._appender.stamp("verdicts", detail=detail)
            mine = self._append(stamp, table)
            # A fragment whose answer was lost before may be repeated: the same verdicts twice are the same.
            if mine.stamp.commit == stamp.commit:
                return

    def close(self, state: State, detail: Mapping[str, Any] | None = None) -> None:
        """Say how this driver's part ended. `detail` is a small JSON object, such as cells left short."""
        empty = self._schema.empty_table()
        while self._append(self._appender.stamp("close", state, detail), empty).stamp.event != "close":
            pass
        self._write_current()

    def doom(self, paths: Sequence[str]) -> None:
        """Say which files are about to be deleted; when it returns, no driver will use their names any more,
        those that have taken the log over by then excepted: FencedError."""
        detail = {"deleting": list(paths)}
        stamp = self._appender.stamp("gc", detail=detail)
        while self._append(stamp, self._schema.empty_table()).stamp.commit != stamp.commit:
            stamp = self._appender.stamp("gc", detail=detail)

    def _append(self, stamp: Stamp, table: pa.Table) -> Fragment:
        fragment = self._appender.append(stamp, table)
        self._kept = None
        self._ids.add(fragment.table)
        return fragment

    def _write_current(self) -> None:
        from balancer.manifest.snapshot.current import (
            write_current,  # which imports much, pandas by way of Arrow
        )

        # Of Arrow's own errors, too: the log is closed, and `status` and `fsck` tell that the file is behind.
        with contextlib.suppress(BalancerError, OSError, ValueError):
            write_current(self._storage)


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


def _kept_columns(schema: pa.Schema) -> list[str]:
    return [name for name in names_read_by("resume", GROWING) if name in schema.names]
