"""The real images as the verifier sees them: for calibration, the pre-flight, and the search for copies.

An image is measured once: what was seen is kept in the cache folder, in one file for each verifier and its
wordings. Such a file can always be made again, so one that is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.weights import resolve as weights
from balancer.cells import CLASS_PROPERTY
from balancer.dataset.audit import Audit, RealImage, known_values
from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates_across
from balancer.dataset.splits import TRAIN
from balancer.errors import DatasetError
from balancer.images import UnreadableImage, read_bytes
from balancer.storage.cache import cache_folder, keep
from balancer.storage.regular_files import open_regular
from balancer.verification.calibration import (
    Calibration,
    Examples,
    calibrated,
    calibration_file,
    check_calibration,
    load_temperatures,
    read_calibration,
)
from balancer.verification.preflight import Preflight, preflight

if TYPE_CHECKING:
    from balancer.config.schema import Config
    from balancer.verification.verdict import Measurement, Nearest

REAL, HOLDOUT = "real", "holdout"

CACHE_FORMAT = 1
BATCH_IMAGES = 16
BATCH_BYTES = 32_000_000
"""A batch travels to a verifier whole."""

# What numpy raises for files that are not, or no longer, what it wrote.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)

LEAST_PROBABILITY = 1e-300
"""Below this a double has no logarithm."""

Call = tuple[list[bytes], int]
"""Arguments of `measure_files`."""

Measured = list["Measurement | str"]

MeasureAll = Callable[[Iterable[Call]], Iterable[tuple[int, Measured]]]
"""Calls `measure_files` with each of many arguments; gives number and result of each call, in any order."""


@dataclass(frozen=True, slots=True)
class RealImages:
    """Row i of every array is of `images[i]`. `ids` begin with `real/` or `holdout/`. `embeddings` are
    (images, dim) little-endian float16; `log_probabilities[property]` are (images, values), natural,
    before calibration."""

    ids: tuple[str, ...]
    images: tuple[RealImage, ...]
    embeddings: NDArray[np.float16]
    log_probabilities: Mapping[str, NDArray[np.float64]]

    def embedding_of(self) -> dict[str, bytes]:
        """The embedding of each id."""
        return {name: row.tobytes() for name, row in zip(self.ids, self.embeddings, strict=True)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of one image: `logs` has the values of all properties, one after the other."""

    embedding: NDArray[np.float16]
    logs: NDArray[np.float64]


def measure_real_images(
    config: Config, found: Audit, holdout: Audit | None, measure: MeasureAll
) -> RealImages:
    """Have `measure` see every image that is not in the cache; it is not called if all are.

    Raises DatasetError if an image is not what the audit read.
    """
    files = [(f"{REAL}/{image.file_name}", image, found.path) for image in found.images]
    if holdout is not None:
        files += [(f"{HOLDOUT}/{image.file_name}", image, holdout.path) for image in holdout.images]
    cache = None if config.actors.kind == "simulated" else _cache_file(config)
    sizes = {name: len(values) for name, values in config.properties().items()}
    seen = {} if cache is None else _load(cache, sum(sizes.values()))
    missing = {image.sha256: path / image.file_name for _, image, path in files if image.sha256 not in seen}
    if missing:
        try:
            for sha256, measurement in _measured(missing, config, measure):
                seen[sha256] = _kept(measurement, sizes)
        finally:
            if cache is not None:  # also of a measurement that was interrupted
                _save(cache, seen)
    wanted = [seen[image.sha256] for _, image, _ in files]
    logs = np.stack([each.logs for each in wanted]) if wanted else np.empty((0, sum(sizes.values())))
    parts = np.split(logs, np.cumsum(list(sizes.values()))[:-1], axis=1)
    return RealImages(
        ids=tuple(name for name, _, _ in files),
        images=tuple(image for _, image, _ in files),
        embeddings=np.stack([each.embedding for each in wanted]) if wanted else np.empty((0, 0), "<f2"),
        log_probabilities=dict(zip(sizes, parts, strict=True)),
    )


