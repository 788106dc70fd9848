"""Measure the real images with the verifier, for calibration, the pre-flight and near-duplicates.

Each image is measured once. Measurements are kept in the cache folder, in one file per verifier and wordings.
A damaged file counts as missing, since it can be made again.
"""

from __future__ import annotations

import functools
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from actors.specs import backbone_spec
from actors.weights import resolve as weights
from balancer.cells import CLASS_PROPERTY
from balancer.dataset.audit import Audit, RealImage, known_values
from balancer.dataset.near_duplicates import KnownImage, find_near_duplicates_across
from balancer.dataset.splits import TRAIN
from balancer.errors import DatasetError
from balancer.images import UnreadableImage, read_bytes
from balancer.storage.cache import cache_file, keep
from balancer.storage.regular_files import open_regular
from balancer.verification.calibration import (
    LEAST_PROBABILITY,
    Calibration,
    Examples,
    calibrated,
    calibration_file,
    check_calibration,
    load_temperatures,
    read_configured,
)
from balancer.verification.label_issues import LabelIssue, find_label_issues
from balancer.verification.negatives import negatives_of
from balancer.verification.preflight import Preflight, preflight

if TYPE_CHECKING:
    from actors.models.verifier import Verifier
    from balancer.config.schema import Config
    from balancer.verification.verdict import Measurement, Nearest

REAL, HOLDOUT = "real", "holdout"

CACHE_FORMAT = 2
"""1 was measured with another image transform: torchvision's on tensors, not open_clip's with PIL."""

BATCH_IMAGES = 16
BATCH_BYTES = 32_000_000
"""A batch is sent to a verifier at once."""

# Errors that numpy raises for damaged or foreign files.
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

MeasureCall = tuple[list[bytes], int]
"""Arguments of `measure_files`."""

Measurements = list["Measurement | str"]

Seen = TypeVar("Seen")
Results = Iterable[tuple[int, list[Seen | str]]]
"""The number of each call, and what was seen in each of its files, or the reason why it cannot be read."""

MeasureAll = Callable[[Iterable[MeasureCall]], Iterable[tuple[int, Measurements]]]
"""Calls `measure_files` for each of many arguments; yields the number and the result of each call, in any
order."""


@dataclass(frozen=True, slots=True)
class RealImages:
    """Row i of every array belongs to `images[i]`. `ids` begin with `real/` or `holdout/`. `embeddings` are
    (images, dim) little-endian float16; `log_probabilities[property]` are (images, values), natural
    logarithms before calibration. Those of `by_heads` are a head's, calibrated, NaN where it has not
    looked."""

    ids: tuple[str, ...]
    images: tuple[RealImage, ...]
    embeddings: NDArray[np.float16]
    log_probabilities: Mapping[str, NDArray[np.float64]]
    by_heads: frozenset[str] = frozenset()

    def temperatures(self, config: Config) -> dict[str, float]:
        """Of the properties that words judge, by the config's calibration."""
        loaded = load_temperatures(config)
        return {name: value for name, value in loaded.items() if name not in self.by_heads}

    def embeddings_by_id(self) -> dict[str, bytes]:
        """Embeddings as bytes, by id."""
        return {name: row.tobytes() for name, row in zip(self.ids, self.embeddings, strict=True)}


@dataclass(frozen=True, slots=True)
class _Cached:
    """The cached measurement of one image. `logs` has the values of all properties, one after the other."""

    embedding: NDArray[np.float16]
    logs: NDArray[np.float64]


def measure_real_images(
    config: Config, audit: Audit, holdout: Audit | None, measure: MeasureAll
) -> RealImages:
    """Measure every image that is not in the cache. `measure` is not called if all are.

    Raises DatasetError if an image has changed since the audit.
    """
    files = [(f"{REAL}/{image.file_name}", image, audit.path) for image in audit.images]
    if holdout is not None:
        files += [(f"{HOLDOUT}/{image.file_name}", image, holdout.path) for image in holdout.images]
    cache = None if config.actors.kind == "simulated" else _cache_file(config)
    sizes = {name: len(values) for name, values in config.properties().items()}
    seen = {} if cache is None else _load(cache, sum(sizes.values()))
    missing = {image.sha256: path / image.file_name for _, image, path in files if image.sha256 not in seen}
    if missing:
        try:
            for sha256, measurement in over_files(missing, config, measure):
                seen[sha256] = _to_cached(measurement, sizes)
        finally:
            if cache is not None:  # also after an interruption
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


