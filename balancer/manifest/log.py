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

A fragment "rows" adds rows. A fragment "verdicts" judges rows anew that are there: each of its rows
replaces the earlier one of its id, at that one's place, for every reader. A row whose status is `void`
waits for its candidate to be made again, and the next fragment "rows" with its id replaces it.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
from balancer.manifest.rows import VOID, utc_now
from balancer.manifest.runfile import read_run
from balancer.manifest.schema import Row, rows_to_table
from balancer.storage import MissingFileError, Storage

if TYPE_CHECKING:
    Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True, slots=True)
class Rules:
    """What `balancer rejudge` changed of the config in run.json: `overrides` is nested as the config is, and
    holds changed settings only. `complete` is False if it was stopped before all verdicts followed."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    def as_detail(self) -> dict[str, Any]:
        """What a fragment of verdicts says of them."""
        return {"overrides": self.overrides, "complete": self.complete}


@dataclass(frozen=True, slots=True)
class LogView:
    """A log as it was read. `last` is None if no driver ever opened it, `opened` are the stamps of all that
    did. `rules` are the changes of the config under which verdicts were judged again."""

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
        self._void: set[str] = set()
        self._table: pa.Table | None = None
        self.rules = Rules()
        """Those under which verdicts were taken when the log was opened."""

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
        fragments = list(_chain(storage, schema, run_id))
        fragments += log._claim(fragments[-1] if fragments else None, detail)
        view = _view(fragments, schema)
        log._table, log.rules = view.table, view.rules
        log._ids.update(log._table["id"].to_pylist())
        log._void.update(log._table.filter(pc.field("status") == VOID)["id"].to_pylist())
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

    def _claim(self, last: Fragment | None, detail: Mapping[str, Any] | None) -> list[Fragment]:
        """Commit "open" in an epoch of one's own; returns what others committed meanwhile, and that."""
        seen: list[Fragment] = []
        self._last = last
        while self._last is None or self._last.stamp.writer != self._writer:
            self._epoch = self._last.stamp.epoch + 1 if self._last else 1
            stamp = self._stamp("open", detail=detail)
            data = encode(self._schema.empty_table(), stamp)
            self._storage.create(fragment_path(stamp.seq), data)
            self._last = self._read(stamp.seq)
            seen.append(self._last)
        return seen

    def _append(self, stamp: Stamp, table: pa.Table) -> Fragment:
        """Commit one fragment. Returns the one of this driver that now has the number: this, or an earlier
        one whose acknowledgement was lost."""
        data = encode(table, stamp)
        mine = decode(data, stamp.seq, self._schema)  # what readers would refuse is never committed
        if not self._storage.create(fragment_path(stamp.seq), data):
            mine = self._read(stamp.seq)
            if mine.stamp.writer != self._writer:
                raise self._fenced_by(mine.stamp)
        self._last = mine
        self._table = None
        for row_id, status in zip(*(mine.table[name].to_pylist() for name in ("id", "status")), strict=True):
            self._ids.add(row_id)
            (self._void.add if status == VOID else self._void.discard)(row_id)
        return mine

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
        for row in rows:
            if row.get("id") not in self._ids:
                raise ManifestError(f"row {row.get('id')!r} has no verdict that could be changed")

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
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    verdicts = [fragment.stamp for fragment in fragments if fragment.stamp.event == "verdicts"]
    opened = tuple(f.stamp for f in fragments if f.stamp.event == "open")
    return LogView(
        table=_latest(table) if verdicts else table,
        fragments=len(fragments),
        last=fragments[-1].stamp if fragments else None,
        opened=opened,
        rules=_rules(verdicts),
    )


def _latest(table: pa.Table) -> pa.Table:
    """The last row of each id, where the first one stood."""
    ids = pc.dictionary_encode(table["id"].combine_chunks(), null_encoding="encode")
    numbers = ids.indices.to_numpy()  # ids numbered in the order in which they first occur
    last = np.empty(len(ids.dictionary), dtype=np.int64)
    last[numbers] = np.arange(len(numbers))  # of several rows, the last one assigned stays
    return table.take(last)


def _rules(verdicts: Sequence[Stamp]) -> Rules:
    """Of every change of the rules; verdicts that change for another reason tell of none."""
    rules = Rules()
    for stamp in verdicts:
        if stamp.detail and "overrides" in stamp.detail:
            overrides = merged(rules.overrides, stamp.detail["overrides"])
            rules = Rules(overrides, complete=bool(stamp.detail.get("complete", True)))
    return rules


def as_settings(overrides: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Overrides as `--set` takes them: `verification.threshold=0.7`."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from as_settings(value, (*path, name))
        else:
            yield f"{'.'.join((*path, name))}={json.dumps(value, ensure_ascii=False)}"


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them overridden."""
    together = dict(settings)
    for name, value in overrides.items():
        inner = together.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            together[name] = merged(inner, value)
        else:
            together[name] = value
    return together
