"""Files that nothing needs: images no row names, temporary files, and compacted files of an earlier copy.

Only files that are old are taken for left over: a younger one may belong to somebody who is at work. For an
image age is not enough. A driver that slept for a day may still commit a row with it, and one that starts now
may write the very same file anew, because a candidate made again has the same name. So whoever deletes images
takes the log over first, which stops the one, and says in it which files will go, which the other avoids.

An image is left over only by the word of the log. So images go only if the log is known to be whole, by its
head, and not many of them, unless whoever asks says that they have seen the list (`--yes`); and none that was
not in it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from balancer.errors import ManifestError, StorageError, UsageError
from balancer.manifest.layout import DATA_DIR, HEAD_FILE, IMAGES_DIR, INDEX_FILE
from balancer.manifest.log.closing import closing_on_error
from balancer.manifest.log.head import read_head
from balancer.manifest.log.view import LogView, read_log
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import utc_now
from balancer.manifest.runfile import read_run
from balancer.manifest.snapshot.build import make_durable
from balancer.manifest.snapshot.current import renew_current
from balancer.manifest.snapshot.index import read_index
from balancer.manifest.status import refuse_running
from balancer.storage import MissingFileError, Paths, Storage, is_temporary
from balancer.text.quantities import are, counted

IMAGE, TEMPORARY, COMPACTED = "image", "temporary", "compacted"

NAMES = ("file_name",)

MANY_IMAGES, MANY_SHARE = 16, 0.1
"""More images than both that many and that share of all there are is more than crashes leave."""

DOOMED_AT_ONCE = 1000
"""Paths that one fragment says will be deleted."""


@dataclass(frozen=True, slots=True)
class Leftover:
    path: str
    kind: str
    num_bytes: int
    modified_at: dt.datetime


def find_leftovers(
    storage: Storage, older_than: dt.timedelta, now: Callable[[], dt.datetime] = utc_now
) -> list[Leftover]:
    """What nothing needs, and was written longer ago than `older_than`; nothing is changed."""
    before = now() - older_than
    return [leftover for leftover in find_unneeded(storage) if leftover.modified_at < before]


def find_unneeded(storage: Storage) -> list[Leftover]:
    """As `find_leftovers`, of any age: the young ones may belong to somebody who is at work."""
    listed = storage.list("")  # first: what is written later is no leftover
    return _leftovers(storage, listed, read_log(storage, NAMES))


def delete_leftovers(
    storage: Storage,
    older_than: dt.timedelta,
    now: Callable[[], dt.datetime] = utc_now,
    *,
    confirmed: bool = False,
) -> list[Leftover]:
    """Delete what `find_leftovers` finds; returns what was deleted.

    UsageError while a driver seems to be at work, and for more images than crashes leave unless `confirmed`;
    nothing is deleted then. FencedError if a driver takes the run over meanwhile: the rest stays.
    """
    info, view = read_run(storage), read_log(storage, NAMES)
    refuse_running(storage, view.last, now(), "files can be deleted")
    found = find_leftovers(storage, older_than, now)
    if not confirmed:
        _refuse_unconfirmed(storage, found)
    others = [leftover for leftover in found if leftover.kind != IMAGE]
    if any(leftover.kind == COMPACTED for leftover in others):
        make_durable(storage, INDEX_FILE)  # or the index before it could come back, which names them
    _delete(storage, others)
    if len(others) == len(found):
        renew_current(storage)
        return others
    log = ManifestLog.open(storage, info.schema(), info.run_id, now=now, detail={"reason": "gc"})
    with closing_on_error(log, view.state or "interrupted", "gc"):
        # Once more: whoever had the log before may have committed rows until now, and will not from now on.
        listed = {leftover.path for leftover in found}
        found = [again for again in find_leftovers(storage, older_than, now) if again.path in listed]
        images = [leftover for leftover in found if leftover.kind == IMAGE]
        _delete_doomed(storage, images, log)
    log.close(view.state or "interrupted", {"reason": "gc"})
    return [*others, *images]


def _refuse_unconfirmed(storage: Storage, leftovers: Sequence[Leftover]) -> None:
    images = sum(leftover.kind == IMAGE for leftover in leftovers)
    if not images:
        return
    hint = "look at what `balancer gc RUN` lists; if all of it may go, `--delete --yes` deletes it"
    if read_head(storage, read_run(storage).run_id) is None:
        raise UsageError(
            f"{counted(images, 'image')} {are(images)} named by no row, and nothing proves that the log has"
            f" all its rows: an earlier version began this run, and left no {HEAD_FILE}",
            hint=hint,
        )
    there = sum(not is_temporary(path) for path in storage.list(IMAGES_DIR))
    if images > max(MANY_IMAGES, MANY_SHARE * there):
        raise UsageError(
            f"{images} of {counted(there, 'image')} would be deleted, more than crashes leave "
            f"({MANY_IMAGES} images or {MANY_SHARE:.0%}); nothing was deleted",
            hint=hint,
        )


def _delete_doomed(storage: Storage, images: Sequence[Leftover], log: ManifestLog) -> None:
    for start in range(0, len(images), DOOMED_AT_ONCE):
        part = images[start : start + DOOMED_AT_ONCE]
        log.doom([leftover.path for leftover in part])
        _delete(storage, part)


def _leftovers(storage: Storage, listed: Paths, view: LogView) -> list[Leftover]:
    named = set(view.table["file_name"].to_pylist())
    compacted = _compacted(storage)
    return [
        leftover
        for path in listed
        if (kind := _kind(path, named, compacted)) is not None
        for leftover in _if_there(storage, path, kind)
    ]


def _compacted(storage: Storage) -> set[str] | None:
    """Files that the index names; None if none can be read, so that nobody knows which these are."""
    try:
        index = read_index(storage, read_run(storage).run_id)
    except ManifestError:
        return None
    return {INDEX_FILE, *(file.path for file in index.files)} if index else None


def _kind(path: str, named: set[str], compacted: set[str] | None) -> str | None:
    if is_temporary(path):
        return TEMPORARY
    if path.startswith(f"{IMAGES_DIR}/") and path not in named:
        return IMAGE
    if path.startswith(f"{DATA_DIR}/") and compacted is not None and path not in compacted:
        return COMPACTED
    return None


def _if_there(storage: Storage, path: str, kind: str) -> Iterator[Leftover]:
    try:
        found = storage.info(path)
    except MissingFileError:
        return  # a temporary file, that its writer has renamed by now
    except StorageError:
        return  # a link or a pipe: nothing that was written here
    yield Leftover(path, kind, found.num_bytes, found.modified_at)


def _delete(storage: Storage, leftovers: Iterable[Leftover]) -> None:
    for leftover in leftovers:
        storage.delete(leftover.path)


def total_bytes(leftovers: Sequence[Leftover]) -> int:
    return sum(leftover.num_bytes for leftover in leftovers)
