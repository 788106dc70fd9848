"""The destination of an export: a local path that nothing else uses."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from balancer.errors import StorageError, UsageError
from balancer.storage.address import refuse_credentials
from balancer.storage.user_paths import expanded


class Destination:
    """A local path outside the run folder. Exports with the same `identity` may follow each other there;
    `written`, `kept` and `removed` count files."""

    def __init__(self, path: str, identity: Mapping[str, Any], run: str) -> None:
        refuse_credentials(path, "DEST")
        if not path:
            raise UsageError("DEST is empty", hint="name the folder or file to write")
        if "://" in path:
            raise UsageError(f"{path}: exports go to local paths", hint="export to a folder, then upload it")
        self.path = Path(os.path.abspath(expanded(path, "DEST")))
        self.identity = identity
        self.written = self.kept = self.removed = 0
        if "://" not in run:
            inside, folder = self.path.resolve(), Path(run).resolve()
            if inside.is_relative_to(folder) or folder.is_relative_to(inside):
                raise UsageError(
                    f"{path} and the run folder {run} contain each other", hint="choose another DEST"
                )

    @contextlib.contextmanager
    def single_file(self, is_own: Callable[[Path], bool]) -> Iterator[Path]:
        """A temporary file that replaces the destination when the block succeeds.

        UsageError if something else exists there; `is_own` checks whether a file is of this export.
        """
        if os.path.lexists(self.path) and not (_is_plain_file(self.path) and is_own(self.path)):
            raise UsageError(
                f"{self.path} exists and is not a file of this export",
                hint="choose another DEST, or remove it",
            )
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: no folder {self.path.parent}", hint="create the folder first")
        temporary = self.path.with_name(f".{self.path.name[:100]}.{uuid.uuid4().hex}.tmp")
        try:
            with as_storage_errors(self.path):
                yield temporary
                os.replace(temporary, self.path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.written += 1


@contextlib.contextmanager
def as_storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
