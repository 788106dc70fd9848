"""The facts of images that were decoded before, kept in the user's cache.

A dataset has a table of fixed rows, found by the keys of its files (`file_keys`). Its name is a hash of all
that the facts depend on besides, and it begins with a digest: a damaged table is none. Reasons why files
cannot be used are not kept: they may lie in the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balancer.dataset.decoding import decoders
from balancer.dataset.decoding.file_keys import Keys, file_keys
from balancer.dataset.decoding.image_info import DecodeLimits, ImageInfo
from balancer.dataset.decoding.object_images import Objects
from balancer.dataset.decoding.watching import Count, ignore_count
from balancer.errors import BalancerError
from balancer.storage.cache import keep, private_folder
from balancer.storage.regular_files import read_regular

FORMAT = 1
FOLDER = "audits"

MAX_CACHE_BYTES = 1_000_000_000
"""Of all tables: about 9 million images. The least recently used tables go first."""

LEFTOVER_S = 86_400
"""Age of an unfinished table that its process must have left behind."""

SPARE_ROWS = 10_000
"""Rows of images that were not asked for and are kept all the same, at least; a changed setting may ask for
them again."""

PORTION = 50_000
"""Images after which the table is written: an audit that is interrupted goes on from there."""

ROW = np.dtype(
    [
        ("key", "<u8"),
        ("more_of_key", "<u8"),
        ("sha256", "V32"),
        ("pixel_sha256", "V32"),
        ("phash", "V8"),
        ("width", "<i8"),
        ("height", "<i8"),
        ("num_bytes", "<i8"),
        ("marked_synthetic", "?"),
    ]
)
DIGEST_BYTES = 32

_SOURCES = (
    ("balancer", "images.py"),
    ("balancer.dataset.decoding", "image_info.py"),
    ("balancer.dataset.decoding", "cutting.py"),
    ("balancer.dataset.readers", "packed_files.py"),
)
"""The modules that derive the facts."""

_LIBRARIES = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "zlib_ng", "webp", "avif", "libtiff")

Rows = NDArray[np.void]


def read_known_images(
    root: Path, names: Sequence[str], limits: DecodeLimits, count: Count = ignore_count
) -> list[ImageInfo | str]:
    """As `decoders.read_all_images`, which reads only what is not known."""
    path, objects = _table_path(root, limits), Objects.among(names)
    if path is None or not names:
        return _read(root, names, objects, limits, count)
    keys, rows = _keys(root, names, objects), _load(path)
    answers, used = _look_up(rows, keys)
    missing = [place for place, answer in enumerate(answers) if answer is None]
    known = len(names) - len(missing)
    for start in range(0, len(missing), PORTION):
        places = missing[start : start + PORTION]
        portion = [names[place] for place in places]
        fresh = _read(root, portion, objects, limits, partial(_count_on, count, known))
        known += len(fresh)
        for place, answer in zip(places, fresh, strict=True):
            answers[place] = answer
        unchanged = (_keys(root, portion, objects) == keys[places]).all(axis=1, keepdims=True)
        if len(settled := _make_rows(keys[places] * unchanged, fresh)):
            rows, used = _add(rows, used, settled)
            _save(path, rows[used], rows[~used][: max(SPARE_ROWS, len(names))])
    _note_use(path)
    return [answer for answer in answers if answer is not None]


def _keys(root: Path, names: Sequence[str], objects: Objects) -> Keys:
    """Of an object what the store said at first: it is read only while it is that one."""
    keys = file_keys(root, names)
    if objects.seen:
        keys = keys.copy()
        for place, name in enumerate(names):
            if name in objects.seen:
                keys[place] = np.frombuffer(objects.key(name), "<u8")
    return keys


def _read(
    root: Path, names: Sequence[str], objects: Objects, limits: DecodeLimits, count: Count
) -> list[ImageInfo | str]:
    files = [name for name in names if name not in objects.seen]
    answers = dict(zip(files, decoders.read_all_images(root, files, limits, count), strict=True))
    if len(files) < len(names):
        remote = [name for name in names if name in objects.seen]
        read = objects.read(remote, limits, partial(_count_on, count, len(files)))
        answers |= zip(remote, read, strict=True)
    return [answers[name] for name in names]


def _count_on(count: Count, before: int, done: int) -> None:
    count(before + done)


# ---- the table -------------------------------------------------------------------------------------


def _look_up(rows: Rows, keys: Keys) -> tuple[list[ImageInfo | str | None], NDArray[np.bool_]]:
    """What is known of each key, and which rows said it. Rows are sorted by key."""
    used = np.zeros(len(rows), bool)
    if not len(rows):
        return [None] * len(keys), used
    places = np.minimum(np.searchsorted(rows["key"], keys[:, 0]), len(rows) - 1)
    known = (rows["key"][places] == keys[:, 0]) & (rows["more_of_key"][places] == keys[:, 1])
    used[places[known]] = True
    infos = iter(_infos(rows[places[known]]))
    return [next(infos) if is_known else None for is_known in known.tolist()], used


def _infos(rows: Rows) -> Iterable[ImageInfo]:
    sha256, phash, pixels = (_hex(rows[name]) for name in ("sha256", "phash", "pixel_sha256"))
    numbers = (rows[name].tolist() for name in ("width", "height", "num_bytes"))
    return map(ImageInfo, *numbers, sha256, phash, pixels, rows["marked_synthetic"].tolist())


def _hex(column: Rows) -> Iterable[str]:
    digits, text = 2 * column.dtype.itemsize, column.tobytes().hex()
    return (text[start : start + digits] for start in range(0, len(text), digits))


def _make_rows(keys: Keys, answers: Sequence[ImageInfo | str]) -> Rows:
    """Rows of the images that could be read and whose files are settled."""
    return np.array(
        [
            (
                *key,
                bytes.fromhex(answer.sha256),
                bytes.fromhex(answer.pixel_sha256),
                bytes.fromhex(answer.phash),
                answer.width,
                answer.height,
                answer.num_bytes,
                answer.marked_synthetic,
            )
            for key, answer in zip(keys.tolist(), answers, strict=True)
            if isinstance(answer, ImageInfo) and any(key)
        ],
        ROW,
    )


def _add(rows: Rows, used: NDArray[np.bool_], fresh: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    return np.concatenate([rows, fresh]), np.concatenate([used, np.ones(len(fresh), bool)])


# ---- its file --------------------------------------------------------------------------------------


def _table_path(root: Path, limits: DecodeLimits) -> Path | None:
    """None if the user has no private cache."""
    try:
        folder = private_folder(FOLDER)
    except BalancerError:
        return None
    identity = repr((os.path.realpath(root), limits.max_bytes, limits.max_pixels, FORMAT, _decoder_version()))
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{digest[:32]}.rows"


@lru_cache(maxsize=1)
def _decoder_version() -> str:
    """Of all that decides about the facts of the same bytes: our modules, and the libraries that decode."""
    import PIL
    from PIL import features

    versions = [PIL.__version__, np.__version__, *map(version, ("imagehash", "scipy"))]
    with contextlib.suppress(PackageNotFoundError):  # it is optional
        versions.append(version("pillow-heif"))
    versions += [f"{name} {features.version(name)}" for name in _LIBRARIES]
    digest = hashlib.sha256(repr(versions).encode())
    for package, name in _SOURCES:
        digest.update(resources.files(package).joinpath(name).read_bytes())
    return digest.hexdigest()


def _load(path: Path) -> Rows:
    """The rows of a table; none if it is damaged or not there."""
    try:
        data = read_regular(path, max_bytes=MAX_CACHE_BYTES, follow_links=False)
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
            return np.empty(0, ROW)
        return np.frombuffer(data, ROW, offset=DIGEST_BYTES)
    except (OSError, ValueError):
        return np.empty(0, ROW)


def _save(path: Path, rows: Rows, spare: Rows) -> None:
    kept = np.concatenate([rows, spare])
    data = kept[np.argsort(kept["key"], kind="stable")].tobytes()
    digest = hashlib.sha256(data).digest()
    keep(path, lambda file: (file.write(digest), file.write(data)))
    _make_room(path)


def _note_use(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _make_room(newest: Path) -> None:
    """Delete the tables that were used longest ago, and what processes left that were killed."""
    with contextlib.suppress(OSError):
        files = [(entry, entry.stat(follow_symlinks=False)) for entry in os.scandir(newest.parent)]
        files.sort(key=lambda file: (file[0].name == newest.name, file[1].st_mtime), reverse=True)
        total, stale = 0, time.time() - LEFTOVER_S
        for entry, about in files:
            total += about.st_size
            is_leftover = entry.name.endswith(".tmp") and about.st_mtime < stale
            if entry.name != newest.name and (total > MAX_CACHE_BYTES or is_leftover):
                os.unlink(entry.path)
