"""Real images join the manifest as rows, so that one query gives the whole balanced dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pyarrow.compute as pc

from balancer.dataset.audit import Audit, RealImage
from balancer.dataset.splits import assign_splits
from balancer.errors import DatasetError
from balancer.manifest.layout import IMAGES_DIR
from balancer.manifest.log.writer import KEPT, ManifestLog
from balancer.manifest.rows import REAL, ImageFile, RunFacts, real_id, real_row
from balancer.storage import Storage, slug
from balancer.storage.regular_files import read_regular
from balancer.verification.verdict import Nearest

COMMIT_ROWS = 1024

WRITERS = 8
"""Images written at once: an object store takes its time for each, and not much more for several."""


def commit_real_images(
    found: Audit,
    classes: Iterable[str],
    log: ManifestLog,
    storage: Storage,
    facts: RunFacts,
    embeddings: Mapping[str, bytes] | None = None,
    copies: Mapping[str, Nearest] | None = None,
) -> int:
    """Add the images of `classes` that the manifest does not have yet; returns how many.

    `embeddings` by row id are little-endian float16; rows of images that have none go without. `copies` by
    row id are the hold-out images that real ones copy.
    With `output.real_images: copy` each file goes into the run folder, byte for byte, before its row.
    """
    wanted, known = set(classes), _known_splits(log)
    splits = assign_splits(found, facts.config, known)
    new = [image for image in found.images if image.class_name in wanted and image.file_name not in known]
    with ThreadPoolExecutor(WRITERS) as pool:
        for start in range(0, len(new), COMMIT_ROWS):
            part = new[start : start + COMMIT_ROWS]
            files = pool.map(lambda image: _bring_in(image, found.path, storage, facts, log), part)
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


def _known_splits(log: ManifestLog) -> dict[str, str]:
    """The splits of the real images that have a row, by file name."""
    real = log.table(KEPT).filter(pc.field("source") == REAL)
    rows = zip(real["id"].to_pylist(), real["split"].to_pylist(), strict=True)
    return {name.removeprefix("real/"): split for name, split in rows}


def _bring_in(
    image: RealImage, dataset: Path, storage: Storage, facts: RunFacts, log: ManifestLog
) -> ImageFile:
    source = dataset / image.file_name
    if facts.config.output.real_images == "reference":
        return ImageFile(str(source.resolve()), image.sha256, image.num_bytes)
    try:
        data = read_regular(source, max_bytes=image.num_bytes, follow_links=False)
    except OSError as error:
        problem = f"{source} changed while the run was starting: {error.strerror}"
        raise DatasetError(problem, hint="run the same command again") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise DatasetError(f"{source} changed while the run was starting", hint="run the same command again")
    # With a part of the content's hash: after a crash the file in the dataset may be another one by now.
    name = PurePosixPath(image.file_name)
    stem = log.free_name(f"{IMAGES_DIR}/{slug(image.class_name)}/real/{slug(str(name))}")
    path = f"{stem}-{image.sha256[:12]}.{slug(name.suffix[1:].lower())}"
    storage.publish(path, data)
    return ImageFile(path, image.sha256, image.num_bytes)
