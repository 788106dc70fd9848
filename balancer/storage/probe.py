"""Whether a place keeps the one promise everything rests on: a file that is there is never created again."""

from __future__ import annotations

import uuid
from contextlib import suppress

from balancer.errors import StorageError
from balancer.storage.contract import NoCreateOnlyError, Storage


def refuse_without_create_only(storage: Storage) -> None:
    """Raises StorageError unless the second of two creates is refused; what was tried is removed."""
    path = f".probe.{uuid.uuid4().hex}.tmp"
    try:
        storage.create(path, b"the first")
        refused, cause = not storage.create(path, b"the second"), "it let a second file take a name"
    except NoCreateOnlyError as error:
        refused, cause = False, error.message
    except StorageError:
        with suppress(StorageError):  # the first error is the one to tell
            storage.delete(path)
        raise
    storage.delete(path)
    if not refused:
        raise StorageError(
            f"{storage.uri} cannot hold a run, two drivers could overwrite each other's rows: {cause}",
            hint="use a store with create-only PUT (If-None-Match), or a file system with hard links",
        )
