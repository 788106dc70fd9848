"""How far the log is known to reach: `manifest/head.json`, renewed after every commit.

Without it nobody could tell a log that lost its last fragments, or all of them, from one that never had them.
It names the last fragment and its sha256, and is written once that fragment is durable. So it may be behind
the log, after a crash or while the disk is full, and is never ahead of it: a log that does not reach its head
has lost fragments. Runs of earlier versions have none until a driver opens them again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from balancer.errors import ManifestError, StorageError
from balancer.manifest.layout import HEAD_FILE, IMAGES_DIR, LOG_DIR, MAX_SEQ, REJECTED_DIR, fragment_path
from balancer.manifest.log.fragment import BrokenFragmentError, Link
from balancer.storage import MissingFileError, Storage, is_temporary
from balancer.text.json_reading import json_sha256, read_json
from balancer.text.quantities import counted

FORMAT = 1
"""Every format has this checksum, so a damaged number is no newer format."""

MAX_HEAD_BYTES = 100_000

LOG_IS_THERE = "log is there"
READABLE = "head of the log is readable"


@dataclass(frozen=True, slots=True)
class Head:
    """The log of the run has fragment `seq`, known as `sha256`; 0 and "" as long as it is empty."""

    run_id: str
    seq: int
    sha256: str


def read_head(storage: Storage, run_id: str) -> Head | None:
    """None if there is none; BrokenFragmentError if it is damaged, or of another run."""
    try:
        data = storage.read(HEAD_FILE, MAX_HEAD_BYTES)
    except MissingFileError:
        return None
    except StorageError as error:
        if storage.exists(HEAD_FILE):
            raise
        raise BrokenFragmentError(HEAD_FILE, READABLE, "it is not a regular file") from error
    try:
        head = _parsed(read_json(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFragmentError(HEAD_FILE, READABLE, str(error)) from error
    if head.run_id != run_id:
        raise BrokenFragmentError(HEAD_FILE, "head belongs to the run", f"it is of run {head.run_id!r}")
    return head


def write_head(storage: Storage, run_id: str, last: Link | None) -> None:
    """`last` is the last fragment, durable by now; None if the log is empty."""
    head = Head(run_id, last.stamp.seq, last.known_as) if last else Head(run_id, 0, "")
    document = {"format": FORMAT, **dataclasses.asdict(head)}
    storage.replace(HEAD_FILE, json.dumps({**document, "checksum": json_sha256(document)}).encode())


def check_reach(storage: Storage, last: int, head: Head | None, copied: int) -> None:
    """BrokenFragmentError if the log, whose highest number is `last`, once had more fragments: those up to
    its head, those that were compacted (`copied`), or any at all if there are images."""
    least = max(head.seq if head else 0, copied)
    witness = "the compacted copy has its rows" if copied == least else f"{HEAD_FILE} names it"
    if last == 0 and (lost := lost_log(storage, head, copied)):
        raise BrokenFragmentError(LOG_DIR, LOG_IS_THERE, lost)
    if last < least:
        raise BrokenFragmentError(fragment_path(least), "log without gaps", f"it is missing, {witness}")


def check_head(head: Head | None, fragment: Link) -> None:
    """BrokenFragmentError if the fragment that the head names is another one."""
    if head is not None and fragment.stamp.seq == head.seq and fragment.known_as != head.sha256:
        path = fragment_path(head.seq)
        raise BrokenFragmentError(path, "hash chain", f"it is not the one that {HEAD_FILE} names")


def lost_log(storage: Storage, head: Head | None, copied: int) -> str:
    """What proves that a log in which there is nothing was lost; empty if it may never have had anything."""
    if head is not None and head.seq:
        proof = f"{HEAD_FILE} names {head.seq}"
    elif copied:
        proof = f"{copied} were compacted"
    elif head is None and (images := _images(storage)):
        proof = f"the run has {counted(images, 'image file')}"
    else:
        return ""
    return f"it has no fragment, yet {proof}; a disk that is not mounted looks like this"


def _images(storage: Storage) -> int:
    """A driver writes images only after it has opened the log."""
    listed = [path for folder in (IMAGES_DIR, REJECTED_DIR) for path in storage.list(folder)]
    return sum(not is_temporary(path) for path in listed)


def _parsed(document: dict[str, Any]) -> Head:
    checksum = document.pop("checksum")
    if checksum != json_sha256(document):
        raise ValueError("its bytes are not those that were written")
    number = document["format"]
    if type(number) is not int:
        raise ValueError("its format is no whole number")
    if number > FORMAT:
        raise ManifestError(
            f"{HEAD_FILE}: format {number} is newer than {FORMAT}, the newest this version reads",
            hint="upgrade balancer",
        )
    head = Head(document["run_id"], document["seq"], document["sha256"])
    if not (isinstance(head.run_id, str) and isinstance(head.seq, int) and isinstance(head.sha256, str)):
        raise ValueError("its values are of other types")
    if isinstance(head.seq, bool) or not 0 <= head.seq <= MAX_SEQ:
        raise ValueError(f"seq is no number from 0 to {MAX_SEQ:,}")
    return head
