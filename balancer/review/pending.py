"""Decisions that are durable, but not yet in the log: `review/pending/`.

Whoever asks people writes here, and never into the log, which a driver may hold. Whoever holds the log takes
them in (`balancer.review.taking`) and deletes the files afterwards. One that a crash left behind is taken for
what it is by its keys, which are in the log already.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from balancer.errors import BalancerError, StorageError
from balancer.manifest.layout import PENDING_DIR
from balancer.manifest.rows import utc_now
from balancer.review.decisions import Decision, once_each
from balancer.storage import MissingFileError, Storage, is_temporary
from balancer.text.json_reading import json_sha256, read_json

FORMAT = 1

MOST_IN_A_FILE = 500

MAX_PENDING_BYTES = 4_000_000

MAX_PENDING_FILES, MAX_TOTAL_BYTES = 100_000, 200_000_000
"""Read at a time, oldest first; whoever takes them in comes back for the rest."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A file of decisions. `problem` says why it cannot be read; empty if it can."""

    path: str
    decisions: tuple[Decision, ...] = ()
    problem: str = ""


def save(storage: Storage, run_id: str, decisions: Sequence[Decision]) -> None:
    """Write decisions down; they are durable when it returns. StorageError if they are not."""
    for start in range(0, len(decisions), MOST_IN_A_FILE):
        part = decisions[start : start + MOST_IN_A_FILE]
        document = {
            "format": FORMAT,
            "run_id": run_id,
            "decisions": [decision.as_dict() for decision in part],
        }
        data = json.dumps({**document, "checksum": json_sha256(document)}, ensure_ascii=False).encode()
        path = f"{PENDING_DIR}/{utc_now():%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}.json"
        if not storage.create(path, data):
            raise StorageError(f"cannot write {path}: something of that name is there")


def list_pending(storage: Storage) -> list[str]:
    """The files there are, oldest first."""
    paths = (path for path in storage.list(PENDING_DIR) if not is_temporary(path))
    return sorted(paths)[:MAX_PENDING_FILES]


def read_pending(storage: Storage, run_id: str, paths: Iterable[str] | None = None) -> list[Pending]:
    """What the files hold: all of them, or those of `paths`. One that vanishes meanwhile was taken in."""
    return list(_read_each(storage, run_id, list_pending(storage) if paths is None else paths))


def pending_decisions(storage: Storage, run_id: str) -> list[Decision]:
    """All that wait, each once."""
    return once_each(decision for file in read_pending(storage, run_id) for decision in file.decisions)


def all_decisions(storage: Storage, run_id: str, in_log: Iterable[Decision]) -> list[Decision]:
    """Those that are in the log, and those that wait, each once."""
    return once_each([*in_log, *pending_decisions(storage, run_id)])


def delete_pending(storage: Storage, files: Iterable[Pending]) -> None:
    """Those whose decisions are in the log."""
    for file in files:
        storage.delete(file.path)


def _read_each(storage: Storage, run_id: str, paths: Iterable[str]) -> Iterator[Pending]:
    total = 0
    for path in paths:
        if total > MAX_TOTAL_BYTES:
            return
        try:
            data = storage.read(path, MAX_PENDING_BYTES)
            total += len(data)
            document = read_json(data)
            yield Pending(path, tuple(_parsed(document, run_id)))
        except MissingFileError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Pending(path, problem=str(error))
        except BalancerError as error:
            yield Pending(path, problem=error.message)


def _parsed(document: dict[str, Any], run_id: str) -> list[Decision]:
    checksum = document.pop("checksum")
    if checksum != json_sha256(document):
        raise ValueError("its bytes are not those that were written")
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, not {FORMAT}")
    if document["run_id"] != run_id:
        raise ValueError(f"it is of run {document['run_id']!r}")
    return [Decision.from_dict(values) for values in document["decisions"]]
