"""Heads: small classifiers for classes that no words describe.

A head judges the values of one property. It is fitted on labelled real images: a multinomial logistic
regression on features of the images, with the calibrated scores of the words as offset, so it learns only
what the words get wrong. Values with too few examples keep the score of the words: with S the values that
have examples, P(v) = P_words(S) x P_head(v | S) for a value v of S, and P(v) = P_words(v) for the others. So
probabilities sum to 1.

Which features, and how strong the regularisation, is chosen by cross-validation among fixed candidates, and
the temperature is fitted on its out-of-fold scores. All figures come from a second cross-validation around
the whole of it: each image is judged by a head that was chosen, fitted and calibrated without it. Images of
one group are near-duplicates of each other: they share a fold, and count as one image. All values count
alike, however many images they have: a run fills up the rare ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.verification.calibration import (
    PRIOR_SPREAD,
    TEMPERATURES,
    Examples,
    calibration_error,
    one_vs_rest_auc,
    reliability,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Features = Mapping[str, Floats]
"""Kind of feature -> (images, numbers)."""

FORMAT = 1
FOLDS = 5
STRENGTHS = (0.16, 0.08, 0.04, 0.028, 0.02, 0.014, 0.01, 0.005)
"""Of the regularisation, for features whose squares sum to about 1 an image."""

USUAL_STRENGTH, STRENGTH_SPREAD = 0.02, 0.3
TEMPERATURE_SPREAD = 0.07
"""Priors, log-normal: the median strength, and how far strength and temperature are from the usual. Some
hundred images say little of either, and a strength chosen by log loss leaves a temperature little to do."""

LEAST_GROUPS = 3
"""Of a value. With fewer, a fold inside a fold could be without any."""

CHOOSING_IMAGES = 400
"""Candidates are compared on at most so many images, evenly from all values."""

MAX_AXES = 256
"""Principal axes that a fit sees. The regularisation leaves nothing of those beyond."""

MARGIN = 0.05
"""How much lower the log loss must be, in nats, for a head to replace the words."""

FINAL, THUMBNAIL, EDGES = "final", "thumbnail", "edges"
"""Kinds of features: of the verifier's embedding, and of small pictures."""

THUMBNAIL_SIDE = 16
EDGES_SIDE, EDGES_PARTS, DIRECTIONS = 32, 8, 8

FITTED_IMAGES = 2000
"""The fit has at most so many, evenly from all values."""

MAX_VALUES = 100
MAX_NUMBERS = 4_000_000
MAX_WEIGHT = 1e9
"""Of a head."""

_INTERCEPT_PENALTY = 1e-3

_SCALE_FLOOR = 0.3
"""Of the mean spread of a kind. A number that hardly varies among the examples would otherwise drown the
others in an image where it does."""


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
            if features[kind].shape != (len(zero_shot), len(weights)):
                raise ValueError(f"{kind}: {len(weights)} numbers an image expected")
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


@dataclass(frozen=True, slots=True)
class FittedHead:
    """`log_probabilities` (images, values) are out of fold, of the labelled images."""

    head: Head
    proof: HeadProof
    log_probabilities: Floats


def better(proof: HeadProof, margin: float = MARGIN) -> bool:
    """Whether a head should judge its property instead of the words alone: its log loss is lower by at least
    `margin` and by two standard errors, and its mean AUC is not lower."""
    return proof.gain >= max(margin, 2.0 * proof.gain_error) and proof.mean_auc >= proof.mean_words_auc


# ---- features ----------------------------------------------------------------------------------


def picture_features(images: NDArray[Any]) -> dict[str, Floats]:
    """Features of small versions of images (N, height, width, 3), as a verifier's preprocessing gives them.

    THUMBNAIL has the pixels of 16 x 16, EDGES how strong the edges of 8 directions are in each of 8 x 8 parts
    (histograms of oriented gradients, Dalal and Triggs 2005).
    """
    pixels = np.asarray(images, np.float64).transpose(0, 3, 1, 2)
    return {
        THUMBNAIL: _shrunk(pixels, THUMBNAIL_SIDE).reshape(len(images), -1),
        EDGES: _edges(_shrunk(pixels, EDGES_SIDE).mean(axis=1)).reshape(len(images), -1),
    }


