"""Whether the image files that rows name are there and have their size; none is read.

`balancer fsck` reads and hashes every image. This is the look that a command can afford which only speaks of
them: up to LOOKED_AT files, spread evenly over the rows. Of a loss of one image in a hundred it sees some
with near certainty, of a single one in a million it does not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.errors import StorageError
from balancer.manifest.log.view import read_log
from balancer.manifest.rows import ACCEPTED, REAL
from balancer.manifest.runfile import read_run
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.storage import Storage

LOOKED_AT = 1000
AT_ONCE = 16
"""A bucket takes its time for each answer."""

COLUMNS = ("file_name", "source", "num_bytes", "status")


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Of `named` images `looked_at` were looked at. `missing` are not there or no regular files,
    `other_size` have other sizes than their rows say; `example` is one of either."""

    named: int
    looked_at: int
    missing: int
    other_size: int
    example: str | None

    @property
    def warning(self) -> str:
        """Empty if nothing is wrong with those that were looked at."""
        if self.example is None:
            return ""
        looked_at, missing, other = counted(self.looked_at, "image file"), self.missing, self.other_size
        return (
            f"of {looked_at} looked at, {missing} {are(missing)} missing and {other} {are(other)} not of the"
            f" size that their rows say, such as {self.example}; `balancer fsck RUN` lists them"
        )


def check_images(storage: Storage) -> ImageCheck:
    """A look at the accepted images of a run, real ones included."""
    return look_at_images(
        storage, read_log(storage, COLUMNS).table, read_run(storage).real_images_by_reference
    )


def look_at_images(storage: Storage, rows: pa.Table, by_reference: bool) -> ImageCheck:
    """A look at those of the accepted `rows`, which have the COLUMNS."""
    import pyarrow as pa
    import pyarrow.compute as pc

    accepted = rows.select(COLUMNS).filter(pc.field("status") == ACCEPTED)
    count = min(accepted.num_rows, LOOKED_AT)
    spread = pa.array([index * accepted.num_rows // count for index in range(count)], pa.int64())
    chosen = accepted.take(spread).to_pylist()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sizes = list(pool.map(lambda row: _size(storage, row, by_reference), chosen))
    found = list(zip(chosen, sizes, strict=True))
    missing = [row for row, size in found if size is None]
    other_size = [row for row, size in found if size not in (None, row["num_bytes"])]
    example = next((str(row["file_name"]) for row in (*missing, *other_size)), None)
    return ImageCheck(accepted.num_rows, len(chosen), len(missing), len(other_size), example)


def _size(storage: Storage, row: Mapping[str, Any], by_reference: bool) -> int | None:
    """The size of the file that a row names; None for what is no regular file."""
    name = row["file_name"]
    try:
        if by_reference and row["source"] == REAL and os.path.isabs(name):
            found = os.stat(name)
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        return storage.info(name).num_bytes
    except (OSError, ValueError, TypeError, StorageError):
        return None
