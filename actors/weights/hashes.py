"""The sha256 of a model's weights: what a run records, so that it notices when they are others next time.

A commit on the hub names what was published there; the hash names what is on this disk. Large files are
hashed once: what was found is kept in the cache folder for as long as the file stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from actors.weights.file_rules import is_weights
from balancer.errors import WeightsError
from balancer.storage.cache import cache_folder, keep
from balancer.storage.regular_files import open_regular

REMEMBERED_FROM_BYTES = 64_000_000
_READ_BYTES = 1 << 22


def weights_sha256(folder: Path, names: Iterable[str]) -> str:
    """One hash over the weight files among `names`, which are relative to `folder`. WeightsError."""
    try:
        return combined({name: _file_sha256(folder / name) for name in weight_files(names)})
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def weight_files(names: Iterable[str]) -> list[str]:
    return list(filter(is_weights, names))


def combined(hashes: Mapping[str, str]) -> str:
    """One hash for those of several files, by name."""
    lines = (f"{name}\0{sha256}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    found = path.stat()
    if found.st_size < REMEMBERED_FROM_BYTES:
        return _read_sha256(path)
    # The time of the last change of any kind cannot be set, as that of the last writing can.
    state = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    note = cache_folder() / "weights" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(note.read_bytes())
        if known["state"] == state:
            return str(known["sha256"])
    sha256 = _read_sha256(path)
    told = json.dumps({"state": state, "sha256": sha256}).encode()
    keep(note, lambda file: file.write(told))
    return sha256


def _read_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, follow_links=True) as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