def _shrunk(pixels: Floats, side: int) -> Floats:
    """The means of side x side parts; pixels on a border belong to both."""
    means: Floats = _shares(pixels.shape[2], side).T @ (pixels @ _shares(pixels.shape[3], side))
    return means


def _shares(length: int, parts: int) -> Floats:
    """(length, parts): the share of each pixel in the mean of each part."""
    edges, pixels = np.linspace(0.0, length, parts + 1), np.arange(length)[:, None]
    overlap: Floats = np.minimum(pixels + 1.0, edges[1:]) - np.maximum(pixels, edges[:-1])
    return np.maximum(overlap, 0.0) * (parts / length)


def _edges(grey: Floats) -> Floats:
    """(images, directions, parts, parts) of (images, side, side). An edge between two directions counts for
    both; light to dark is the same as dark to light."""
    down, across = np.gradient(grey, axis=(1, 2))
    turn = np.arctan2(down, across) / np.pi % 1.0 * DIRECTIONS
    apart = np.abs(turn[:, None] - np.arange(DIRECTIONS)[:, None, None])
    near = np.maximum(1.0 - np.minimum(apart, DIRECTIONS - apart), 0.0)
    strength: Floats = np.sqrt(_shrunk(near * np.hypot(down, across)[:, None], EDGES_PARTS))
    return strength


def candidates(kinds: Iterable[str]) -> list[tuple[str, ...]]:
    """The sets of kinds of features that a head may use, of those there are; single ones first."""
    there = sorted(kinds)
    moments = [kind for kind in there if kind.endswith(".moments")]
    grids = [kind for kind in there if kind.endswith(".grid")]
    final, small = (FINAL,), (THUMBNAIL, EDGES)
    single = [(kind,) for kind in (*final, *small, *moments, *grids)]
    together = [small, (*final, *small), moments, (*final, *moments), (*moments, *small)]
    unique = dict.fromkeys(map(tuple, (*single, *together)))
    return [chosen for chosen in unique if chosen and set(chosen) <= set(there)]


# ---- fitting -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Labelled images. `labels` index into the values, of which `learned` have enough examples."""

    features: Features
    words: Floats
    labels: Integers
    groups: Integers
    values: tuple[str, ...]
    learned: Integers

    def take(self, rows: NDArray[Any]) -> _Labelled:
        features = {kind: numbers[rows] for kind, numbers in self.features.items()}
        words, labels, groups = self.words[rows], self.labels[rows], self.groups[rows]
        return _Labelled(features, words, labels, groups, self.values, self.learned)


@dataclass(frozen=True, slots=True)
class _Problem:
    """What a regression starts from. `labels` index into the columns of `offset`."""

    offset: Floats
    labels: Integers
    weights: Floats

    def take(self, rows: NDArray[Any]) -> _Problem:
        return _Problem(self.offset[rows], self.labels[rows], self.weights[rows])


@dataclass(frozen=True, slots=True)
class _Choice:
    kinds: tuple[str, ...]
    strength: float
    temperature: float


def no_head(labels: Integers, groups: Integers, values: Sequence[str], min_examples: int) -> str:
    """Why there are too few examples for a head; empty if there are enough."""
    if len(values) > MAX_VALUES:
        return f"{len(values)} values; a head judges at most {MAX_VALUES}"
    needed, counts = max(min_examples, LEAST_GROUPS), _count_groups(labels, groups, len(values))
    if (counts >= needed).sum() >= 2:
        return ""
    shown = ", ".join(f"{count} {value}" for value, count in zip(values, counts, strict=True) if count)
    return f"a head needs two values with {needed} different images each; there are {shown or 'none'}"


