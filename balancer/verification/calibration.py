"""Scores that can be taken at their word: one temperature per property, fitted on labelled real images.

A verifier's probabilities p become p^(1/T), normalised (temperature scaling, Guo et al. 2017): T above 1
makes them less sure, below 1 surer, and the likeliest value stays the likeliest. One number per property is
what some dozens of labelled images can carry; Platt scaling or isotonic regression of each value would fit
their noise.

All figures come from images that the temperature they were scaled with was not fitted on.
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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from balancer.config.schema import Config

    Floats = NDArray[np.float64]

FORMAT = 1
MAX_FILE_BYTES = 16_000_000

FOLDS = 5
RELIABILITY_BINS = 15
TEMPERATURES = (0.02, 50.0)
"""Least and greatest; what lies beyond says that something else is wrong."""

PRIOR_SPREAD = 1.0
"""Standard deviation of log T before any image was seen. Without it, images that are all told apart would
drive the temperature to zero, and every later mistake would be made with certainty."""

Properties = Mapping[str, Mapping[str, Sequence[str]]]
"""Property -> value -> its wordings."""

MAKE_ANEW = "make it anew with `balancer calibrate CONFIG`, or leave out verification.calibration"


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
    """Images whose likeliest value has a probability between `low` and `high`: its mean, and the part of them
    that show that value."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class PropertyCalibration:
    """`kept` says why the temperature was left at 1, if it was. `auc` is that of each value against the
    others, None where one side has no image; `confusion` has a row for each labelled value and a column
    for each likeliest one. `calibration_error` is before and after, None without images."""

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
    """What a calibration file holds that a run needs: temperatures, and what they hold for. `weights` tells
    the verifier's weights from any others."""

    model: str
    weights: str
    wordings_sha256: str
    values: Mapping[str, tuple[str, ...]]
    temperatures: Mapping[str, float]

    def sha256(self) -> str:
        """Hex, over the temperatures: what tells the scores of two calibrations apart."""
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

    def surprise(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / math.exp(log_temperature), axis=1)
        prior = 0.5 * (log_temperature / PRIOR_SPREAD) ** 2
        return float(prior - scaled[np.arange(len(labels)), labels].sum())

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded").x)


def fit_property(examples: Examples, min_examples: int) -> PropertyCalibration:
    """A temperature and its figures; 1 if not two values have `min_examples` labelled images each."""
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
    """For each value, how well its probability tells its images from the others' (area under the ROC
    curve); None if either has none."""
    from sklearn.metrics import roc_auc_score

    found: list[float | None] = []
    for index, count in enumerate(examples.counts):
        mine = examples.labels == index
        one_sided = count in (0, len(examples.labels))
        found.append(None if one_sided else float(roc_auc_score(mine, probabilities[:, index])))
    return found


def reliability(probabilities: Floats, labels: NDArray[np.intp]) -> list[Bin]:
    """Images by the probability of their likeliest value, in bins of equal width; empty ones are left out."""
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
    enough = [count for count in examples.counts if count >= min_examples]
    if len(enough) >= 2:
        return ""
    least = f"two values with {min_examples} labelled images each (verification.min_examples)"
    if not len(examples.labels):
        return f"no labelled image; it takes {least}"
    counts = zip(examples.values, examples.counts, strict=True)
    shown = ", ".join(f"{count} {value}" for value, count in counts if count)
    return f"it takes {least}, and there are {shown}"


def _out_of_fold(examples: Examples, folds: int) -> Floats:
    """Each image's probabilities at the temperature of the folds that it is not in."""
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    logs, labels = examples.log_probabilities, examples.labels
    found = np.empty_like(logs)
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # Of a value with a single image: it is in one fold and not in the others, as it must be.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fitted, judged in splits.split(logs, labels):
            found[judged] = calibrated(logs[judged], fit_temperature(logs[fitted], labels[fitted]))
    return found


def _confusion(examples: Examples, probabilities: Floats) -> tuple[tuple[int, ...], ...]:
    from sklearn.metrics import confusion_matrix

    values = range(len(examples.values))
    if not len(examples.labels) or len(values) == 1:  # cases which scikit-learn does not count
        return tuple((len(examples.labels),) * len(values) for _ in values)
    counts = confusion_matrix(examples.labels, probabilities.argmax(axis=1), labels=list(values))
    return tuple(tuple(map(int, row)) for row in counts)


