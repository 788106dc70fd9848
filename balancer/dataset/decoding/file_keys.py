"""Keys of files: one that changed has another key, without being read.

As in git's index, they are made of name, device, inode, size and the times of the last change in
nanoseconds. Nobody can set the time of the inode's change (ctime) back. A file that changed shortly before it
was looked at could change again within one tick of its file system's clock, so it has no key yet (git's
"racily clean"). For an image inside a file, that file counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balancer.dataset.readers.packed_files import SUFFIXES

SETTLED_NS = 10_000_000_000
"""Age of the last change from which a file counts as settled. The coarsest clock of a file system ticks every
2 s (FAT), and the clocks of a file server and this machine usually differ by less than that."""

UNDATED = frozenset("9p exfat hfsplus msdos ntfs ntfs3 vfat".split())
"""File systems, besides those of FUSE, that do not keep the time of the inode's change as Unix does."""

Keys = NDArray[np.uint64]
"""Two numbers for each file; zeros for one without a key."""

_STAT = struct.Struct("<QQqqq")


def file_keys(root: Path, names: Sequence[str]) -> Keys:
    """A key of 128 bits for each file as it is now; zero for one that is not settled or not there."""
    top, settled_ns, undated = os.path.abspath(root), time.time_ns() - SETTLED_NS, _undated_devices()
    files: dict[str, os.stat_result] = {}
    keys = bytearray()
    for name in names:
        about = _look_at(top, name, files)
        if about is None or about.st_ctime_ns > settled_ns or about.st_dev in undated:
            keys += bytes(16)
            continue
        seen = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        text = name.encode("utf-8", "surrogatepass")
        keys += hashlib.blake2b(_STAT.pack(*seen) + text, digest_size=16).digest()
    return np.frombuffer(bytes(keys), "<u8").reshape(-1, 2)


def _look_at(top: str, name: str, files: dict[str, os.stat_result]) -> os.stat_result | None:
    """A regular file, or the one that holds an image; `files` are those."""
    path = os.path.join(top, name)
    try:
        about = os.lstat(path)
    except NotADirectoryError:
        if (folder := os.path.dirname(path)) not in files:
            if (found := _look_at_holder(Path(folder))) is None:
                return None
            files[folder] = found
        about = files[folder]
    except (OSError, ValueError):
        return None
    return about if stat.S_ISREG(about.st_mode) else None


def _look_at_holder(folder: Path) -> os.stat_result | None:
    for path in (folder, *folder.parents):
        if path == folder or path.suffix.lower() in SUFFIXES:  # a photograph has crops directly in it
            with contextlib.suppress(OSError):
                if stat.S_ISREG((about := os.lstat(path)).st_mode):
                    return about
    return None


def _undated_devices() -> set[int]:
    """Devices of mounted file systems that do not say when a file changed."""
    devices = set()
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, system = line.partition(" - ")
            kind = system.split()[0]
            if kind in UNDATED or kind.startswith("fuse"):
                major, minor = mount.split()[2].split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return devices
