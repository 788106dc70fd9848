"""How run folders are named: a local path, or a bucket and a prefix in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from balancer.errors import StorageError, UsageError
from balancer.storage.user_paths import expanded
from balancer.text.safetext import has_credentials

STORES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.DOTALL)
_FLATTENED = re.compile(r"(s3|gs|az):/([^/].*)", re.DOTALL | re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f]")
_PREFIX_PART = re.compile(r"[\w .+=@,:()!'&$~*-]+")

KEPT_OUT = "credentials and options come from the environment, never from an address"


@dataclass(frozen=True, slots=True)
class Address:
    """A run folder in a bucket: `s3://bucket/prefix`; the prefix may be empty."""

    scheme: str
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def refuse_credentials(text: str, what: str) -> None:
    """UsageError, which does not repeat it, if a text that a user gave holds an address with a password."""
    if has_credentials(text):
        raise UsageError(f"{what} holds a user or a password", hint=KEPT_OUT)


def bucket_address(uri: str) -> Address | None:
    """None for what is a path of this machine; UsageError for an address of neither kind."""
    refuse_credentials(uri, "this address")
    if flattened := _FLATTENED.fullmatch(uri):
        scheme, rest = flattened.groups()
        raise UsageError(
            f"{uri}: one slash is missing, as a Path drops it", hint=f"write {scheme}://{rest} as text"
        )
    found = _SCHEME.fullmatch(uri)
    if found is None or found[1].lower() == "file":
        return None
    scheme, rest = found[1].lower(), found[2]
    if scheme not in STORES:
        raise UsageError(
            f"{scheme}://: no run can be kept there",
            hint=f"use a path, or an address that begins with {', '.join(f'{name}://' for name in STORES)}",
        )
    return _bucket_address(scheme, rest)


def object_address(uri: str) -> tuple[Address, str]:
    """The bucket of an object, and its key there; UsageError for an address of something else."""
    if has_secret(uri):
        raise UsageError("this address holds a user or a password", hint=KEPT_OUT)
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in STORES or not _BUCKET.fullmatch(bucket) or not key:
        raise UsageError(f"{uri} is no address of an object")
    if _NOT_IN_KEYS.search(key):
        raise UsageError("a key with control characters cannot be asked for")
    return Address(scheme, bucket, ""), key


def has_secret(uri: str) -> bool:
    """Whether a user or a password may be in the address of an object: no bucket's name has these signs."""
    bucket = uri.partition("://")[2].partition("/")[0]
    return has_credentials(uri) or "@" in bucket or ":" in bucket


def _bucket_address(scheme: str, rest: str) -> Address:
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if "@" in bucket or ":" in bucket:  # whatever this is may be a secret, and is not repeated
        raise UsageError(f"this {scheme}:// address holds a user or a password", hint=KEPT_OUT)
    if "?" in rest or "#" in rest:
        shown = re.split("[?#]", rest)[0]
        raise UsageError(f"{scheme}://{shown} is followed by a query or a fragment", hint=KEPT_OUT)
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{scheme}://{rest}: {bucket!r} is no name of a bucket")
    for part in prefix.split("/") if prefix else ():
        if part in (".", "..") or not _PREFIX_PART.fullmatch(part):
            raise UsageError(
                f"{scheme}://{rest}: {part!r} cannot be a part of the path of a run",
                hint="use letters, digits, - and _",
            )
    return Address(scheme, bucket, prefix)


def local_path(uri: str) -> str:
    """The absolute path of a local path or a `file://` address."""
    refuse_credentials(uri, "this address")
    if not uri or "\0" in uri:
        raise UsageError(f"{uri!r} is not the path of a run folder")
    if uri.lower().startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"{uri}: a file:// address names no host; write file:///{parts.netloc}{parts.path}"
            )
        return _absolute(unquote(parts.path))
    return _absolute(expanded(uri))


def _absolute(path: str | os.PathLike[str]) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise StorageError("the working folder is gone", hint="cd to a folder that is there") from error