def _errors(before: Floats, after: Floats, labels: NDArray[np.intp]) -> tuple[float, float]:
    one, other = (calibration_error(reliability(each, labels)) for each in (before, after))
    return one, other


# ---- the file ----------------------------------------------------------------------------------


def wordings_sha256(properties: Properties) -> str:
    """Hex, over what the verifier tells apart and by which words."""
    plain = {name: {value: list(of) for value, of in values.items()} for name, values in properties.items()}
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()


def calibration_document(
    model: str, weights: str, properties: Properties, fitted: Mapping[str, PropertyCalibration]
) -> dict[str, Any]:
    """The content of a calibration file."""
    return {
        "format": FORMAT,
        "verifier": {"model": model, "weights": weights},
        "wordings_sha256": wordings_sha256(properties),
        "properties": {name: _as_dict(found) for name, found in fitted.items()},
    }


def _as_dict(found: PropertyCalibration) -> dict[str, Any]:
    error = found.calibration_error
    return {
        "values": list(found.values),
        "temperature": found.temperature,
        "kept": found.kept or None,
        "examples": dict(zip(found.values, found.examples, strict=True)),
        "folds": found.folds,
        "auc": dict(zip(found.values, found.auc, strict=True)),
        "confusion": [list(row) for row in found.confusion],
        "reliability": [dataclasses.asdict(each) for each in found.reliability],
        "calibration_error": None if error is None else {"before": error[0], "after": error[1]},
    }


def write_calibration(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """The file is there whole or not at all, and replaces nothing but a calibration; StorageError if it
    cannot be written, UsageError if it may not."""
    from balancer.storage import open_storage, refuse_inside_run

    refuse_inside_run(path, "--out")
    if os.path.lexists(path):
        read_calibration(path)

    folder, name = os.path.split(os.path.abspath(path))
    data = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
    open_storage(folder, create=True).replace(name, data + b"\n")


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """UsageError if the file cannot be read, or is no calibration."""
    try:
        data = read_regular(path, max_bytes=MAX_FILE_BYTES, follow_links=True)
    except OSError as error:
        problem = f"{path}: the calibration cannot be read: {(error.strerror or str(error)).lower()}"
        raise UsageError(problem, hint=MAKE_ANEW) from error
    try:
        return _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        raise UsageError(f"{path} is not a calibration: {what}", hint=MAKE_ANEW) from error


def _parse(document: Any) -> Calibration:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, not {FORMAT}")
    verifier, properties = document["verifier"], document["properties"]
    return Calibration(
        model=_text(verifier["model"]),
        weights=_text(verifier["weights"]),
        wordings_sha256=_text(document["wordings_sha256"]),
        values={name: tuple(map(_text, found["values"])) for name, found in properties.items()},
        temperatures={name: _temperature(name, found) for name, found in properties.items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _temperature(name: str, found: Mapping[str, Any]) -> float:
    value, (low, high) = found["temperature"], TEMPERATURES
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"temperature of {name}: {value!r} is not between {low:g} and {high:g}")
    return float(value)


def temperatures_of(config: Config) -> dict[str, float]:
    """The temperature of each property that the config's calibration has; none without one."""
    path = calibration_file(config)
    return {} if path is None else dict(read_calibration(path).temperatures)


def calibration_file(config: Config) -> str | None:
    """Where the config's calibration is; None without one."""
    path = config.verification.calibration
    return None if path is None else os.fspath(config.resolve_path("verification.calibration", path))


def check_calibration(
    found: Calibration, path: str | os.PathLike[str], model: str, weights: str, properties: Properties
) -> None:
    """UsageError if a calibration was made for other weights, other values or other wordings."""
    if found.weights != weights:
        problem = f"it was made for the verifier {found.model} ({found.weights}), not {model} ({weights})"
        raise UsageError(f"{path}: {problem}", hint=MAKE_ANEW)
    values = {name: tuple(of) for name, of in properties.items()}
    names = {**values, **found.values}
    if others := [name for name in names if values.get(name) != found.values.get(name)]:
        raise UsageError(
            f"{path}: it was made for other values of {', '.join(others)} than the config has", hint=MAKE_ANEW
        )
    if found.wordings_sha256 != wordings_sha256(properties):
        raise UsageError(
            f"{path}: it was made for other wordings (labels or prompts) than the config has", hint=MAKE_ANEW
        )
