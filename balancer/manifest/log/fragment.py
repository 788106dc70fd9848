"""One fragment of the log: an Arrow IPC file that says who wrote it, where it belongs, and its own checksum.

Arrow files have no checksum, and in most places a flipped bit changes a value without any error. So a
fragment carries one, over all of its bytes with the checksum itself zeroed, that is verified before Arrow
parses anything.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from balancer.errors import ManifestError, first_line, first_problem
from balancer.manifest.layout import MAX_SEQ, fragment_path
from balancer.manifest.log.arrow_blocks import check_blocks
from balancer.manifest.schema import check_version, difference
from balancer.text.json_reading import read_json

Event = Literal["open", "rows", "verdicts", "gc", "repair", "close"]
State = Literal["complete", "short", "interrupted", "failed", "budget"]

EVENTS: tuple[Event, ...] = ("open", "rows", "verdicts", "gc", "repair", "close")
STATES: tuple[State, ...] = ("complete", "short", "interrupted", "failed", "budget")

MAX_FRAGMENT_BYTES = 1 << 30
"""A commit has some hundred rows at most, and rows of published verifiers take 5 kB."""

MAX_GENERATORS = 1_000_000

BELONGS = "fragment says where it belongs"

_KEY = "balancer."
CHECKSUM_KEY = b"balancer.checksum"
_MARK = b"balancer-sha256:"
_MARKED = re.compile(_MARK + rb"([0-9a-f]{64})")
_ZEROS = b"0" * 64


class BrokenFragmentError(ManifestError):
    """A committed fragment that breaks a rule of the log. Nothing is ever skipped because of it."""

    def __init__(self, path: str, rule: str, detail: str) -> None:
        super().__init__(
            f"{path}: {rule}: {detail}",
            hint="the manifest was damaged after it was written: `balancer fsck RUN` lists all that is, "
            "`balancer repair RUN` shows what can be saved",
        )
        self.path = path
        self.rule = rule
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a fragment says of itself. `writer` and `commit` are uuids; an epoch belongs to one writer;
    `state` is that of a closing fragment. `detail` says how many generators a driver opened with, why
    verdicts changed and under which plan revision, how it ended, which files a gc is about to delete
    ("deleting"), or which fragment a repair stands in for ("stands_for", its sha256)."""

    run_id: str
    seq: int
    epoch: int
    writer: str
    commit: str
    prev_sha256: str
    event: Event
    committed_at: datetime.datetime
    state: State | None = None
    detail: Mapping[str, Any] | None = None

    @property
    def replaces_rows(self) -> bool:
        """Whether its rows may take the place of earlier ones."""
        return self.event in ("verdicts", "repair")


