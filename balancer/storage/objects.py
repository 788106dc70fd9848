"""A run folder in a bucket: objects under a prefix, in a store with create-only put.

    1  Every file is one PUT of all its bytes, so that it is there whole or not at all.
    2  A create is a PUT that the store refuses if the name is taken (S3 and Azure: `If-None-Match: *`,
       Google: `x-goog-if-generation-match: 0`). Of several, the store lets exactly one through.
    3  A request that fails in passing is made again after a pause that grows and is random, for a bounded
       time. A PUT whose answer got lost may have landed: replacing a file by the same bytes once more does
       no harm, and a create that is refused because of itself says False, as if another had been first. The
       caller reads it back, as `publish` does.

    4  No answer is read without end. A body is read up to the size that the answer says and the caller
       allows; what the library reads by itself is bounded by `bounded`, a listing by `Listing`.

Nothing is cached. The library's own retries are off: they would not say how often they tried, and take a
create that conflicts with another one for a refusal.
"""

from __future__ import annotations

import mimetypes
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from balancer.errors import StorageError
from balancer.storage.bounded import in_memory, wait_for
from balancer.storage.contract import (
    FileInfo,
    MissingFileError,
    NoCreateOnlyError,
    Paths,
    check_path,
    check_size,
    publish_by_creating,
)
from balancer.storage.failures import BadAnswerError, Conflict, Failure, explain_failure

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ListStream, ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")
Parts = list[bytes]

_FAILURES = (BaseError, Conflict, BadAnswerError, OSError, ValueError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request is made again that fails in passing.

    The pauses are random between nothing and a bound that doubles, "full jitter":
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    total_s: float = 120.0
    """From the first try on; long enough for a store that is busy or restarts."""

    unreached_s: float = 15.0
    """The same as long as no server ever answered: its address is more likely wrong than it is away."""

    request_s: float = 600.0
    """One request with its whole answer. The library's own limit, `AWS_TIMEOUT` and its like, is 30 seconds
    unless the user knows of a slower network."""

    page_s: float = 120.0
    """The same for the next names of a listing, with all the empty pages before them."""

    listing_s: float = 1800.0
    """A listing with all its pages."""

    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, failures: int, chance: float) -> float:
        """The pause after that many failures; `chance` is a random number from 0 to 1."""
        return chance * min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(failures - 1, 30))


@dataclass(slots=True)
class Listing:
    """The names below a folder, page by page; BadAnswerError for a listing without an end."""

    folder: str
    names: set[str] = field(default_factory=set)
    max_names: int = 5_000_000
    max_idle_pages: int = 100
    _idle_pages: int = 0

    def add(self, page: Sequence[str]) -> None:
        known = len(self.names)
        self.names.update(page)
        self._idle_pages = 0 if len(self.names) > known else self._idle_pages + 1
        if len(self.names) > self.max_names:
            raise BadAnswerError(f"it has more than {self.max_names:,} names")
        if self._idle_pages > self.max_idle_pages:
            raise BadAnswerError(f"{self._idle_pages} pages in a row repeat names that came before")
        self._check(page)

    def _check(self, page: Sequence[str]) -> None:
        inside = f"{self.folder}/" if self.folder else ""
        for name in page:
            if len(name) > _LONGEST_NAME:
                raise BadAnswerError(f"a name has {len(name):,} characters, the limit is {_LONGEST_NAME:,}")
            if not name.startswith(inside):
                raise BadAnswerError(f"it names {name!r}, which is not in that folder")


_LONGEST_NAME = 1024
"""In characters: S3, Google and Azure allow no longer ones."""


_PART_BYTES = 1 << 22