def fit_head(
    features: Features,
    labels: Integers,
    groups: Integers,
    zero_shot: Floats,
    values: Sequence[str],
    min_examples: int,
) -> FittedHead:
    """Fit a head on labelled images: `labels` index into `values`, near-duplicates share a number in
    `groups`, and `zero_shot` are the log-probabilities of the words, uncalibrated.

    ValueError if `no_head` gives a reason.
    """
    if problem := no_head(labels, groups, values, min_examples):
        raise ValueError(problem)
    enough = _count_groups(labels, groups, len(values)) >= max(min_examples, LEAST_GROUPS)
    groups = np.unique(groups, return_inverse=True)[1]
    every = _Labelled(features, zero_shot, labels, groups, tuple(values), np.flatnonzero(enough))
    words, judged, folds = np.empty_like(zero_shot), np.empty_like(zero_shot), _deal(labels, groups)
    for fold in np.unique(folds):
        head, left_out = _fit(every.take(folds != fold)), every.take(folds == fold)
        words[folds == fold] = log_softmax(left_out.words / head.words_temperature)
        judged[folds == fold] = head.log_probabilities(left_out.features, left_out.words)
    return FittedHead(_fit(every), _prove(every, words, judged), judged)


def _fit(every: _Labelled) -> Head:
    """Choose, fit and calibrate on `every`, and on nothing else."""
    words_temperature = _fit_temperature(
        every.words, every.labels, _weights(every.labels, every.groups), PRIOR_SPREAD
    )
    seen = every.take(np.isin(every.labels, every.learned))
    seen = seen.take(_evenly(seen.labels, seen.groups)[:FITTED_IMAGES])
    problem = _Problem(
        log_softmax(seen.words[:, seen.learned] / words_temperature),
        np.searchsorted(seen.learned, seen.labels),
        _weights(seen.labels, seen.groups),
    )
    scales = {kind: _scale(numbers) for kind, numbers in seen.features.items()}
    scaled = {kind: (seen.features[kind] - centre) / scale for kind, (centre, scale) in scales.items()}
    choice = _choose(scaled, problem, seen.groups)
    chosen = np.concatenate([scaled[kind] for kind in choice.kinds], axis=1) / math.sqrt(len(choice.kinds))
    basis = _basis(chosen @ chosen.T)
    *_, (coefficients, intercepts) = _regress(chosen @ (chosen.T @ basis), problem, [choice.strength])
    weights, start = {}, 0
    along = chosen.T @ (basis @ coefficients) / math.sqrt(len(choice.kinds))
    for kind in choice.kinds:
        centre, scale = scales[kind]
        weights[kind] = along[start : start + len(centre)] / scale[:, None]
        intercepts = intercepts - centre @ weights[kind]
        start += len(centre)
    return Head(
        every.values,
        tuple(map(int, every.learned)),
        weights,
        intercepts,
        words_temperature,
        choice.temperature,
        choice.strength,
    )


def _scale(numbers: Floats) -> tuple[Floats, Floats]:
    """Centre and divisor: the squares of the scaled numbers of an image sum to about 1."""
    spread = numbers.std(axis=0)
    return numbers.mean(axis=0), (spread + _SCALE_FLOOR * spread.mean() + 1e-9) * math.sqrt(len(spread))


