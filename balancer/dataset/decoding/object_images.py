"""Images in buckets, which a table of labels names by their addresses: `s3://bucket/key`.

This process fetches them, up to the limit on files, because those that decode have neither network nor
credentials; these read copies, which go again. An object counts as unchanged if ETag and size are the same.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from balancer.dataset.decoding import decoders
from balancer.dataset.decoding.addresses import is_object, look_at_object, read_object
from balancer.dataset.decoding.image_info import DecodeLimits, ImageInfo
from balancer.dataset.decoding.watching import Count
from balancer.errors import BalancerError, DatasetError, UsageError
from balancer.storage.contract import FileInfo, MissingFileError

AT_ONCE = 16
"""Requests under way."""

COPIED_BYTES, COPIED_OBJECTS = 1_000_000_000, 5_000
"""What is copied at a time, at most, but for one large image."""

KEY_BYTES = 16
MISSING = "no such object in the bucket"


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects among the images of a dataset: what the store says of each, or why it cannot be used."""

    seen: Mapping[str, FileInfo | str]

    @classmethod
    def among(cls, names: Sequence[str]) -> Objects:
        """DatasetError for a bucket that cannot be reached or entered."""
        wanted = [name for name in names if is_object(name)]
        if not wanted:
            return cls({})
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return cls(dict(zip(wanted, threads.map(_look, wanted), strict=True)))

    def key(self, name: str) -> bytes:
        """Of its content as it is now, for the cache; zeros for one that cannot be used."""
        found = self.seen[name]
        if isinstance(found, str) or not found.etag:
            return bytes(KEY_BYTES)
        text = "\0".join((name, found.etag, str(found.num_bytes)))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()

    def read(self, names: Sequence[str], limits: DecodeLimits, count: Count) -> list[ImageInfo | str]:
        """As `decoders.read_all_images`."""
        answers: list[ImageInfo | str] = []
        for part in self._parts(names, limits):
            answers += self._read_part(part, limits)
            count(len(answers))
        return answers

    def _parts(self, names: Sequence[str], limits: DecodeLimits) -> Iterator[list[str]]:
        part: list[str] = []
        total = 0
        for name in names:
            found = self.seen[name]
            num_bytes = 0 if isinstance(found, str) else min(found.num_bytes, limits.max_bytes)
            if part and (total + num_bytes > COPIED_BYTES or len(part) == COPIED_OBJECTS):
                yield part
                part, total = [], 0
            part.append(name)
            total += num_bytes
        if part:
            yield part

    def _read_part(self, names: Sequence[str], limits: DecodeLimits) -> list[ImageInfo | str]:
        with (
            tempfile.TemporaryDirectory(prefix="balancer-") as folder,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):

            def copy(place: int) -> str | None:
                return self._copy(names[place], Path(folder) / str(place), limits.max_bytes)

            reasons = [*threads.map(copy, range(len(names)))]
            copied = [str(place) for place, reason in enumerate(reasons) if reason is None]
            infos = iter(decoders.read_all_images(Path(folder), copied, limits))
            return [next(infos) if reason is None else reason for reason in reasons]

    def _copy(self, name: str, path: Path, max_bytes: int) -> str | None:
        """Why it cannot be used; None if it lies at `path` now."""
        found = self.seen[name]
        if isinstance(found, str):
            return found
        if found.num_bytes > max_bytes:
            size, limit = found.num_bytes / 1e6, max_bytes / 1e6
            return f"{size:,.1f} megabytes, over the limit of {limit:,g} (dataset.max_image_megabytes)"
        try:
            path.write_bytes(read_object(name, max_bytes, found.etag or None))
        except MissingFileError:
            return MISSING
        except BalancerError as error:
            return error.message
        return None


def _look(uri: str) -> FileInfo | str:
    try:
        return look_at_object(uri)
    except MissingFileError:
        return MISSING
    except UsageError as error:
        return error.message
    except BalancerError as error:
        raise DatasetError(f"{uri}: {error.message}", hint=error.hint) from error