def verifier_here(config: Config) -> Callable[[], Verifier]:
    """Loads the verifier in this process, on its GPU if it has one, at the first call."""

    @functools.cache
    def load() -> Verifier:
        from actors.models.verifier import Verifier

        judged, backbone = config.verification, backbone_spec(config.verification.backbone)
        return Verifier(
            judged.model,
            judged.revision,
            config.properties(),
            negatives=negatives_of(config),
            backbone=None if backbone is None else backbone.load("auto"),
        )

    return load


def measure_here(
    config: Config, audit: Audit, holdout: Audit | None, verifier: Callable[[], Verifier] | None = None
) -> RealImages:
    """Measure in this process. Loads the verifier only if it is needed."""
    load = verifier or verifier_here(config)

    def measure(calls: Iterable[MeasureCall]) -> Iterator[tuple[int, Measurements]]:
        for number, arguments in enumerate(calls):
            yield number, load().measure_files_here(*arguments)

    return measure_real_images(config, audit, holdout, measure)


def over_files(
    paths: Mapping[str, Path], config: Config, measure: Callable[[Iterable[MeasureCall]], Results[Seen]]
) -> Iterator[tuple[str, Seen]]:
    """The hash of each image file, and what `measure` sees in it. DatasetError for one that cannot be read,
    or has changed."""
    sent: list[list[str]] = []  # filled as `measure` consumes the calls

    def calls() -> Iterator[MeasureCall]:
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
        data = read_unchanged(path, sha256, max_bytes)
        if batch and (len(batch) == BATCH_IMAGES or size + len(data) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((sha256, data))
        size += len(data)
    if batch:
        yield batch


def read_unchanged(path: Path, sha256: str, max_bytes: int) -> bytes:
    try:
        data = read_bytes(path, max_bytes=max_bytes)
    except UnreadableImage as error:
        raise DatasetError(f"{path}: {error.reason}", hint="run the same command again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{path} changed since it was audited", hint="run the same command again")
    return data


def _to_cached(measurement: Measurement, sizes: Mapping[str, int]) -> _Cached:
    logs = [_logs([*measurement.probabilities[name].values()]) for name in sizes]
    return _Cached(np.frombuffer(measurement.embedding, "<f2"), np.concatenate(logs))


def _logs(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Logarithms. If the verifier gives NaN or infinity, all values count as equally likely."""
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
    return cache_file("measured", identity, ".npz")


def _load(path: Path, values: int) -> dict[str, _Cached]:
    """Read the cached measurements by hash of the image file; empty if the file is missing or damaged."""
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
    return {name: _Cached(*rows) for name, *rows in zip(names, embeddings, logs, strict=True)}


def _save(path: Path, seen: Mapping[str, _Cached]) -> None:
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


# ---- uses --------------------------------------------------------------------------------------


def label_rows(measured: RealImages, config: Config) -> dict[str, NDArray[np.intp]]:
    """For each property, the position of each image's value, -1 if it has none. The folder labels the class,
    the metadata labels facet values that apply to it."""
    applies = {facet.name: facet.classes for facet in config.facet_axes()}
    labels = {}
    for name, values in config.properties().items():
        position = {value: index for index, value in enumerate(values)}
        own = [position.get(_label(image, name, applies), -1) for image in measured.images]
        labels[name] = np.array(own, np.intp)
    return labels


def collect_examples(measured: RealImages, config: Config) -> dict[str, Examples]:
    """The labelled images of each property; of one that a head judges, those that it has judged."""
    examples = {}
    for name, labels in label_rows(measured, config).items():
        logs = measured.log_probabilities[name]
        known = (labels >= 0) & ~np.isnan(logs).any(axis=1)
        examples[name] = Examples(tuple(config.properties()[name]), logs[known], labels[known])
    return examples


def _label(image: RealImage, name: str, applies: Mapping[str, frozenset[str]]) -> str:
    """The label of an image; empty if it has none, because no value has an empty name."""
    if name == CLASS_PROPERTY:
        return image.class_name
    return image.facets.get(name, "") if image.class_name in applies[name] else ""


def run_preflight(measured: RealImages, config: Config, settled: Collection[str] = ()) -> Preflight:
    """Run the pre-flight with the temperatures of the config's calibration. `settled` properties were proven
    when the run began."""
    examples = {
        name: each for name, each in collect_examples(measured, config).items() if name not in settled
    }
    result = preflight(examples, measured.temperatures(config), len(measured.images), config)
    return replace(result, label_issues=tuple(_label_issues(measured, config, result)))


def _label_issues(measured: RealImages, config: Config, checked: Preflight) -> list[LabelIssue]:
    if CLASS_PROPERTY in checked.allowed:
        return []
    logs = measured.log_probabilities[CLASS_PROPERTY]
    judged = ~np.isnan(logs).any(axis=1)
    labels = np.where(judged, label_rows(measured, config)[CLASS_PROPERTY], -1)
    temperature = measured.temperatures(config).get(CLASS_PROPERTY, 1.0)
    proven = {proof.value for proof in checked.values if proof.property_ == CLASS_PROPERTY and proof.proven}
    classes = [*config.properties()[CLASS_PROPERTY]]
    return find_label_issues(measured.ids, classes, labels, calibrated(logs, temperature), proven)


def real_facets(
    measured: RealImages, config: Config, splits: Mapping[str, str] | None = None
) -> dict[str, list[dict[str, str]]]:
    """The facet values of the training images of each class: known values, and for other facets the likeliest
    value if it reaches `verification.threshold` and the facet is not in `verification.unjudged`.

    `splits` are by file name; an image without one is a training image."""
    facets, temperatures = config.facet_axes(), measured.temperatures(config)
    judged = [facet for facet in facets if facet.name not in config.verification.unjudged]
    likely = {
        facet.name: calibrated(measured.log_probabilities[facet.name], temperatures.get(facet.name, 1.0))
        for facet in judged
    }
    by_class: dict[str, list[dict[str, str]]] = {name: [] for name in config.classes}
    for row, (name, image) in enumerate(zip(measured.ids, measured.images, strict=True)):
        if not name.startswith(f"{REAL}/") or image.class_name not in by_class:
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
        by_class[image.class_name].append(values)
    return by_class


def list_references(measured: RealImages) -> list[KnownImage]:
    """The images that no candidate may duplicate."""
    return [
        KnownImage(name, image.phash, image.pixel_sha256, row.tobytes())
        for name, image, row in zip(measured.ids, measured.images, measured.embeddings, strict=True)
    ]


def find_holdout_duplicates(measured: RealImages, config: Config) -> dict[str, Nearest]:
    """Real images that duplicate a hold-out image: id -> that image. Training on them leaks the hold-out."""
    known = list_references(measured)
    held_out = [image for image in known if image.id.startswith(f"{HOLDOUT}/")]
    real = [image for image in known if image.id.startswith(f"{REAL}/")]
    return find_near_duplicates_across(real, held_out, config.verification.copies)


def load_calibration(config: Config) -> Calibration | None:
    """Read the config's calibration. Raises UsageError if it is for another verifier, other values or other
    wordings."""
    judged, path = config.verification, calibration_file(config)
    calibration = read_configured(config)
    if path is None or calibration is None:
        return None
    fingerprint = weights.fingerprint(judged.model, judged.revision, "verifier")
    check_calibration(calibration, path, judged.model, fingerprint, config.properties())
    return calibration
