"""Calibrated scores: one temperature per property, fitted on labelled real images.

A verifier's probabilities p become p^(1/T), normalised (temperature scaling, Guo et al. 2017): T above 1
makes them less confident, below 1 more confident, and the order stays. A few dozen labelled images support
one number per property; Platt scaling or isotonic regression would overfit.

All figures are out of fold: each image is scaled with a temperature that was not fitted on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.errors import UsageError
from balancer.storage.regular_files import read_regular
from balancer.text.json_reading import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from balancer.config.schema import Config

    Floats = NDArray[np.float64]

FORMAT = 1
MAX_FILE_BYTES = 16_000_000

FOLDS = 5
RELIABILITY_BINS = 15

LEAST_PROBABILITY = 1e-300
"""Smaller doubles have no logarithm."""
TEMPERATURES = (0.02, 50.0)
"""Minimum and maximum; a temperature beyond means that something else is wrong."""

PRIOR_SPREAD = 1.0
"""Prior standard deviation of log T. Without a prior, images that are all classified correctly would drive
the temperature to zero, and every later mistake would be fully confident."""

Properties = Mapping[str, Mapping[str, Sequence[str]]]
"""Property -> value -> its wordings."""

RECALIBRATE = "run `balancer calibrate CONFIG` again, or remove verification.calibration"


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled images of one property. `log_probabilities` are (images, values), natural, before
    calibration; `labels` (images) index into `values`."""

    values: tuple[str, ...]
    log_probabilities: Floats
    labels: NDArray[np.intp]

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each value."""
        return tuple(int((self.labels == index).sum()) for index in range(len(self.values)))


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose likeliest value has a probability between `low` and `high`. `confidence` is the mean of
    that probability, `accuracy` the share of images with that label."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class PropertyCalibration:
    """`kept` is the reason if the temperature was left at 1, else empty. `auc` is that of each value against
    the others, None if either has no image; `confusion` has a row for each label and a column for each
    likeliest value. `calibration_error` is before and after, None without images."""

    values: tuple[str, ...]
    temperature: float
    kept: str
    examples: tuple[int, ...]
    folds: int
    auc: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]
    calibration_error: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The content of a calibration file that a run needs: temperatures, and the verifier, values and
    wordings they apply to. `weights` identifies the verifier's weights."""

    model: str
    weights: str
    wordings_sha256: str
    values: Mapping[str, tuple[str, ...]]
    temperatures: Mapping[str, float]

    def sha256(self) -> str:
        """Hex, over the temperatures, which decide the scores."""
        text = json.dumps(dict(self.temperatures), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


# ---- fitting -----------------------------------------------------------------------------------


def calibrated(log_probabilities: Floats, temperature: float) -> Floats:
    """Probabilities (images, values) at a temperature."""
    from scipy.special import softmax

    scaled: Floats = softmax(log_probabilities / temperature, axis=1)
    return scaled


def fit_temperature(log_probabilities: Floats, labels: NDArray[np.intp]) -> float:
    """The likeliest temperature, given the labels and a log-normal prior around 1."""
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / math.exp(log_temperature), axis=1)
        prior = 0.5 * (log_temperature / PRIOR_SPREAD) ** 2
        return float(prior - scaled[np.arange(len(labels)), labels].sum())

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


def fit_property(examples: Examples, min_examples: int) -> PropertyCalibration:
    """A temperature and its figures; 1 unless two values have `min_examples` labelled images each."""
    kept = _too_few(examples, min_examples)
    before = calibrated(examples.log_probabilities, 1.0)
    folds = 0 if kept else min(FOLDS, min(count for count in examples.counts if count > 1))
    after = before if kept else _out_of_fold(examples, folds)
    return PropertyCalibration(
        values=examples.values,
        temperature=1.0 if kept else fit_temperature(examples.log_probabilities, examples.labels),
        kept=kept,
        examples=examples.counts,
        folds=folds,
        auc=tuple(one_vs_rest_auc(examples, after)),
        confusion=_confusion(examples, after),
        reliability=tuple(reliability(after, examples.labels)),
        calibration_error=_errors(before, after, examples.labels) if len(examples.labels) else None,
    )


