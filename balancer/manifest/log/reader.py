"""Reading the log: every fragment checked, and of its rows only the columns that are asked for.

It is read from its end to its beginning. The last fragment is checked by its own checksum; each of the others
must have the sha256 that the one after it was written with. So every byte is verified before any of it is
parsed, by one hash instead of two, and columns that nobody asked for need not be parsed at all.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from balancer.errors import ManifestError
from balancer.manifest.layout import LOG_DIR, fragment_path, fragment_seq
from balancer.manifest.log.fragment import (
    MAX_FRAGMENT_BYTES,
    BrokenFragmentError,
    Fragment,
    Link,
    Stamp,
    check_successor,
    decode,
    decode_part,
)
from balancer.manifest.log.head import check_head, check_reach, read_head
from balancer.manifest.row_values import Known, check_values, wrong_values
from balancer.manifest.snapshot.index import read_index
from balancer.storage import MissingFileError, Storage

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

ID = "id"

READERS = 8
"""Fragments of a long log are fetched at once: what takes time is an object store's answer, or hashing."""

LONG = 512
"""Fragments; a shorter log is read one by one."""

BLOCK = 256
"""Fragments whose rows are copied together, so that their files need not stay in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A fragment without its rows. `sha256` is that of its bytes, `known_as` the one the next one knows."""

    stamp: Stamp
    sha256: str
    known_as: str
    rows: int

    @classmethod
    def of(cls, fragment: Fragment) -> Entry:
        return cls(fragment.stamp, fragment.sha256, fragment.known_as, fragment.table.num_rows)


@dataclass(frozen=True, slots=True)
class Chain:
    """Fragments in order, and all their rows, those that later ones replace included; `id` always is one of
    the columns. `before` is the fragment before the first of them."""

    before: Entry | None
    entries: tuple[Entry, ...]
    table: pa.Table

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else self.before


def read_chain(
    storage: Storage,
    schema: pa.Schema,
    run_id: str,
    columns: Sequence[str] | None = None,
    after: tuple[int, str] = (0, ""),
    known: Known | None = None,
) -> Chain:
    """The log, or what comes `after` a fragment of that number and sha256, which must be there.

    Raises BrokenFragmentError if anything that is read is damaged, missing or out of place, or if the log
    does not reach as far as it once did.
    """
    names = with_id(schema.names if columns is None else columns)
    seq, sha256 = after
    # Before the listing, which may be out of date the next moment.
    head, copied = read_head(storage, run_id), max(seq, covered(storage, run_id))
    last = last_seq(storage)
    check_reach(storage, last, head, copied)
    blocks: list[pa.Table] = []
    entries: list[Entry] = []
    before: Entry | None = None
    try:
        for block in _in_blocks(_backwards(storage, schema, run_id, names, max(seq, 1), last), BLOCK):
            if seq and block[-1].stamp.seq == seq:
                before = Entry.of(block.pop())
            entries += map(Entry.of, block)
            blocks.append(joined([fragment.table for fragment in reversed(block)], schema, names))
            _check_block(blocks[-1], block, known)
    except BrokenFragmentError:
        _name_the_first_problem(storage, schema, run_id, max(seq, 1), last)
        raise
    if before is not None and before.known_as != sha256:
        detail = "it is not the one that was there when the manifest was compacted"
        raise BrokenFragmentError(fragment_path(seq), "hash chain", detail)
    for entry in (*entries, *filter(None, [before])):
        check_head(head, entry)
    return Chain(before, tuple(reversed(entries)), joined(list(reversed(blocks)), schema, names))


def _check_block(rows: pa.Table, block: Sequence[Fragment], known: Known | None) -> None:
    """Together, as fragments have few rows; one by one only to find the first that is wrong."""
    if next(wrong_values(rows, known), None) is not None:
        for fragment in reversed(block):
            check_values(fragment.table, fragment_path(fragment.stamp.seq), known)


def with_id(columns: Sequence[str]) -> list[str]:
    return list(columns) if ID in columns else [ID, *columns]