def _choose(scaled: Features, problem: _Problem, groups: Integers) -> _Choice:
    """The kinds with the lowest out-of-fold loss at the usual strength, then the strength, then the
    temperature of its out-of-fold scores."""
    rows = np.sort(_evenly(problem.labels, groups)[:CHOOSING_IMAGES])
    problem, groups = problem.take(rows), groups[rows]
    folds = _deal(problem.labels, groups)
    products = {kind: numbers[rows] @ numbers[rows].T for kind, numbers in scaled.items()}

    def judged(kinds: Sequence[str], strengths: Sequence[float]) -> Floats:
        gram = np.mean([products[kind] for kind in kinds], axis=0)
        return _out_of_fold(gram, problem, folds, strengths)

    def loss(scores: Floats) -> float:
        return len(rows) * _loss(scores, problem.labels, problem.weights)

    kinds = min(candidates(scaled), key=lambda kinds: loss(judged(kinds, [USUAL_STRENGTH])[0]))
    by_strength = zip(STRENGTHS, judged(kinds, STRENGTHS), strict=True)
    strength, scores = min(by_strength, key=lambda pair: loss(pair[1]) + _unusual(pair[0]))
    temperature = _fit_temperature(scores, problem.labels, problem.weights, TEMPERATURE_SPREAD)
    return _Choice(kinds, strength, temperature)


def _unusual(strength: float) -> float:
    return 0.5 * (math.log(strength / USUAL_STRENGTH) / STRENGTH_SPREAD) ** 2


def _out_of_fold(gram: Floats, problem: _Problem, folds: Integers, strengths: Sequence[float]) -> Floats:
    """Scores (strengths, images, values), by regressions on the products of all pairs of images."""
    scores = np.empty((len(strengths), *problem.offset.shape))
    for fold in np.unique(folds):
        fitted, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        inner = gram[np.ix_(fitted, fitted)]
        basis = _basis(inner)
        along = gram[np.ix_(judged, fitted)] @ basis
        fits = _regress(inner @ basis, problem.take(fitted), strengths)
        for number, (coefficients, intercepts) in enumerate(fits):
            scores[number, judged] = problem.offset[judged] + along @ coefficients + intercepts
    return scores


def _basis(gram: Floats) -> Floats:
    """(images, axes): the products with the images that a gram matrix is of, times this, are positions along
    their principal axes."""
    from scipy.linalg import eigh

    count = len(gram)
    variances, axes = eigh(gram, subset_by_index=(max(0, count - MAX_AXES), count - 1))
    real = variances > 1e-8 * max(float(variances[-1]), 1e-8)
    basis: Floats = axes[:, real] / np.sqrt(variances[real])
    return basis


def _regress(along: Floats, problem: _Problem, strengths: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
    """Coefficients (axes, values) and intercepts for each strength, each starting from the one before."""
    from scipy.optimize import minimize

    images, values = problem.offset.shape
    wanted = np.eye(values)[problem.labels]
    inputs = np.concatenate([along, np.ones((images, 1))], axis=1)
    axes = inputs.shape[1]
    curvature = np.square(inputs).sum(axis=0)[:, None] * (values - 1) / values**2
    coefficients = np.zeros((axes, values))
    for strength in strengths:
        penalty = np.full((axes, 1), strength)
        penalty[-1] = _INTERCEPT_PENALTY
        step = 1.0 / np.sqrt(curvature + penalty)  # so that all directions curve alike

        def objective(flat: Floats, penalty: Floats = penalty, step: Floats = step) -> tuple[float, Floats]:
            current = flat.reshape(axes, values) * step
            logs = log_softmax(problem.offset + inputs @ current)
            residual = (np.exp(logs) - wanted) * problem.weights[:, None]
            loss = -float(problem.weights @ logs[np.arange(images), problem.labels])
            gradient = inputs.T @ residual + penalty * current
            return loss + 0.5 * float((penalty * current * current).sum()), (gradient * step).ravel()

        found = minimize(
            objective,
            (coefficients / step).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "gtol": 1e-3, "ftol": 1e-7},
        )
        coefficients = found.x.reshape(axes, values) * step
        yield coefficients[:-1], coefficients[-1]


