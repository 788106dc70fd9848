"""Heads: small classifiers for classes that no words describe.

A head judges the values of one property: a multinomial logistic regression on features of an image, with the
calibrated scores of the words as offset, so it has learned only what the words get wrong. Values with too few
examples keep the score of the words. With S the values that have enough, P(v) = P_words(S) x P_head(v | S)
for a value v of S, and P(v) = P_words(v) for the others, so probabilities sum to 1.

`balancer.verification.head_fitting` fits them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.verification.calibration import TEMPERATURES

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Features = Mapping[str, Floats]
"""Kind of feature -> (images, numbers)."""

FORMAT = 1

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


# ---- as plain numbers --------------------------------------------------------------------------


def as_dict(head: Head) -> dict[str, Any]:
    """For JSON."""
    return {
        "format": FORMAT,
        "values": list(head.values),
        "learned": list(head.learned),
        "weights": {kind: weights.tolist() for kind, weights in head.weights.items()},
        "intercepts": head.intercepts.tolist(),
        "words_temperature": head.words_temperature,
        "temperature": head.temperature,
        "strength": head.strength,
    }


def from_dict(document: Mapping[str, Any]) -> Head:
    """Raises KeyError, TypeError, AttributeError or ValueError if it is not what `as_dict` gives."""
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, not {FORMAT}")
    values = _read_names(document["values"])
    learned = _read_positions(document["learned"], len(values))
    weights = {kind: _numbers(rows, 2) for kind, rows in document["weights"].items()}
    intercepts = _numbers(document["intercepts"], 1)
    _read_names(list(weights))
    if {intercepts.shape, *(rows.shape[1:] for rows in weights.values())} != {(len(learned),)}:
        raise ValueError("a weight for each learned value expected")
    if sum(rows.size for rows in weights.values()) > MAX_NUMBERS:
        raise ValueError(f"more than {MAX_NUMBERS} weights")
    words_temperature, temperature = (
        _number(document[name], *TEMPERATURES) for name in ("words_temperature", "temperature")
    )
    strength = _number(document["strength"], *STRENGTH_LIMITS)
    return Head(values, learned, weights, intercepts, words_temperature, temperature, strength)


def _read_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError("a list of names expected")
    if not 0 < len(set(names)) == len(names) <= MAX_VALUES:
        raise ValueError(f"1 to {MAX_VALUES} different names expected")
    return tuple(names)


def _read_positions(positions: Any, count: int) -> tuple[int, ...]:
    if not isinstance(positions, list) or not all(type(position) is int for position in positions):
        raise TypeError("a list of positions expected")
    if len(positions) < 2 or sorted({*positions} & {*range(count)}) != positions:
        raise ValueError(f"at least two ascending positions below {count} expected")
    return tuple(positions)


def _number(value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{value!r} is not between {low:g} and {high:g}")
    return float(value)


def _numbers(values: Any, dimensions: int) -> Floats:
    array = np.array(values)
    if array.dtype.kind not in "if" or array.ndim != dimensions or not array.size:
        raise ValueError(f"numbers in {dimensions} dimensions expected")
    if not (np.abs(array) <= MAX_WEIGHT).all():
        raise ValueError(f"finite numbers up to {MAX_WEIGHT:g} expected")
    return array.astype(np.float64)