def joined(tables: Sequence[pa.Table], schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Tables as one, in memory of its own; dictionaries become one each, in the order of their values."""
    empty = schema.empty_table().select(list(columns))
    return pa.concat_tables([empty, *tables]).unify_dictionaries().combine_chunks()


def covered(storage: Storage, run_id: str) -> int:
    """The last fragment that the compacted copy has, which must be in the log; 0 if no copy can be read."""
    try:
        index = read_index(storage, run_id)
    except ManifestError:
        return 0
    return index.covers if index else 0


def last_seq(storage: Storage) -> int:
    """The highest number committed. A listing made while others commit may lack lower ones that exist.

    ManifestError if something else is in the place of the log's folder.
    """
    last = max((seq for path in storage.list(LOG_DIR) if (seq := fragment_seq(path))), default=0)
    if not last and storage.exists(LOG_DIR):
        raise ManifestError(
            f"{LOG_DIR}: it is a file, where the folder of the log should be",
            hint="move it away, and put the folder back from a copy of the run",
        )
    return last


def load_fragment(
    storage: Storage, seq: int, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Fragment:
    """One fragment, checked by itself; BrokenFragmentError if it is damaged or missing."""
    return decode(read_fragment(storage, seq), seq, schema, columns)


def read_fragment(storage: Storage, seq: int) -> bytes:
    path = fragment_path(seq)
    try:
        return storage.read(path, MAX_FRAGMENT_BYTES)
    except MissingFileError:
        raise BrokenFragmentError(path, "log without gaps", "it is missing, and was committed") from None


def read_committed(
    storage: Storage, entry: Entry, schema: pa.Schema, columns: Sequence[str], known: Known | None = None
) -> Fragment:
    """A fragment that was checked before, read again; BrokenFragmentError if it is another one by now."""
    seq = entry.stamp.seq
    data = read_fragment(storage, seq)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry.sha256:
        raise BrokenFragmentError(fragment_path(seq), "hash chain", "it is not the one that was there before")
    fragment = decode_part(data, sha256, seq, schema, columns)
    check_values(fragment.table, fragment_path(seq), known)
    return fragment


def read_again(
    storage: Storage,
    entries: Iterable[Entry],
    schema: pa.Schema,
    columns: Sequence[str],
    known: Known | None = None,
) -> Iterator[Fragment]:
    """Fragments that were checked before, in the order of `entries`."""
    listed = list(entries)
    return _ahead(lambda entry: read_committed(storage, entry, schema, columns, known), listed)


def _backwards(
    storage: Storage, schema: pa.Schema, run_id: str, columns: Sequence[str], first: int, last: int
) -> Iterator[Fragment]:
    following: Fragment | None = None

    def fetched(seq: int) -> tuple[int, bytes, str]:
        data = read_fragment(storage, seq)
        return seq, data, hashlib.sha256(data).hexdigest()

    for seq, data, sha256 in _ahead(fetched, range(last, first - 1, -1)):
        if following is not None and sha256 == following.stamp.prev_sha256:
            fragment = decode_part(data, sha256, seq, schema, columns)
        else:  # the last one, or a repair, or damage
            fragment = decode(data, seq, schema, columns)
        _check_pair(following, fragment, run_id)
        yield fragment
        following = fragment
    if first == 1:
        _check_pair(following, None, run_id)


def _name_the_first_problem(storage: Storage, schema: pa.Schema, run_id: str, first: int, last: int) -> None:
    """Raise the error of the first damaged fragment, whichever was met first."""
    previous: Fragment | None = None
    for seq in range(first, last + 1):
        fragment = load_fragment(storage, seq, schema, [ID])
        if previous is not None or seq == 1:
            check_successor(fragment, previous, run_id)
        previous = fragment


def _check_pair(following: Link | None, fragment: Link | None, run_id: str) -> None:
    if following is not None:
        check_successor(following, fragment, run_id)


def _ahead(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """`work` done on each item, in order; of many items some ahead of the one that is asked for."""
    if len(items) < LONG:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(READERS) as pool:
        begun: deque[Future[_Result]] = deque()
        for item in items:
            begun.append(begin(pool, work, item))
            if len(begun) > 2 * READERS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def begin(pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], item: _Item) -> Future[_Result]:
    """`work` on an item, in the pool; here and now for a thread that outlives the main one, since pools take
    nothing more by then."""
    try:
        return pool.submit(work, item)
    except RuntimeError:
        done: Future[_Result] = Future()
        done.set_result(work(item))
        return done


def _in_blocks(fragments: Iterator[Fragment], size: int) -> Iterator[list[Fragment]]:
    block: list[Fragment] = []
    for fragment in fragments:
        block.append(fragment)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