def _fit_temperature(scores: Floats, labels: Integers, weights: Floats, spread: float) -> float:
    """As `calibration.fit_temperature`, but each value counts alike."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        prior = 0.5 * (log_temperature / spread) ** 2
        return prior + len(labels) * _loss(scores / math.exp(log_temperature), labels, weights)

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


def _loss(scores: Floats, labels: Integers, weights: Floats) -> float:
    """Mean log loss."""
    return -float(weights @ log_softmax(scores)[np.arange(len(labels)), labels]) / len(labels)


# ---- groups and values that count alike --------------------------------------------------------


def _count_groups(labels: Integers, groups: Integers, values: int) -> Integers:
    """Images of each value, near-duplicates as one, which has the value of the first."""
    _, first = np.unique(groups, return_index=True)
    return np.bincount(labels[first], minlength=values)


def _weights(labels: Integers, groups: Integers) -> Floats:
    """Of each image; their mean is 1. All values count alike, and so do the groups of a value."""
    pairs, numbers, sizes = np.unique(
        np.stack([labels, groups]), axis=1, return_inverse=True, return_counts=True
    )
    of_value = np.bincount(pairs[0])
    weights = 1.0 / (sizes[numbers] * of_value[labels])
    return weights * (len(labels) / weights.sum())


def _deal(labels: Integers, groups: Integers) -> Integers:
    """The fold of each image. The groups of each value are spread evenly."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(first))
    by_value = order[np.argsort(labels[first][order], kind="stable")]
    folds = np.empty(len(first), np.intp)
    folds[by_value] = np.arange(len(first)) % FOLDS
    return folds[numbers]


def _evenly(labels: Integers, groups: Integers) -> Integers:
    """All rows, one image of each value after the other; one of each group before the next of any."""
    order = np.random.default_rng(0).permutation(len(labels))
    repeat = _rank(groups[order])
    order = order[np.argsort(repeat, kind="stable")]
    rounds = _rank(labels[order])
    return order[np.argsort(rounds, kind="stable")]


def _rank(keys: Integers) -> Integers:
    """How many equal keys come before each."""
    order = np.argsort(keys, kind="stable")
    _, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    ranks = np.empty(len(keys), np.intp)
    ranks[order] = np.arange(len(keys)) - np.repeat(first, counts)
    return ranks


# ---- probabilities and figures -----------------------------------------------------------------


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


def _prove(every: _Labelled, words: Floats, judged: Floats) -> HeadProof:
    learned = np.isin(every.labels, every.learned)
    labels, groups = every.labels[learned], every.groups[learned]
    weights, rows = _weights(labels, groups), np.arange(len(labels))
    losses = [-scores[learned][rows, labels] for scores in (words, judged)]
    gains = losses[0] - losses[1]
    mean = np.average(gains, weights=weights)
    by_group = np.bincount(groups, weights * (gains - mean)) / len(labels)
    examples = [Examples(every.values, scores, every.labels) for scores in (words, judged)]
    aucs = [tuple(one_vs_rest_auc(each, np.exp(each.log_probabilities))) for each in examples]
    errors = [
        calibration_error(reliability(np.exp(each.log_probabilities), each.labels)) for each in examples
    ]
    return HeadProof(
        values=every.values,
        examples=examples[0].counts,
        folds=FOLDS,
        words_auc=aucs[0],
        auc=aucs[1],
        words_loss=float(np.average(losses[0], weights=weights)),
        loss=float(np.average(losses[1], weights=weights)),
        gain_error=float(np.sqrt(np.square(by_group).sum())),
        words_error=errors[0],
        error=errors[1],
    )


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
    if any(rows.shape[1:] != intercepts.shape for rows in weights.values()) or len(intercepts) != len(
        learned
    ):
        raise ValueError("a weight for each learned value expected")
    if sum(rows.size for rows in weights.values()) > MAX_NUMBERS:
        raise ValueError(f"more than {MAX_NUMBERS} weights")
    words_temperature, temperature = (
        _number(document[name], *TEMPERATURES) for name in ("words_temperature", "temperature")
    )
    strength = _number(document["strength"], min(STRENGTHS), max(STRENGTHS))
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
