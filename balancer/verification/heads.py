"""Heads: small classifiers for classes that no words describe.

A head judges the values of one property: a multinomial logistic regression on features of an image, with the
calibrated scores of the words as offset, so it has learned only what the words get wrong. Values with too few
examples keep the score of the words. With S the values that have enough, P(v) = P_words(S) x P_head(v | S)
for a value v of S, and P(v) = P_words(v) for the others, so probabilities sum to 1.

`balancer.verification.head_fitting` fits them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from balancer.verification.calibration import TEMPERATURES
from balancer.verification.small_pictures import EDGES, THUMBNAIL
from balancer.verification.typicality import FINAL, check_content

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Features = Mapping[str, NDArray[np.floating[Any]]]
"""Kind of feature -> (images, numbers)."""

LAYERS = 4
"""Of a model, at most, that features are taken from."""

KINDS = (
    FINAL,
    THUMBNAIL,
    EDGES,
    *(f"block{layer}.{part}" for layer in range(1, LAYERS + 1) for part in ("moments", "grid")),
)
"""Every kind of feature that a head may use."""

MAX_HEAD_BYTES = 20_000_000

MARGIN = 0.05
"""How much lower the log loss must be, in nats, for a head to replace the words."""

MAX_VALUES = 100
MAX_NUMBERS = 4_000_000
MAX_WEIGHT = 1e9
STRENGTH_LIMITS = (1e-6, 1e6)
"""Of a head."""


@dataclass(frozen=True, slots=True)
class Head:
    """`learned` are the positions, in `values`, of the values with examples. `weights` by kind of feature
    are (numbers, learned), `intercepts` (learned). `strength` is of the regularisation."""

    values: tuple[str, ...]
    learned: tuple[int, ...]
    weights: Mapping[str, Floats]
    intercepts: Floats
    words_temperature: float
    temperature: float
    strength: float

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def log_probabilities(self, features: Features, zero_shot: Floats) -> Floats:
        """Calibrated, (images, values). `zero_shot` are the log-probabilities of the words, uncalibrated."""
        if zero_shot.shape[1:] != (len(self.values),):
            raise ValueError(f"scores of {len(self.values)} values expected, not {zero_shot.shape[1:]}")
        evidence = np.broadcast_to(self.intercepts, (len(zero_shot), len(self.learned)))
        for kind, weights in self.weights.items():
            if kind not in features or features[kind].shape != (len(zero_shot), len(weights)):
                raise ValueError(f"{len(weights)} numbers an image of kind {kind} expected")
            evidence = evidence + features[kind] @ weights
        words = log_softmax(zero_shot / self.words_temperature)
        return _combined(words, np.array(self.learned), evidence, self.temperature)


@dataclass(frozen=True, slots=True)
class HeadProof:
    """Out-of-fold figures of the words alone, calibrated, and of words and examples.

    `examples`, `words_auc` and `auc` are by value; an AUC is None if the value, or all others, have no
    image. Log losses are of the values with weights, in nats; `gain_error` is the standard error of their
    difference. `words_error` and `error` are expected calibration errors.
    """

    values: tuple[str, ...]
    examples: tuple[int, ...]
    folds: int
    words_auc: tuple[float | None, ...]
    auc: tuple[float | None, ...]
    words_loss: float
    loss: float
    gain_error: float
    words_error: float
    error: float

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> HeadProof:
        """Raises AttributeError, KeyError or TypeError if it is not what `as_dict` gives."""
        values, loss, error = (document[name] for name in ("values", "log_loss", "calibration_error"))
        examples, words_auc, auc = (
            tuple(entry[name] for entry in values.values()) for name in ("examples", "words_auc", "auc")
        )
        return cls(
            values=tuple(values),
            examples=examples,
            folds=document["folds"],
            words_auc=words_auc,
            auc=auc,
            words_loss=loss["words"],
            loss=loss["head"],
            gain_error=loss["gain_error"],
            words_error=error["words"],
            error=error["head"],
        )

    @property
    def gain(self) -> float:
        return self.words_loss - self.loss

    @property
    def mean_words_auc(self) -> float:
        return _mean(self.words_auc)

    @property
    def mean_auc(self) -> float:
        return _mean(self.auc)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        by_value = zip(self.values, self.examples, self.words_auc, self.auc, strict=True)
        return {
            "folds": self.folds,
            "values": {
                value: {"examples": examples, "words_auc": words, "auc": auc}
                for value, examples, words, auc in by_value
            },
            "log_loss": {"words": self.words_loss, "head": self.loss, "gain_error": self.gain_error},
            "calibration_error": {"words": self.words_error, "head": self.error},
        }


def better(proof: HeadProof, margin: float = MARGIN) -> bool:
    """Whether a head should judge its property instead of the words alone: its log loss is lower by at least
    `margin` and by two standard errors, and its mean AUC is not lower."""
    return proof.gain >= max(margin, 2.0 * proof.gain_error) and proof.mean_auc >= proof.mean_words_auc


def log_softmax(scores: Floats) -> Floats:
    high = scores.max(axis=1, keepdims=True)
    shifted = scores - high
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _combined(words: Floats, learned: Integers, evidence: Floats, temperature: float) -> Floats:
    """Share out the probability that the words give to the learned values."""
    offset = words[:, learned]
    together = np.logaddexp.reduce(offset, axis=1)[:, None]
    result = words.copy()
    result[:, learned] = together + log_softmax((offset - together + evidence) / temperature)
    return result


def _mean(aucs: Iterable[float | None]) -> float:
    known = [auc for auc in aucs if auc is not None]
    return sum(known) / len(known) if known else math.nan


# ---- as a file ---------------------------------------------------------------------------------


def to_bytes(head: Head) -> bytes:
    """As safetensors, with the weights in single precision. The names of the values are not in it."""
    numbers = np.array([head.words_temperature, head.temperature, head.strength])
    arrays = {f"{_WEIGHTS}{kind}": weights.astype("<f4") for kind, weights in head.weights.items()}
    parts = {_LEARNED: np.array(head.learned, "<i8"), _INTERCEPTS: head.intercepts, _NUMBERS: numbers}
    return bytes(save({name: np.ascontiguousarray(part) for name, part in {**arrays, **parts}.items()}))


def read_head(data: bytes, sha256: str, values: Collection[str]) -> Head:
    """ValueError if it is not the file of that hash, or no head of these `values`."""
    check_content(data, sha256)
    return from_bytes(data, values)


def from_bytes(data: bytes, values: Collection[str]) -> Head:
    """Raises ValueError if it is not what `to_bytes` gives for a head of `values`."""
    try:
        arrays = load(data)
        learned, intercepts, numbers = (arrays.pop(name) for name in (_LEARNED, _INTERCEPTS, _NUMBERS))
        weights = {name.removeprefix(_WEIGHTS): _numbers(rows, 2) for name, rows in arrays.items()}
        _check_weights(weights, intercepts)
        words_temperature, temperature, strength = _numbers(numbers, 1).tolist()
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no head: {error}") from error
    _check_positions(learned, len(values))
    if learned.shape != intercepts.shape:
        raise ValueError("a weight for each learned value expected")
    for number, limits in (
        (words_temperature, TEMPERATURES),
        (temperature, TEMPERATURES),
        (strength, STRENGTH_LIMITS),
    ):
        _check_limits(number, *limits)
    return Head(
        tuple(values),
        tuple(learned.tolist()),
        weights,
        _numbers(intercepts, 1),
        words_temperature,
        temperature,
        strength,
    )


_WEIGHTS, _LEARNED, _INTERCEPTS, _NUMBERS = "weights/", "learned", "intercepts", "numbers"


def _check_weights(weights: Mapping[str, Floats], intercepts: NDArray[Any]) -> None:
    if not weights or not weights.keys() <= set(KINDS):
        raise ValueError("weights for kinds of features that there are expected")
    if {rows.shape[1:] for rows in weights.values()} != {intercepts.shape}:
        raise ValueError("a weight for each learned value expected")
    if sum(rows.size for rows in weights.values()) > MAX_NUMBERS:
        raise ValueError(f"more than {MAX_NUMBERS} weights")


def _check_positions(positions: NDArray[Any], count: int) -> None:
    if positions.dtype.kind != "i" or positions.ndim != 1 or count > MAX_VALUES:
        raise ValueError(f"positions of at most {MAX_VALUES} values expected")
    listed = positions.tolist()
    if len(listed) < 2 or sorted({*listed} & {*range(count)}) != listed:
        raise ValueError(f"at least two ascending positions below {count} expected")


def _check_limits(value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{value!r} is not between {low:g} and {high:g}")


def _numbers(array: NDArray[Any], dimensions: int) -> Floats:
    if array.dtype.kind != "f" or array.ndim != dimensions or not array.size:
        raise ValueError(f"numbers in {dimensions} dimensions expected")
    if not (np.abs(array) <= MAX_WEIGHT).all():
        raise ValueError(f"finite numbers up to {MAX_WEIGHT:g} expected")
    return array.astype(np.float64)
