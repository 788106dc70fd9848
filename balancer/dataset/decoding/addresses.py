"""The addresses of images in buckets, as a table of labels and the path of an image have them."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING

from balancer.storage.address import object_address

if TYPE_CHECKING:
    from balancer.storage.contract import FileInfo
    from balancer.storage.objects import ObjectStorage

_ADDRESS = re.compile(r"(s3|gs|az):/{1,2}(?=[^/])")


def object_uri(name: str) -> str | None:
    """The address that a name in a table is, with the slash that a path loses; None for a name of a file."""
    found = _ADDRESS.match(name)
    return None if found is None else f"{found[1]}://{name[found.end() :]}"


def is_object(name: str) -> bool:
    """Whether a name of an audit is an address, which only tables give: a file may lie in a folder `s3:`."""
    return object_uri(name) == name


def uri_in_path(path: str | os.PathLike[str]) -> str | None:
    """The address behind the folder of a dataset in a path; None for another path."""
    found = re.search(rf"(?:^|/)({_ADDRESS.pattern}.*)", os.fspath(path), re.DOTALL)
    return None if found is None else object_uri(found[1])


def read_object(uri: str, max_bytes: int, etag: str | None = None) -> bytes:
    """The content of an object, with `etag` only while it has that one. StorageError, MissingFileError."""
    address, key = object_address(uri)
    return _bucket(address.uri).read(key, max_bytes, etag)


def look_at_object(uri: str) -> FileInfo:
    """StorageError, MissingFileError; UsageError for an address of something else."""
    address, key = object_address(uri)
    return _bucket(address.uri).info(key)


def _bucket(uri: str) -> ObjectStorage:
    return _opened(uri, os.environ.get("AWS_ENDPOINT_URL"))


@functools.lru_cache(maxsize=64)
def _opened(uri: str, endpoint: str | None) -> ObjectStorage:
    """Looking up credentials takes longer than a request. With another endpoint it is another bucket."""
    from balancer.storage.buckets import open_bucket

    address, _ = object_address(f"{uri}/any")
    return open_bucket(address)