class ObjectStorage:
    """`store` is confined to the prefix of the run and makes each request once. For any number of threads."""

    def __init__(
        self,
        uri: str,
        store: ObjectStore,
        patience: Patience = Patience(),
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.uri = uri
        self._store = store
        self._patience = patience
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._reached = False
        self._given_up = False

    def publish(self, path: str, data: bytes) -> None:
        publish_by_creating(self, path, data)

    def replace(self, path: str, data: bytes) -> None:
        async def put() -> None:
            await in_memory(self._put(path, data, "overwrite"))

        self._insist("write", path, put)

    def create(self, path: str, data: bytes) -> bool:
        return self._insist("create", path, lambda: self._create_once(path, data))

    def read(self, path: str, max_bytes: int | None = None, etag: str | None = None) -> bytes:
        """With `etag` only content that has it; StorageError for other content."""
        return b"".join(self._insist("read", path, lambda: self._read_once(path, max_bytes, etag)))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            return b"".join(self._insist("read", path, lambda: self._read_part_once(path, start, length)))
        except MissingFileError:
            raise
        except StorageError:
            if start < self.info(path).num_bytes:
                raise
            return b""  # a store refuses a part behind the end

    def info(self, path: str) -> FileInfo:
        found = self._insist("look at", path, lambda: self._look_once(path))
        return FileInfo(found["size"], found["last_modified"], found["e_tag"] or "")

    def exists(self, path: str) -> bool:
        try:
            self._insist("look for", path, lambda: self._look_once(path))
        except MissingFileError:
            return False
        return True

    def list(self, prefix: str) -> Paths:
        # A store's consoles keep empty objects in the place of folders: that of the run has no name here.
        return sorted(filter(None, self._listing(prefix).names))

    def delete(self, path: str) -> None:
        async def delete() -> None:
            await in_memory(obstore.delete_async(self._store, path))

        try:
            self._insist("delete", path, delete)
        except MissingFileError:
            return  # S3 says nothing of it, Google and Azure do

    # ---- one try -------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes, mode: Literal["create", "overwrite"]) -> Awaitable[object]:
        """Never in parts: those of an upload that was broken off stay, and cost, unseen."""
        return obstore.put_async(
            self._store, path, data, mode=mode, use_multipart=False, attributes=_attributes(path)
        )

    async def _look_once(self, path: str) -> ObjectMeta:
        return await in_memory(obstore.head_async(self._store, path))

    async def _read_once(self, path: str, max_bytes: int | None, etag: str | None = None) -> Parts:
        wanted: GetOptions = {"if_match": etag} if etag else {}
        answer = await in_memory(obstore.get_async(self._store, path, options=wanted))
        check_size(path, answer.meta["size"], max_bytes)
        return await _body(answer, answer.meta["size"])

    async def _read_part_once(self, path: str, start: int, length: int) -> Parts:
        part: GetOptions = {"range": (start, start + length)}
        answer = await in_memory(obstore.get_async(self._store, path, options=part))
        begin, end = answer.range
        if begin != start or not 0 < end - begin <= length:
            raise BadAnswerError(f"bytes {start} to {start + length} were asked for, not {begin} to {end}")
        return await _body(answer, end - begin)

    async def _create_once(self, path: str, data: bytes) -> bool:
        """False only if the file is seen: the library also takes a 409 for "is there already", with which S3
        answers while another request for the name is under way, of which none need succeed."""
        try:
            await in_memory(self._put(path, data, "create"))
            return True
        except AlreadyExistsError:
            pass
        except NotImplementedError as error:
            raise self._no_create_only(path, str(error).partition("\n")[0]) from None
        try:
            await self._look_once(path)
            return False
        except FileNotFoundError:
            raise Conflict from None

    # ---- listing -------------------------------------------------------------------------------

    def _listing(self, folder: str) -> Listing:
        listing, began_s = Listing(folder), self._clock()
        try:
            for page in self._pages(folder):
                listing.add(page)
                if self._clock() - began_s > self._patience.listing_s:
                    raise BadAnswerError(f"it took longer than {self._patience.listing_s:g} seconds")
        except BadAnswerError as error:
            raise self._error("list", folder, explain_failure(error), 1, 0.0) from None
        return listing

    def _pages(self, folder: str) -> Iterator[Paths]:
        """After a failure the listing goes on behind the last path that came."""
        last: str | None = None
        pages: ListStream[Sequence[ObjectMeta]] | None = None

        async def next_page() -> Paths:
            nonlocal pages
            pages = pages or obstore.list(self._store, folder or None, offset=last)
            try:
                return [entry["path"] for entry in await in_memory(pages.__anext__())]
            except StopAsyncIteration:
                return []
            except BaseException:
                pages = None
                raise

        while page := self._insist("list", folder, next_page, self._patience.page_s):
            yield page
            last = page[-1]

    # ---- insisting -----------------------------------------------------------------------------

    def _insist(
        self, action: str, path: str, request: Callable[[], Awaitable[T]], limit_s: float | None = None
    ) -> T:
        if path or action != "list":
            check_path(path, self.uri)
        began_s, failures = self._clock(), 0
        while True:
            try:
                answer = wait_for(request, limit_s or self._patience.request_s)
                self._reached, self._given_up = True, False
                return answer
            except _FAILURES as error:
                failure = explain_failure(error)
            failures += 1
            self._reached |= failure.reached
            pause_s = self._patience.pause_s(failures, self._chance())
            waited_s = self._clock() - began_s
            done = not failure.passing or failures == failure.tries
            if done or waited_s + pause_s > self._limit_s():
                self._given_up |= failure.passing
                raise self._error(action, path, failure, failures, waited_s)
            self._sleep(pause_s)

    def _limit_s(self) -> float:
        """A store that was given up is asked once by every later call, until it answers: a run that ends
        because of it has more than one thing left to write."""
        if self._given_up:
            return 0.0
        return self._patience.total_s if self._reached else self._patience.unreached_s

    def _error(
        self, action: str, path: str, failure: Failure, failures: int, waited_s: float
    ) -> StorageError:
        tried = f"; tried {failures} times in {waited_s:.0f} s" if failures > 1 else ""
        message = f"cannot {action} {self.uri}/{path}: {failure.cause}{tried}"
        if failure.missing and action not in ("create", "write"):  # there, it is the bucket
            return MissingFileError(message)
        if action == "create" and failure.cause.startswith("501"):
            return self._no_create_only(path, failure.cause)
        return StorageError(message, hint=failure.hint)

    def _no_create_only(self, path: str, cause: str) -> NoCreateOnlyError:
        return NoCreateOnlyError(f"cannot create {self.uri}/{path}: {cause}")


async def _body(answer: GetResult, num_bytes: int) -> Parts:
    """The body in parts, which has as many bytes as the answer said before."""
    parts: Parts = []
    missing = num_bytes
    async for part in answer.stream(min_chunk_size=min(num_bytes + 1, _PART_BYTES)):
        parts.append(part)
        missing -= len(part)
        if missing < 0:
            raise BadAnswerError(f"it is longer than the {num_bytes:,} bytes that it says", passing=True)
    if missing:
        raise BadAnswerError(f"it is {missing:,} bytes shorter than the {num_bytes:,} it says", passing=True)
    return parts


def _attributes(path: str) -> dict[str, str]:
    """So that a report or an image can be looked at where it is."""
    return {"Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"}
