"""The local cache of derived files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from balancer.errors import UnavailableError
from balancer.storage.address import refuse_credentials
from balancer.storage.user_paths import expanded

DEFAULT_CACHE = "~/.cache/balancer"


def cache_folder() -> Path:
    """It need not be there yet."""
    folder = os.environ.get("BALANCER_CACHE") or DEFAULT_CACHE
    refuse_credentials(folder, "BALANCER_CACHE")
    return expanded(folder, "BALANCER_CACHE")


def private_folder(name: str) -> Path:
    """A folder in the cache that nobody else can enter, for what is run or waited for. UnavailableError."""
    folder = cache_folder().absolute() / f"user-{os.getuid()}"
    try:
        folder.parent.mkdir(0o755, parents=True, exist_ok=True)
        if folder.parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise PermissionError(
                errno.EPERM, "others can exchange what is in this folder", str(folder.parent)
            )
        for path in (folder, folder / name):
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
            _refuse_shared(path)
    except OSError as error:
        raise UnavailableError(
            f"{error.filename or folder}: {error.strerror}", hint="set BALANCER_CACHE to a folder of your own"
        ) from error
    return folder / name


def _refuse_shared(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UnavailableError(
            f"{path} is not a folder that this user alone can enter",
            hint="remove it, or set BALANCER_CACHE to a folder of your own",
        )


def cache_file(folder: str, identity: Mapping[str, object], suffix: str) -> Path:
    """Where what `identity` describes, in plain values, is kept."""
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_folder() / folder / f"{digest[:24]}{suffix}"


def keep_json(path: Path, document: object) -> None:
    """Like `keep`."""
    content = json.dumps(document).encode()
    keep(path, lambda file: file.write(content))


def keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file in the cache, written aside and renamed; where that cannot be, there is none, and nothing is
    left behind: what it would have held is made again next time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            write(file)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
