"""Which paths of a submitted run the cluster can see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from balancer.errors import UsageError
from balancer.storage.address import bucket_address, local_path, refuse_credentials

OUT_HINT = (
    "give a bucket, s3://bucket/prefix, or an absolute path on a file system of the cluster,"
    " with --shared FOLDER for the folder where it is mounted"
)


@dataclass(frozen=True, slots=True)
class SharedFolders:
    """Folders that every node of the cluster sees under the same path: the user says so, nothing can check it
    from here."""

    folders: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        plain = PurePosixPath(os.path.normpath(path))
        return plain.is_absolute() and any(plain.is_relative_to(folder) for folder in self.folders)


def shared_folders(given: Sequence[str]) -> SharedFolders:
    """UsageError for a folder that is not absolute."""
    for folder in given:
        refuse_credentials(folder, "a path of --shared")
        if not os.path.isabs(folder) or "\0" in folder:
            raise UsageError(
                f"--shared {folder}: not an absolute path",
                hint="give the folder as the nodes of the cluster see it, such as /mnt/data",
            )
    return SharedFolders(tuple(os.path.normpath(folder) for folder in given))


def run_place(out: str, shared: SharedFolders) -> str:
    """The run folder as all nodes see it. UsageError for a path that only this machine can be sure to see."""
    address = bucket_address(out)
    if address is not None:
        return address.uri
    path = local_path(out)
    is_absolute = os.path.isabs(out) or out.lower().startswith("file://")
    if is_absolute and shared.has(path):
        return path
    reason = "is on this machine, and a driver on the cluster would write to another disk"
    raise UsageError(f"--out {out} {reason}", hint=OUT_HINT)