def measure_here(config: Config, found: Audit, holdout: Audit | None) -> RealImages:
    """Measured in this process, on its GPU if it has one; the verifier is loaded only if it is needed."""

    def measure(calls: Iterable[Call]) -> Iterator[tuple[int, Measured]]:
        from actors.models.verifier import Verifier

        judged = config.verification
        verifier = Verifier(judged.model, judged.revision, config.properties())
        for number, arguments in enumerate(calls):
            yield number, verifier.measure_files_here(*arguments)

    return measure_real_images(config, found, holdout, measure)


def _measured(
    paths: Mapping[str, Path], config: Config, measure: MeasureAll
) -> Iterator[tuple[str, Measurement]]:
    """The hash of each image file, and what was seen in it."""
    sent: list[list[str]] = []  # filled as the calls are taken

    def calls() -> Iterator[Call]:
        for batch in _batches(paths, round(config.dataset.max_image_megabytes * 1e6)):
            sent.append([sha256 for sha256, _ in batch])
            yield [data for _, data in batch], round(config.dataset.max_image_megapixels * 1e6)

    for number, measurements in measure(calls()):
        for sha256, measurement in zip(sent[number], measurements, strict=True):
            if isinstance(measurement, str):
                raise DatasetError(f"{paths[sha256]}: {measurement}")
            yield sha256, measurement


