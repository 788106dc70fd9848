"""Compute the sha256 of a model's weights. A run records it, to detect other weights later.

A commit identifies the files on the hub; the hash identifies the files on this disk. Hashes of large files
are cached until the file changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from actors.weights.file_rules import is_weights
from balancer.errors import WeightsError
from balancer.storage.cache import cache_folder, keep_json
from balancer.storage.regular_files import open_regular, read_regular
from balancer.text.json_reading import read_json

REMEMBERED_FROM_BYTES = 64_000_000
_READ_BYTES = 1 << 22
_LARGEST_NOTE = 10_000


def weights_sha256(folder: Path, names: Iterable[str]) -> str:
    """One hash over the weight files among `names`, relative to `folder`. Raises WeightsError."""
    try:
        return combine_hashes({name: file_sha256(folder / name) for name in weight_files(names)})
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def weight_files(names: Iterable[str]) -> list[str]:
    return list(filter(is_weights, names))


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Combine the hashes of several files, by name, into one."""
    lines = (f"{name}\0{sha256}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < REMEMBERED_FROM_BYTES:
        return _read_sha256(path)
    # Programs can set mtime, but not ctime.
    state = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    note = cache_folder() / "weights" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = read_json(read_regular(note, max_bytes=_LARGEST_NOTE, follow_links=False))
        if known["state"] == state:
            return str(known["sha256"])
    sha256 = _read_sha256(path)
    keep_json(note, {"state": state, "sha256": sha256})
    return sha256


def _read_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, follow_links=True) as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
