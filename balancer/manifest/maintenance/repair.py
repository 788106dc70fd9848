"""Repair of a log with damaged or missing fragments: saves what it can and lists what was lost.

    1  A fragment whose bytes can be made again from what is left of them is what it was (`salvage`).
    2  Of the others, rows that the compacted copy has are saved, if that is sound.
    3  What then is lost is lost: the next run makes its candidates again, from their seeds and under their
       ids. Their images may still be there; what was measured of them is not.

A fragment that is lost gets a stand-in under its number, an event "repair". It holds the rows that were
saved, says what it stands for, and the next fragment knows it by the hash of the one that was lost, so the
chain holds. The damaged file is put aside first, in `manifest/damaged/`. Of a log that lost its end, or all
of it, the head says how many fragments there were: each gets its stand-in, because a driver that slept since
could otherwise commit after the ones that are gone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from balancer.errors import StorageError, UsageError
from balancer.manifest.layout import (
    DAMAGED_DIR,
    HEAD_FILE,
    INDEX_FILE,
    LOG_DIR,
    fragment_path,
    fragment_seq,
)
from balancer.manifest.log.fragment import (
    MAX_FRAGMENT_BYTES,
    BrokenFragmentError,
    Fragment,
    Stamp,
    check_successor,
    decode,
    encode,
)
from balancer.manifest.log.head import Head, lost_log, read_head
from balancer.manifest.log.reader import ID, Entry, joined, last_seq, read_again, read_chain, read_fragment
from balancer.manifest.log.view import latest
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.maintenance.salvage import Remains, find_remains
from balancer.manifest.maintenance.snapshot_check import check_files
from balancer.manifest.rows import utc_now
from balancer.manifest.runfile import RunInfo, read_run
from balancer.manifest.snapshot.build import compact
from balancer.manifest.snapshot.current import renew_current
from balancer.manifest.snapshot.dataset import compacted_dataset
from balancer.manifest.snapshot.index import DamagedCopyError, Index, check_folders, read_index
from balancer.manifest.snapshot.places import ids_judged_anew
from balancer.manifest.snapshot.superseded import PLACE
from balancer.manifest.status import refuse_running
from balancer.storage import Storage

VERDICT = ("status", "reason", "score", "threshold", "nearest_id", "file_name")
"""By these columns a row that was judged anew differs from what it was."""


REASON = "repair"

MOST_LOST = 200_000
"""Of a log with 64 rows a fragment as many as 10 million candidates."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A fragment that cannot be read, or is not the one it should be. `data` is what is there, None for
    nothing; `known_as` is the hash of what was there, None if nobody knows."""

    seq: int
    rule: str
    detail: str
    data: bytes | None
    known_as: str | None
    remains: Remains

    @property
    def path(self) -> str:
        return fragment_path(self.seq)

    @property
    def is_lost(self) -> bool:
        return self.remains.whole is None


@dataclass(frozen=True, slots=True)
class Repair:
    """What repairing a run does. `saved` are rows of the compacted copy that the log lost, and that fragment
    `saved_in` will hold; `drops_copy` says that the copy goes, because it is damaged as well, or of another
    log. `drops_head` says why the head is written anew, empty if it is sound. `unsolved` is beyond repair."""

    damages: tuple[Damage, ...]
    saved: pa.Table
    saved_in: int | None
    drops_copy: bool
    drops_head: str
    unsolved: tuple[str, ...]

    @property
    def is_needed(self) -> bool:
        return bool(self.damages or self.drops_head)

    @property
    def lost(self) -> tuple[Damage, ...]:
        return tuple(damage for damage in self.damages if damage.is_lost)


@dataclass(frozen=True, slots=True)
class _Log:
    """What is left of a log: the sound fragments by number, those that can be made again included."""

    info: RunInfo
    last: int
    sound: Mapping[int, Entry]
    damages: tuple[Damage, ...]
    drops_head: str
    unsolved: tuple[str, ...]

    @property
    def lost(self) -> list[int]:
        return [damage.seq for damage in self.damages if damage.is_lost]

    @property
    def is_half_repaired(self) -> bool:
        """Whether an earlier repair was stopped before it said so."""
        stamps = [self.sound[seq].stamp for seq in sorted(self.sound)]
        repaired = max((stamp.seq for stamp in stamps if stamp.event == "repair"), default=0)
        return repaired > max((stamp.seq for stamp in stamps if _says_repaired(stamp)), default=0)


def _says_repaired(stamp: Stamp) -> bool:
    return stamp.event == "close" and (stamp.detail or {}).get("reason") == REASON


def look(storage: Storage) -> Repair:
    """What `apply` would do; nothing is changed. UsageError if there is no run."""
    return _plan(storage, *_survey(storage))


def apply(storage: Storage, now: Callable[[], dt.datetime] = utc_now) -> Repair:
    """Repair the log of a run; returns what was done. Stopped half way, it is completed by the same call.

    UsageError while a driver seems to be at work, or for damage that is beyond repair.
    """
    log, index = _survey(storage)
    _check_nobody_is_at_work(storage, log, now())
    found = _plan(storage, log, index)
    if found.unsolved:
        raise UsageError(
            f"{storage.uri} cannot be repaired: {found.unsolved[0]}",
            hint="restore the log from a copy of the run folder",
        )
    if not found.is_needed and not log.is_half_repaired:
        renew_current(storage)
        return found
    if found.drops_copy:
        storage.delete(INDEX_FILE)
    if found.drops_head:
        storage.delete(HEAD_FILE)
    _replace(storage, log, found, now())
    _say(storage, log.info, found, now)
    if index is not None and not found.drops_copy:
        compact(storage, rebuild=True)  # saved rows stand in other places now
        renew_current(storage, rebuild=True)
    return found


# ---- looking -------------------------------------------------------------------------------------


def _survey(storage: Storage) -> tuple[_Log, Index | None]:
    """From the last fragment to the first: each says which one came before."""
    info = read_run(storage)
    index, (head, drops_head) = _index(storage, info), _head(storage, info)
    listed = last_seq(storage)
    last = _end(storage, listed, head, index)
    if missing := _too_many_lost(storage, last):
        return _Log(info, 0, {}, (), drops_head, (missing,)), index
    sound: dict[int, Entry] = {}
    damages: list[Damage] = []
    unsolved: list[str] = []
    for seq in range(last, 0, -1):
        following = sound.get(seq + 1)
        known_as = following.stamp.prev_sha256 if following else _witnessed_as(index, head, seq)
        found = _examine(storage, info, seq, known_as)
        if isinstance(found, Damage):
            damages.append(found)
            if found.remains.whole is not None:
                sound[seq] = Entry.of(decode(found.remains.whole, seq, info.schema(), [ID]))
            continue
        if known_as not in (None, found.known_as):
            if disputed := _disputed(seq, last, index, head):
                unsolved.append(disputed)
            else:
                detail = "it is not the one that the next was written after"
                data = storage.read(fragment_path(seq), MAX_FRAGMENT_BYTES)
                damages.append(Damage(seq, "hash chain", detail, data, known_as, Remains()))
                continue
        sound[seq] = Entry.of(found)
    _check_listing(storage, listed, sound.keys() - {damage.seq for damage in damages})
    if head is not None and head.seq < last and head.seq in sound:
        differs = sound[head.seq].known_as != head.sha256
        drops_head = "it names a fragment that is none of this log" if differs else ""
    return _Log(info, last, sound, tuple(reversed(damages)), drops_head, tuple(unsolved)), index


def _index(storage: Storage, info: RunInfo) -> Index | None:
    try:
        index = read_index(storage, info.run_id)
        if index is not None:
            check_folders(index, info)
        return index
    except DamagedCopyError:
        return None


def _head(storage: Storage, info: RunInfo) -> tuple[Head | None, str]:
    """The head, or what is wrong with it."""
    try:
        return read_head(storage, info.run_id), ""
    except BrokenFragmentError as error:
        return None, f"{error.rule}: {error.detail}"


def _check_listing(storage: Storage, listed: int, there: Set[int]) -> None:
    """StorageError if fragments can be read that come after the last one listed: every other command goes by
    the listing, and calls the log lost."""
    last = max(there, default=0)
    if last > listed:
        raise StorageError(
            f"{storage.uri}: {fragment_path(last)} can be read, but is not in the listing of {LOG_DIR}, which"
            f" ends at number {listed}; the store answers wrongly, and nothing is repaired",
            hint="check the store and its endpoint, then try again",
        )


def _end(storage: Storage, listed: int, head: Head | None, index: Index | None) -> int:
    """The highest number that the log has, or once had."""
    copied = index.covers if index else 0
    had_any = not listed and bool(lost_log(storage, head, copied))
    return max(listed, copied, head.seq if head else 0, int(had_any))


def _too_many_lost(storage: Storage, last: int) -> str:
    """Why a log that should reach to `last` gets no stand-ins; "" if it may."""
    missing = last - sum(1 for path in storage.list(LOG_DIR) if fragment_seq(path))
    if missing <= MOST_LOST:
        return ""
    return (
        f"the log should have {last:,} fragments, of which {missing:,} are missing; up to {MOST_LOST:,} "
        f"can get a stand-in, and {HEAD_FILE} or {INDEX_FILE} may be wrong"
    )


def _witnessed_as(index: Index | None, head: Head | None, seq: int) -> str | None:
    """The hash of a fragment, by what is outside the log."""
    if index is not None and index.covers == seq:
        return index.sha256
    return head.sha256 if head is not None and head.seq == seq else None


def _disputed(seq: int, last: int, index: Index | None, head: Head | None) -> str:
    """Of two that contradict each other near the end, nothing may say which one is right."""
    if seq == last and not (index is not None and index.covers == seq):
        return f"{fragment_path(seq)} is sound, and {HEAD_FILE} names another; they do not belong together"
    if seq + 1 == last and _witnessed_as(index, head, last) is None:
        return f"{fragment_path(seq)} and the one after it are sound, and do not belong together"
    return ""


def _examine(storage: Storage, info: RunInfo, seq: int, known_as: str | None) -> Fragment | Damage:
    schema = info.schema()
    data: bytes | None = None
    try:
        data = read_fragment(storage, seq)
        fragment = decode(data, seq, schema, [ID])
        if fragment.stamp.run_id != info.run_id:
            detail = f"it is of run {fragment.stamp.run_id!r}"
            raise BrokenFragmentError(fragment_path(seq), "fragment belongs to the run", detail)
    except BrokenFragmentError as error:
        remains = Remains() if data is None else find_remains(data, seq, schema, known_as)
        return Damage(seq, error.rule, error.detail, data, known_as, remains)
    return fragment


def _plan(storage: Storage, log: _Log, index: Index | None) -> Repair:
    schema = log.info.schema()
    saved, drops_copy = schema.empty_table(), False
    compacted = [seq for seq in log.lost if index is not None and seq <= index.covers]
    if index is not None and compacted:
        is_whole = next(check_files(storage, index), None) is None
        ids = _lost_ids(storage, log, index) if is_whole and _has_end_of(log, index) else None
        drops_copy = ids is None
        if ids is not None:
            rows = compacted_dataset(storage, schema, index).scanner(
                columns=[*schema.names, PLACE], filter=pc.field(ID).isin(ids)
            )
            saved = rows.to_table().sort_by(PLACE).select(schema.names)
    return Repair(
        damages=log.damages,
        saved=saved,
        # In the last one: none after it, of those that were compacted, has another verdict on these rows.
        saved_in=max(compacted) if saved.num_rows else None,
        drops_copy=drops_copy,
        drops_head=log.drops_head,
        unsolved=(*log.unsolved, *_does_not_fit(log)),
    )


def _has_end_of(log: _Log, index: Index) -> bool:
    """Whether the last fragment that was compacted is the one that is there, or was."""
    there = {seq: entry.known_as for seq, entry in log.sound.items()}
    was = {damage.seq: damage.known_as for damage in log.damages}
    return (was | there).get(index.covers) == index.sha256


def _lost_ids(storage: Storage, log: _Log, index: Index) -> pa.Array | None:
    """Ids of rows that the copy has, and the log has no more, or not as they were judged last. None if the
    copy is not one of this log: it lacks rows that are there."""
    schema, columns = log.info.schema(), [ID, *VERDICT]
    restored = {damage.seq: damage.remains.whole for damage in log.damages}
    entries = [log.sound[seq] for seq in sorted(log.sound) if seq <= index.covers]
    there = read_again(
        storage, [entry for entry in entries if entry.stamp.seq not in restored], schema, columns
    )
    made = (decode(whole, seq, schema, columns) for seq, whole in restored.items() if whole is not None)
    fragments = sorted((*there, *made), key=lambda fragment: fragment.stamp.seq)
    rows = latest(joined([fragment.table for fragment in fragments], schema, columns))
    copy = compacted_dataset(storage, schema, index).to_table(columns=columns)
    if pc.any(pc.is_null(pc.index_in(rows[ID], value_set=copy[ID].combine_chunks()))).as_py():
        return None
    places = pc.index_in(copy[ID], value_set=rows[ID].combine_chunks())
    differs = pc.not_equal(_told(copy), _told(rows.take(places.fill_null(0)))) if len(rows) else None
    missing = pc.is_null(places)
    chosen = missing if differs is None else pc.or_(missing, differs)
    return copy[ID].filter(chosen).combine_chunks()


def _told(rows: pa.Table) -> pa.ChunkedArray:
    """The verdict of each row as one text."""
    texts = [rows[name].cast(pa.string()) for name in VERDICT]
    return pc.binary_join_element_wise(*texts, "\n", null_handling="replace", null_replacement="\t")


def _does_not_fit(log: _Log) -> Iterator[str]:
    """What would still break a rule if all damages were repaired."""
    previous: Entry | None = None
    for seq in range(1, log.last + 1):
        entry = log.sound.get(seq)
        if entry is not None and previous is not None and previous.stamp.seq == seq - 1:
            try:
                check_successor(entry, previous, log.info.run_id)
            except BrokenFragmentError as error:
                yield error.message
        previous = entry


# ---- changing ------------------------------------------------------------------------------------


def _check_nobody_is_at_work(storage: Storage, log: _Log, now: dt.datetime) -> None:
    last = log.sound[max(log.sound)].stamp if log.sound else None
    refuse_running(storage, last, now, "it can be repaired")


def _replace(storage: Storage, log: _Log, repair: Repair, now: dt.datetime) -> None:
    """Each fragment in one step, so that it is damaged or repaired, and the others as they were."""
    schema = log.info.schema()
    previous: Entry | None = None
    damages = {damage.seq: damage for damage in repair.damages}
    for seq in range(1, log.last + 1):
        damage = damages.get(seq)
        if damage is None:
            previous = log.sound[seq]
            continue
        if damage.data is not None:
            name = f"{seq:020d}-{hashlib.sha256(damage.data).hexdigest()[:12]}.arrow"
            storage.publish(f"{DAMAGED_DIR}/{name}", damage.data)
        data = damage.remains.whole
        if data is None:
            rows = repair.saved if seq == repair.saved_in else schema.empty_table()
            data = encode(rows, _stand_in(log, damage, previous, rows.num_rows, now))
        storage.replace(damage.path, data)
        previous = Entry.of(decode(data, seq, schema, [ID]))


def _stand_in(log: _Log, damage: Damage, previous: Entry | None, rows: int, now: dt.datetime) -> Stamp:
    following = log.sound.get(damage.seq + 1)
    goes_on = following is not None and following.stamp.event != "open"
    neighbour = following if goes_on else previous
    return Stamp(
        run_id=log.info.run_id,
        seq=damage.seq,
        epoch=neighbour.stamp.epoch if neighbour else 0,
        writer=neighbour.stamp.writer if neighbour else "",
        commit=uuid.uuid4().hex,
        prev_sha256=previous.known_as if previous else "",
        event="repair",
        committed_at=now,
        detail={
            "stands_for": damage.known_as,
            "damage": f"{damage.rule}: {damage.detail}",
            "event": damage.remains.event,
            "rows": damage.remains.rows,
            "saved": rows,
        },
    )


def _say(storage: Storage, info: RunInfo, repair: Repair, now: Callable[[], dt.datetime]) -> None:
    """Into the log, as a driver does, which also proves that it can be read again."""
    detail = {
        "reason": REASON,
        "restored": [damage.seq for damage in repair.damages if not damage.is_lost],
        "lost": [damage.seq for damage in repair.lost],
        "saved": repair.saved.num_rows,
    }
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=now, detail=detail)
    if twice := _ids_twice(storage, info):
        # The verdict between two rows of an id was lost; it is the later one that counts.
        log.commit_verdicts(log.rows(twice).to_pylist(), detail)
    log.close("interrupted", detail)


def _ids_twice(storage: Storage, info: RunInfo) -> Sequence[str]:
    """Ids of several rows although nothing says that the later ones count."""
    chain = read_chain(storage, info.schema(), info.run_id, [ID])
    counts = pc.value_counts(chain.table[ID])
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    judged = ids_judged_anew(storage, chain.entries, info.schema())
    found: list[str] = several.filter(pc.invert(pc.is_in(several, value_set=judged))).to_pylist()
    return found