def one_vs_rest_auc(examples: Examples, probabilities: Floats) -> list[float | None]:
    """For each value, how well its probability separates its images from the others (area under the ROC
    curve); None if either has no image."""
    from sklearn.metrics import roc_auc_score

    aucs: list[float | None] = []
    for index, count in enumerate(examples.counts):
        positive = examples.labels == index
        one_sided = count in (0, len(examples.labels))
        aucs.append(None if one_sided else float(roc_auc_score(positive, probabilities[:, index])))
    return aucs


def reliability(probabilities: Floats, labels: NDArray[np.intp]) -> list[Bin]:
    """Images by the probability of their likeliest value, in bins of equal width, without empty bins."""
    import numpy as np

    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    numbers = np.minimum((confidence * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    return [
        Bin(
            low=number / RELIABILITY_BINS,
            high=(number + 1) / RELIABILITY_BINS,
            images=int((numbers == number).sum()),
            confidence=float(confidence[numbers == number].mean()),
            accuracy=float(right[numbers == number].mean()),
        )
        for number in map(int, np.unique(numbers))
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over the images."""
    total = sum(each.images for each in bins)
    return sum(each.images / total * abs(each.confidence - each.accuracy) for each in bins)


def _too_few(examples: Examples, min_examples: int) -> str:
    needed = max(2, min_examples)  # one image of a value cannot be both fitted to and tried on
    if sum(count >= needed for count in examples.counts) >= 2:
        return ""
    knob = " (verification.min_examples)" if needed == min_examples else ""
    least = f"it needs two values with {needed} labelled images each{knob}"
    if not len(examples.labels):
        return f"no labelled images; {least}"
    counts = zip(examples.values, examples.counts, strict=True)
    shown = ", ".join(f"{count} {value}" for value, count in counts if count)
    return f"{least}; there are {shown}"


def _out_of_fold(examples: Examples, folds: int) -> Floats:
    """Each image's probabilities at the temperature of the folds without it."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    logs, labels = examples.log_probabilities, examples.labels
    scaled = np.empty_like(logs)
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # For a value with a single image, which is in one fold only, as it must be.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fitted, judged in splits.split(logs, labels):
            scaled[judged] = calibrated(logs[judged], fit_temperature(logs[fitted], labels[fitted]))
    return scaled


def _confusion(examples: Examples, probabilities: Floats) -> tuple[tuple[int, ...], ...]:
    from sklearn.metrics import confusion_matrix

    values = range(len(examples.values))
    if not len(examples.labels) or len(values) == 1:  # scikit-learn does not handle these
        return tuple((len(examples.labels),) * len(values) for _ in values)
    counts = confusion_matrix(examples.labels, probabilities.argmax(axis=1), labels=list(values))
    return tuple(tuple(map(int, row)) for row in counts)


def _errors(before: Floats, after: Floats, labels: NDArray[np.intp]) -> tuple[float, float]:
    return calibration_error(reliability(before, labels)), calibration_error(reliability(after, labels))


# ---- the file ----------------------------------------------------------------------------------


def wordings_sha256(properties: Properties) -> str:
    """Hex, over all properties, values and wordings."""
    plain = {
        name: {value: list(wordings) for value, wordings in values.items()}
        for name, values in properties.items()
    }
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()


def calibration_document(
    model: str, weights: str, properties: Properties, fitted: Mapping[str, PropertyCalibration]
) -> dict[str, Any]:
    """The content of a calibration file."""
    return {
        "format": FORMAT,
        "verifier": {"model": model, "weights": weights},
        "wordings_sha256": wordings_sha256(properties),
        "properties": {name: _as_dict(calibration) for name, calibration in fitted.items()},
    }


def _as_dict(calibration: PropertyCalibration) -> dict[str, Any]:
    error = calibration.calibration_error
    return {
        "values": list(calibration.values),
        "temperature": calibration.temperature,
        "kept": calibration.kept or None,
        "examples": dict(zip(calibration.values, calibration.examples, strict=True)),
        "folds": calibration.folds,
        "auc": dict(zip(calibration.values, calibration.auc, strict=True)),
        "confusion": [list(row) for row in calibration.confusion],
        "reliability": [dataclasses.asdict(each) for each in calibration.reliability],
        "calibration_error": None if error is None else {"before": error[0], "after": error[1]},
    }


def write_calibration(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a calibration file in one step. It replaces only another calibration: UsageError for any other
    file, StorageError if it cannot be written."""
    from balancer.storage import open_storage

    refuse_other_file(path)
    folder, name = os.path.split(os.path.abspath(path))
    data = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
    open_storage(folder, create=True).replace(name, data + b"\n")


def refuse_other_file(path: str | os.PathLike[str]) -> None:
    """UsageError for a place where a calibration would replace another file or lie inside a run."""
    from balancer.storage import refuse_inside_run

    refuse_inside_run(path, "--out")
    if not os.path.lexists(path):
        return
    try:
        read_calibration(path)
    except UsageError as error:
        raise UsageError(f"{path} exists and is not a calibration", hint="choose another --out") from error


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """UsageError if the file cannot be read, or is not a calibration."""
    try:
        data = read_regular(path, max_bytes=MAX_FILE_BYTES, follow_links=True)
    except OSError as error:
        problem = f"{path}: the calibration cannot be read: {(error.strerror or str(error)).lower()}"
        raise UsageError(problem, hint=RECALIBRATE) from error
    try:
        return _parse(read_json(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        raise UsageError(f"{path} is not a calibration: {what}", hint=RECALIBRATE) from error


def _parse(document: Any) -> Calibration:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, not {FORMAT}")
    verifier, properties = document["verifier"], document["properties"]
    return Calibration(
        model=_text(verifier["model"]),
        weights=_text(verifier["weights"]),
        wordings_sha256=_text(document["wordings_sha256"]),
        values={name: tuple(map(_text, entry["values"])) for name, entry in properties.items()},
        temperatures={name: _temperature(name, entry) for name, entry in properties.items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _temperature(name: str, entry: Mapping[str, Any]) -> float:
    value, (low, high) = entry["temperature"], TEMPERATURES
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"temperature of {name}: {value!r} is not between {low:g} and {high:g}")
    return float(value)


def read_configured(config: Config) -> Calibration | None:
    """The config's calibration, whatever it was made for; None without one."""
    path = calibration_file(config)
    return None if path is None else read_calibration(path)


def load_temperatures(config: Config) -> dict[str, float]:
    """The temperature of each property in the config's calibration; empty without one."""
    calibration = read_configured(config)
    return {} if calibration is None else dict(calibration.temperatures)


def calibration_file(config: Config) -> str | None:
    """The path of the config's calibration; None without one."""
    path = config.verification.calibration
    return None if path is None else os.fspath(config.resolve_path("verification.calibration", path))


def check_calibration(
    calibration: Calibration, path: str | os.PathLike[str], model: str, weights: str, properties: Properties
) -> None:
    """UsageError if a calibration was made for other weights, other values or other wordings."""
    made_for = "this calibration was made for"
    if calibration.weights != weights:
        verifier = f"the verifier {calibration.model} ({calibration.weights}), not {model} ({weights})"
        raise UsageError(f"{path}: {made_for} {verifier}", hint=RECALIBRATE)
    values = {name: tuple(wordings) for name, wordings in properties.items()}
    names = {**values, **calibration.values}
    if others := [name for name in names if values.get(name) != calibration.values.get(name)]:
        problem = f"{made_for} other values of {', '.join(others)} than the config has"
        raise UsageError(f"{path}: {problem}", hint=RECALIBRATE)
    if calibration.wordings_sha256 != wordings_sha256(properties):
        problem = f"{made_for} other wordings (labels or prompts) than the config has"
        raise UsageError(f"{path}: {problem}", hint=RECALIBRATE)
