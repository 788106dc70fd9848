"""Commit the dataset's real images as rows, which lets one query give the whole balanced dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow.compute as pc

from balancer.dataset.audit import Audit, RealImage, known_values
from balancer.dataset.splits import assign_splits
from balancer.errors import DatasetError
from balancer.images import UnreadableImage, is_uncommon, png_of, read_bytes, suffix_of
from balancer.manifest.layout import IMAGES_DIR
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import REAL, VOID, ImageFile, RunFacts, real_id, real_row
from balancer.storage import Storage, slug
from balancer.storage.regular_files import open_regular
from balancer.verification.verdict import Nearest

COMMIT_ROWS = 1024

COMMON = frozenset(("png", "jpg", "jpeg", "jpe", "jfif", "webp"))
"""Suffixes of formats that every reader of a run knows; of others, the run gets the same pixels as PNG."""

HEAD_BYTES = 16
"""Enough to tell formats apart."""

WRITERS = 8
"""Images written at once: an object store is slow for each, and hardly slower for several."""


def commit_real_images(
    audit: Audit,
    classes: Iterable[str],
    log: ManifestLog,
    storage: Storage,
    facts: RunFacts,
    embeddings: Mapping[str, bytes] | None = None,
    copies: Mapping[str, Nearest] | None = None,
    splits: Mapping[str, str] | None = None,
) -> int:
    """Add the images of `classes` that the manifest lacks; returns their number. Rows get the facet values
    that the config has, and null for others. `splits` by file name are dealt
    out here if they are not given.

    `embeddings` by row id are little-endian float16; an image may have none. `copies` by row id are the
    hold-out images that real ones copy. With `output.real_images: copy` each file is copied into the run
    folder before its row is committed.
    """
    wanted, (known, dealt) = set(classes), _known(log)
    splits = assign_splits(audit, facts.config, dealt) if splits is None else splits
    axes = facts.config.facet_axes()
    new = [
        replace(image, facets=known_values(image, axes))
        for image in audit.images
        if image.class_name in wanted and image.file_name not in known
    ]
    with ThreadPoolExecutor(WRITERS) as pool:
        for start in range(0, len(new), COMMIT_ROWS):
            part = new[start : start + COMMIT_ROWS]
            files = pool.map(lambda image: _store(image, audit.path, storage, facts, log), part)
            log.commit(
                [
                    real_row(
                        image,
                        file,
                        facts,
                        embedding=(embeddings or {}).get(real_id(image)),
                        split=splits[image.file_name],
                        copied=(copies or {}).get(real_id(image)),
                    )
                    for image, file in zip(part, files, strict=True)
                ]
            )
    return len(new)


def _known(log: ManifestLog) -> tuple[set[str], dict[str, str]]:
    """The file names of the real images that have a row which counts, and the splits of all that ever had."""
    real = log.kept().filter(pc.field("source") == REAL)
    rows = [*zip(*(real[name].to_pylist() for name in ("id", "status", "split")), strict=True)]
    names = [(row_id.removeprefix(f"{REAL}/"), status, split) for row_id, status, split in rows]
    return {name for name, status, _ in names if status != VOID}, {name: split for name, _, split in names}


def _store(image: RealImage, dataset: Path, storage: Storage, facts: RunFacts, log: ManifestLog) -> ImageFile:
    source = dataset / image.file_name
    if facts.config.output.real_images == "reference":
        return _reference(source, image)
    data, suffix = _read(source, image), PurePosixPath(image.file_name).suffix[1:].lower()
    if is_uncommon(data):
        limit = round(facts.config.dataset.max_image_megapixels * 1e6)
        data, suffix = png_of(data, max_pixels=limit), "png"
    elif suffix not in COMMON:
        suffix = suffix_of(data)
    # The name has part of the content's hash, because the dataset's file may have changed since a crash.
    name = PurePosixPath(image.file_name)
    stem = log.free_name(f"{IMAGES_DIR}/{slug(image.class_name)}/real/{slug(str(name))}")
    path = f"{stem}-{image.sha256[:12]}.{slug(suffix)}"
    storage.publish(path, data)
    return ImageFile(path, hashlib.sha256(data).hexdigest(), len(data))


def _reference(source: Path, image: RealImage) -> ImageFile:
    head = _head(source)
    if PurePosixPath(image.file_name).suffix[1:].lower() not in COMMON or not head or is_uncommon(head):
        raise DatasetError(
            f"{source}: a run can refer to PNG, JPEG and WebP files only (output.real_images: reference)",
            hint="set output.real_images: copy, which copies it into the run, where needed as PNG",
        )
    return ImageFile(str(source.resolve()), image.sha256, image.num_bytes)


def _head(source: Path) -> bytes:
    """The first bytes of a file; none of one inside another file."""
    try:
        with open_regular(source, follow_links=False) as file:
            return file.read(HEAD_BYTES)
    except NotADirectoryError:
        return b""
    except OSError as error:
        problem = f"{source} changed while the run was starting: {error.strerror}"
        raise DatasetError(problem, hint="run the same command again") from error


def _read(source: Path, image: RealImage) -> bytes:
    try:
        data = read_bytes(source, max_bytes=image.num_bytes)
    except UnreadableImage as error:
        problem = f"{source} changed while the run was starting: {error.reason}"
        raise DatasetError(problem, hint="run the same command again") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise DatasetError(f"{source} changed while the run was starting", hint="run the same command again")
    return data
