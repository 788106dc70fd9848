"""Things that can be made again, kept so that they need not be."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from balancer.storage.address import refuse_credentials

DEFAULT_CACHE = "~/.cache/balancer"


def cache_folder() -> Path:
    """It need not be there yet."""
    folder = os.environ.get("BALANCER_CACHE") or DEFAULT_CACHE
    refuse_credentials(folder, "BALANCER_CACHE")
    return Path(folder).expanduser()


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
