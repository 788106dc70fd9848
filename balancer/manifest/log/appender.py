"""The log is the lock: rows are committed as numbered fragments, and whoever gets a number goes on.

    1  A driver reads the whole log, checks it, and claims epoch max + 1 by committing an empty fragment
       "open" under the next number. Creating a fragment succeeds for one driver only, whoever else tries.
    2  Every fragment holds the sha256 of the one before: to win a number, a driver must have read all
       fragments below it. So a driver that was taken over loses the number at which the other opened,
       reads why, and stops (FencedError). It cannot have repeated a row until then.
    3  A lost race is read back: a fragment of one's own (its acknowledgement was lost) is success; one of
       another driver means fenced, or, while opening, rows to take in before claiming the next number.

No leases, no heartbeats, no clocks: `committed_at` is for people only.

After each commit `head.json` is renewed. It says how far the log reaches, so a reader misses what is lost
later (`head`). Before each commit it shows whether the folder is still the run's.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from balancer.errors import FencedError, StorageError
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
from balancer.manifest.log.reader import Entry, load_fragment
from balancer.storage import Storage

if TYPE_CHECKING:
    Clock = Callable[[], datetime.datetime]
    CheckFree = Callable[[list[Stamp]], None]


class Appender:
    """Appends fragments to a log for one driver, until another driver takes the log over."""

    def __init__(
        self, storage: Storage, schema: pa.Schema, run_id: str, now: Clock, entries: Iterable[Entry]
    ) -> None:
        self._storage = storage
        self._schema = schema
        self._run_id = run_id
        self._now = now
        self.entries = list(entries)
        """The log, as far as this driver has read or written it."""
        self.writer = uuid.uuid4().hex
        self.epoch = 0

    @property
    def last(self) -> Link | None:
        return self.entries[-1] if self.entries else None

    def claim(self, detail: Mapping[str, Any] | None, check_free: CheckFree) -> list[Fragment]:
        """Commit "open" in an epoch of one's own; returns what others committed meanwhile, and that.

        `check_free` raises if the log, as it is then, must not be taken over.
        """
        seen: list[Fragment] = []
        while self.last is None or self.last.stamp.writer != self.writer:
            check_free([entry.stamp for entry in self.entries])
            self.epoch = self.last.stamp.epoch + 1 if self.last else 1
            stamp = self.stamp("open", detail=detail)
            data = encode(self._schema.empty_table(), stamp)
            self._storage.create(fragment_path(stamp.seq), data)
            seen.append(self._read(stamp.seq))
            self.entries.append(Entry.of(seen[-1]))
        self._renew_head()
        return seen

    def stamp(
        self, event: Event, state: State | None = None, detail: Mapping[str, Any] | None = None
    ) -> Stamp:
        """The stamp of the next fragment."""
        last = self.last
        return Stamp(
            run_id=self._run_id,
            seq=last.stamp.seq + 1 if last else 1,
            epoch=self.epoch,
            writer=self.writer,
            commit=uuid.uuid4().hex,
            prev_sha256=last.known_as if last else "",
            event=event,
            committed_at=self._now(),
            state=state,
            detail=detail,
        )

    def append(self, stamp: Stamp, table: pa.Table) -> Fragment:
        """Commit one fragment. Returns the one of this driver that now has the number: this, or an earlier
        one whose acknowledgement was lost."""
        data = encode(table, stamp)
        mine = decode(data, stamp.seq, self._schema)  # what readers would refuse is never committed
        self._refuse_another_folder()
        if not self._storage.create(fragment_path(stamp.seq), data):
            mine = self._read(stamp.seq)
            if mine.stamp.writer != self.writer:
                raise self._fenced_by(mine.stamp)
        self.entries.append(Entry.of(mine))
        self._renew_head()
        return mine

    def _read(self, seq: int) -> Fragment:
        """The fragment that has the number this driver tried for; a valid successor of the last one."""
        fragment = load_fragment(self._storage, seq, self._schema)
        check_successor(fragment, self.last, self._run_id)
        return fragment

    def _renew_head(self) -> None:
        with contextlib.suppress(StorageError):  # what is committed is committed, and the head may be behind
            write_head(self._storage, self._run_id, self.last)

    def _refuse_another_folder(self) -> None:
        """StorageError if the run's folder was exchanged for another one since the last commit."""
        last = self.last
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

    def _fenced_by(self, stamp: Stamp) -> FencedError:
        return FencedError(
            f"another driver took run {self._run_id} over at {stamp.committed_at:%Y-%m-%d %H:%M:%S} UTC "
            f"(epoch {stamp.epoch}, this one is {self.epoch}); everything acknowledged so far is kept",
            hint="let the other one finish; `balancer status` shows how far it is",
        )