def _batches(paths: Mapping[str, Path], max_bytes: int) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for sha256, path in paths.items():
        data = _read_unchanged(path, sha256, max_bytes)
        if batch and (len(batch) == BATCH_IMAGES or size + len(data) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((sha256, data))
        size += len(data)
    if batch:
        yield batch


def _read_unchanged(path: Path, sha256: str, max_bytes: int) -> bytes:
    try:
        data = read_bytes(path, max_bytes=max_bytes)
    except UnreadableImage as error:
        raise DatasetError(f"{path}: {error.reason}", hint="run the same command again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{path} changed since it was audited", hint="run the same command again")
    return data


def _kept(measurement: Measurement, sizes: Mapping[str, int]) -> _Seen:
    logs = [_logs([*measurement.probabilities[name].values()]) for name in sizes]
    return _Seen(np.frombuffer(measurement.embedding, "<f2"), np.concatenate(logs))


def _logs(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """A verifier that gives no numbers knows nothing: every value is as likely as the others."""
    given = np.array(probabilities, np.float64)
    if not np.isfinite(given).all():
        given = np.full(len(given), 1 / len(given))
    return np.log(np.maximum(given, LEAST_PROBABILITY))


# ---- the cache ---------------------------------------------------------------------------------


def _cache_file(config: Config) -> Path:
    judged = config.verification
    identity = {
        "format": CACHE_FORMAT,
        "weights": weights.fingerprint(judged.model, judged.revision, "verifier"),
        "properties": [[name, [*values.items()]] for name, values in config.properties().items()],
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_folder() / "measured" / f"{digest[:24]}.npz"


def _load(path: Path, values: int) -> dict[str, _Seen]:
    """What the file holds, by hash of the image file; nothing if it is not there or not as it was written."""
    try:
        with open_regular(path, follow_links=True) as file, np.load(file, allow_pickle=False) as stored:
            hashes, embeddings, logs = stored["sha256"], stored["embeddings"], stored["log_probabilities"]
    except _DAMAGE:
        return {}
    whole = (
        (hashes.dtype, embeddings.dtype, logs.dtype) == (np.dtype("S64"), np.dtype("<f2"), np.dtype("<f8"))
        and (hashes.ndim, embeddings.ndim) == (1, 2)
        and len(hashes) == len(embeddings)
        and logs.shape == (len(hashes), values)
        and np.isfinite(logs).all()
    )
    if not whole:
        return {}
    names = [name.decode("ascii", "replace") for name in hashes.tolist()]
    return {name: _Seen(*rows) for name, *rows in zip(names, embeddings, logs, strict=True)}


def _save(path: Path, seen: Mapping[str, _Seen]) -> None:
    if not seen:
        return

    def write(file: IO[bytes]) -> None:
        np.savez(
            file,
            sha256=np.array([name.encode() for name in seen], "S64"),
            embeddings=np.stack([each.embedding for each in seen.values()]),
            log_probabilities=np.stack([each.logs for each in seen.values()]),
        )

    keep(path, write)


# ---- what is made of them ----------------------------------------------------------------------


def examples_of(measured: RealImages, config: Config) -> dict[str, Examples]:
    """The labelled images of each property: a class by the folder, a facet value by the metadata, where the
    facet applies to the class."""
    applies = {facet.name: facet.classes for facet in config.facet_axes()}
    found = {}
    for name, values in config.properties().items():
        position = {value: index for index, value in enumerate(values)}
        labels = np.array(
            [position.get(_label(image, name, applies), -1) for image in measured.images], np.intp
        )
        known = labels >= 0
        found[name] = Examples(tuple(values), measured.log_probabilities[name][known], labels[known])
    return found


def _label(image: RealImage, name: str, applies: Mapping[str, frozenset[str]]) -> str:
    """Empty where there is none; no value has an empty name."""
    if name == CLASS_PROPERTY:
        return image.class_name
    return image.facets.get(name, "") if image.class_name in applies[name] else ""


def preflight_of(measured: RealImages, config: Config) -> Preflight:
    """The pre-flight at the temperatures of the config's calibration."""
    return preflight(examples_of(measured, config), load_temperatures(config), len(measured.images), config)


def real_facets(
    measured: RealImages, config: Config, splits: Mapping[str, str] | None = None
) -> dict[str, list[dict[str, str]]]:
    """For each class the facet values of its training images: those that are known, and of the others the
    likeliest if it reaches `verification.threshold`, unless the facet is in `verification.unjudged`.

    `splits` are by file name; an image that has none is a training image."""
    facets, temperatures = config.facet_axes(), load_temperatures(config)
    judged = [facet for facet in facets if facet.name not in config.verification.unjudged]
    likely = {
        facet.name: calibrated(measured.log_probabilities[facet.name], temperatures.get(facet.name, 1.0))
        for facet in judged
    }
    found: dict[str, list[dict[str, str]]] = {name: [] for name in config.classes}
    for row, (name, image) in enumerate(zip(measured.ids, measured.images, strict=True)):
        if not name.startswith(f"{REAL}/") or image.class_name not in found:
            continue
        if splits is not None and splits.get(image.file_name, TRAIN) != TRAIN:
            continue
        values = known_values(image, facets)
        for facet in judged:
            if not facet.applies_to(image.class_name) or facet.name in image.facets:
                continue
            probabilities = likely[facet.name][row]
            best = int(probabilities.argmax())
            if probabilities[best] >= config.verification.threshold:
                values[facet.name] = facet.values[best]
        found[image.class_name].append(values)
    return found


def references_of(measured: RealImages) -> list[KnownImage]:
    """The images that no candidate may copy."""
    return [
        KnownImage(name, image.phash, image.pixel_sha256, row.tobytes())
        for name, image, row in zip(measured.ids, measured.images, measured.embeddings, strict=True)
    ]


def copies_of_holdout(measured: RealImages, config: Config) -> dict[str, Nearest]:
    """The real images that show what a hold-out image shows: id -> that image. What is trained on them has
    seen the hold-out."""
    known = references_of(measured)
    held_out = [image for image in known if image.id.startswith(f"{HOLDOUT}/")]
    real = [image for image in known if image.id.startswith(f"{REAL}/")]
    return find_near_duplicates_across(real, held_out, config.verification.copies)


def calibration_of(config: Config) -> Calibration | None:
    """The config's calibration; UsageError if it is not for its verifier, its values and its wordings."""
    judged, path = config.verification, calibration_file(config)
    if path is None:
        return None
    found = read_calibration(path)
    fingerprint = weights.fingerprint(judged.model, judged.revision, "verifier")
    check_calibration(found, path, judged.model, fingerprint, config.properties())
    return found