class _Revision(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    number: Annotated[int, Field(ge=2, le=MAX_SEQ)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    changes: list[str]


class _Detail(BaseModel):
    """What is read of a stamp's detail; other keys may be there."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    generators: Annotated[int, Field(ge=0, le=MAX_GENERATORS)] | None = None
    overrides: dict[str, Any] = {}
    complete: bool = True
    revision: _Revision | None = None
    deleting: list[str] = []
    stands_for: str | None = None


class Link(Protocol):
    """What the next fragment depends on."""

    @property
    def stamp(self) -> Stamp: ...
    @property
    def known_as(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Fragment:
    """`table` has the columns that were asked for."""

    stamp: Stamp
    table: pa.Table
    sha256: str

    @property
    def known_as(self) -> str:
        """The sha256 by which the next fragment knows it: of a repair, that of the fragment that was lost."""
        lost = (self.stamp.detail or {}).get("stands_for") if self.stamp.event == "repair" else None
        return str(lost or self.sha256)

    def narrowed(self, columns: Sequence[str]) -> Fragment:
        return dataclasses.replace(self, table=self.table.select(list(columns)))


def encode(table: pa.Table, stamp: Stamp) -> bytes:
    """The bytes of a fragment: the same stamp and table give the same bytes."""
    # Unguessable until now, so replacing it touches nothing a row might hold.
    token = hashlib.sha256(uuid.uuid4().bytes).hexdigest().encode()
    metadata = {**(table.schema.metadata or {}), **_to_metadata(stamp), CHECKSUM_KEY: _MARK + token}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        if table.num_rows:
            writer.write_table(table.combine_chunks().replace_schema_metadata(metadata))
    data = bytes(sink.getvalue())
    return data.replace(token, _digest(data, token))


def decode(data: bytes, seq: int, schema: pa.Schema, columns: Sequence[str] | None = None) -> Fragment:
    """Raises BrokenFragmentError unless `data` is fragment `seq`, whole and undamaged, with this schema."""
    path = fragment_path(seq)
    _verify_checksum(data, path)
    try:
        check_blocks(data)
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise BrokenFragmentError(path, "fragment is valid Arrow", str(error)) from error
    check_version(table.schema, path)
    if wrong := difference(table.schema, schema):
        raise BrokenFragmentError(path, "fragment has the manifest's schema", wrong)
    stamp = _numbered(table.schema.metadata, seq)
    rows = table.replace_schema_metadata(schema.metadata)
    wanted = schema.names if columns is None else list(columns)
    return Fragment(stamp, rows.select(wanted), hashlib.sha256(data).hexdigest())


def decode_part(data: bytes, sha256: str, seq: int, schema: pa.Schema, columns: Sequence[str]) -> Fragment:
    """As `decode`, of bytes that are known to be those that were written, `sha256` being the hash that the
    fragment after this one was written with: so its own checksum need not be looked at, nor other columns.
    """
    included = sorted(schema.get_field_index(name) for name in columns)
    options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
    try:
        check_blocks(data)
        table = pa.ipc.open_file(pa.py_buffer(data), options=options).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return decode(data, seq, schema, columns)  # which says what is wrong
    if not table.schema.equals(pa.schema([schema.field(index) for index in included])):
        return decode(data, seq, schema, columns)
    check_version(table.schema, fragment_path(seq))
    stamp = _numbered(table.schema.metadata, seq)
    return Fragment(stamp, table.replace_schema_metadata(schema.metadata).select(list(columns)), sha256)


def check_successor(fragment: Link, previous: Link | None, run_id: str) -> None:
    """Raises BrokenFragmentError unless `fragment` may follow `previous` (None: be the first) in the log.

    An epoch begins with an "open" fragment and is written by that writer alone; it only grows. A "repair" is
    of the epoch that goes on after it.
    """
    stamp, path = fragment.stamp, fragment_path(fragment.stamp.seq)
    if stamp.run_id != run_id:
        raise BrokenFragmentError(path, "fragment belongs to the run", f"it is of run {stamp.run_id!r}")
    if stamp.prev_sha256 != (previous.known_as if previous else ""):
        raise BrokenFragmentError(
            path, "hash chain", "the fragment before it is not the one it was written after"
        )
    epoch, writer = (previous.stamp.epoch, previous.stamp.writer) if previous else (0, "")
    if stamp.event == "open":
        if stamp.epoch <= epoch:
            raise BrokenFragmentError(path, "epochs grow", f"epoch {stamp.epoch} opens after epoch {epoch}")
    elif stamp.event == "repair":
        if stamp.epoch < epoch:
            raise BrokenFragmentError(path, "epochs grow", f"epoch {stamp.epoch} comes after epoch {epoch}")
    elif (stamp.epoch, stamp.writer) != (epoch, writer):
        detail = (
            f"epoch {stamp.epoch} of writer {stamp.writer} goes on after epoch {epoch} of writer {writer}"
        )
        raise BrokenFragmentError(path, "one writer an epoch", detail)


def _verify_checksum(data: bytes, path: str) -> None:
    marked = set(_MARKED.findall(data))  # more than one if a row happens to hold something alike
    if not marked or not data.endswith(b"ARROW1"):
        raise BrokenFragmentError(
            path, "fragment is whole", f"its {len(data)} bytes are cut off, or no fragment"
        )
    if not any(_digest(data, digest) == digest for digest in marked):
        raise BrokenFragmentError(path, "checksum", "its bytes are not those that were written")
    # Before parsing, because a library that registered an extension type may run code when Arrow meets it.
    footer_bytes = int.from_bytes(data[-10:-6], "little")
    if b"ARROW:extension" in data[-10 - footer_bytes : -10]:
        raise BrokenFragmentError(path, "fragment has the manifest's schema", "it declares an extension type")


def _digest(data: bytes, own: bytes) -> bytes:
    """The checksum of a fragment in which `own` stands where the checksum goes."""
    digest, view, start = hashlib.sha256(), memoryview(data), 0
    while (place := data.find(own, start)) >= 0:
        digest.update(view[start:place])
        digest.update(_ZEROS)
        start = place + len(own)
    digest.update(view[start:])
    return digest.hexdigest().encode()


def _to_metadata(stamp: Stamp) -> dict[str, str]:
    return {
        _KEY + "run_id": stamp.run_id,
        _KEY + "seq": str(stamp.seq),
        _KEY + "epoch": str(stamp.epoch),
        _KEY + "writer": stamp.writer,
        _KEY + "commit": stamp.commit,
        _KEY + "prev_sha256": stamp.prev_sha256,
        _KEY + "event": stamp.event,
        _KEY + "committed_at": stamp.committed_at.isoformat(),
        _KEY + "state": stamp.state or "",
        _KEY + "detail": json.dumps(stamp.detail or {}, ensure_ascii=True),
    }


def _numbered(metadata: Mapping[bytes, bytes], seq: int) -> Stamp:
    """What the metadata of fragment `seq` says of it."""
    path = fragment_path(seq)
    stamp = parse_stamp(metadata, path)
    if stamp.seq != seq:
        raise BrokenFragmentError(path, "fragment is the one its name says", f"it is number {stamp.seq}")
    return stamp


def parse_stamp(metadata: Mapping[bytes, bytes], path: str) -> Stamp:
    """What the metadata of a fragment say; BrokenFragmentError if they make no sense."""
    try:
        text = {key.decode().removeprefix(_KEY): value.decode() for key, value in metadata.items()}
        state = text["state"] or None
        stamp = Stamp(
            run_id=text["run_id"],
            seq=int(text["seq"]),
            epoch=int(text["epoch"]),
            writer=text["writer"],
            commit=text["commit"],
            prev_sha256=text["prev_sha256"],
            event=EVENTS[EVENTS.index(text["event"])],
            committed_at=datetime.datetime.fromisoformat(text["committed_at"]),
            state=STATES[STATES.index(state)] if state else None,
            detail=_detail(text["detail"]),
        )
    except ValidationError as error:
        problem = first_problem(error, "detail")
        raise BrokenFragmentError(path, BELONGS, f"bad metadata: {problem}") from error
    except (KeyError, ValueError) as error:
        raise BrokenFragmentError(path, BELONGS, f"bad metadata: {first_line(error)}") from error
    if (stamp.event == "close") != (stamp.state is not None) or stamp.committed_at.tzinfo is None:
        raise BrokenFragmentError(path, BELONGS, "bad metadata: state or time")
    if not (0 <= stamp.seq <= MAX_SEQ and 0 <= stamp.epoch <= MAX_SEQ):
        raise BrokenFragmentError(path, BELONGS, f"bad metadata: number or epoch is above {MAX_SEQ:,}")
    return stamp


def _detail(text: str) -> dict[str, Any]:
    detail = read_json(text)
    if not isinstance(detail, dict):
        raise ValueError("detail is no object")
    if detail:
        _Detail.model_validate(detail)
    return detail
