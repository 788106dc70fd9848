"""A run folder in a bucket: objects under a prefix, in a store with create-only put.

    1  Every file is one PUT of all its bytes, so that it is there whole or not at all.
    2  A create is a PUT that the store refuses if the name is taken (S3 and Azure: `If-None-Match: *`,
       Google: `x-goog-if-generation-match: 0`). Of several, the store lets exactly one through.
    3  A request that fails in passing is made again after a pause that grows and is random, for a bounded
       time. A PUT whose answer got lost may have landed: replacing a file by the same bytes once more does
       no harm, and a create that is refused because of itself says False, as if another had been first. The
       caller reads it back, as `publish` does.

Nothing is cached. The library's own retries are off: they would not say how often they tried, and take a
create that conflicts with another one for a refusal.
"""

from __future__ import annotations

import mimetypes
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from balancer.errors import StorageError
from balancer.storage.contract import (
    FileInfo,
    MissingFileError,
    NoCreateOnlyError,
    Paths,
    check_path,
    check_size,
    publish_by_creating,
)
from balancer.storage.failures import Conflict, Failure, failure_of

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")

_FAILURES = (BaseError, Conflict, OSError, ValueError, NotImplementedError)


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

    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, failures: int, chance: float) -> float:
        """The pause after that many failures; `chance` is a random number from 0 to 1."""
        return chance * min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(failures - 1, 30))


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
        def put() -> None:
            # Never in parts: those of an upload that was broken off stay, and cost, unseen.
            obstore.put(self._store, path, data, use_multipart=False, attributes=_attributes(path))

        self._insist("write", path, put)

    def create(self, path: str, data: bytes) -> bool:
        return self._insist("create", path, lambda: self._create_once(path, data))

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        def get() -> bytes:
            answer = obstore.get(self._store, path)
            check_size(path, answer.meta["size"], max_bytes)
            return bytes(answer.bytes())

        return self._insist("read", path, get)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            return self._insist(
                "read", path, lambda: bytes(obstore.get_range(self._store, path, start=start, length=length))
            )
        except MissingFileError:
            raise
        except StorageError:
            if start < self.info(path).num_bytes:
                raise
            return b""  # a store refuses a part behind the end

    def info(self, path: str) -> FileInfo:
        found = self._insist("look at", path, lambda: obstore.head(self._store, path))
        return FileInfo(found["size"], found["last_modified"])

    def exists(self, path: str) -> bool:
        try:
            self._insist("look for", path, lambda: obstore.head(self._store, path))
        except MissingFileError:
            return False
        return True

    def list(self, prefix: str) -> Paths:
        # A store's consoles keep empty objects in the place of folders: that of the run has no name here.
        return sorted(path for path in self._paths(prefix) if path)

    def delete(self, path: str) -> None:
        try:
            self._insist("delete", path, lambda: obstore.delete(self._store, path))
        except MissingFileError:
            return  # S3 says nothing of it, Google and Azure do

    def _create_once(self, path: str, data: bytes) -> bool:
        """False only if the file is seen: the library also takes a 409 for "is there already", with which S3
        answers while another request for the name is under way, of which none need succeed."""
        try:
            obstore.put(
                self._store, path, data, mode="create", use_multipart=False, attributes=_attributes(path)
            )
            return True
        except AlreadyExistsError:
            pass
        except NotImplementedError as error:
            raise self._no_create_only(path, str(error).partition("\n")[0]) from None
        try:
            obstore.head(self._store, path)
            return False
        except FileNotFoundError:
            raise Conflict from None

    def _paths(self, prefix: str) -> Iterator[str]:
        """Page by page; after a failure the listing goes on behind the last path that came."""
        last: str | None = None
        pages: Iterator[Sequence[ObjectMeta]] | None = None

        def next_page() -> list[str]:
            nonlocal pages
            pages = pages or iter(obstore.list(self._store, prefix or None, offset=last))
            try:
                return [entry["path"] for entry in next(pages, ())]
            except BaseException:
                pages = None
                raise

        while page := self._insist("list", prefix, next_page):
            yield from page
            last = page[-1]

    # ---- insisting -----------------------------------------------------------------------------

    def _insist(self, action: str, path: str, request: Callable[[], T]) -> T:
        if path or action != "list":
            check_path(path, self.uri)
        began_s, failures = self._clock(), 0
        while True:
            try:
                answer = request()
                self._reached, self._given_up = True, False
                return answer
            except _FAILURES as error:
                failure = failure_of(error)
            failures += 1
            self._reached |= failure.reached
            pause_s = self._patience.pause_s(failures, self._chance())
            waited_s = self._clock() - began_s
            if not failure.passing or waited_s + pause_s > self._limit_s():
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


def _attributes(path: str) -> dict[str, str]:
    """So that a report or an image can be looked at where it is."""
    return {"Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"}
