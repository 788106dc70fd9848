"""Fit heads on labelled real images, and prove them out of fold.

Which features, and how strong the regularisation, is chosen by cross-validation among fixed candidates, and
the temperature is fitted on its out-of-fold scores. All figures come from a second cross-validation around
the whole of it: each image is judged by a head that was chosen, fitted and calibrated without it. Images of
one group are near-duplicates of each other: they share a fold, and count as one image. All values count
alike, however many images they have: a run fills up the rare ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from balancer.verification.calibration import (
    PRIOR_SPREAD,
    TEMPERATURES,
    Examples,
    calibration_error,
    one_vs_rest_auc,
    reliability,
)
from balancer.verification.heads import (
    MAX_VALUES,
    Features,
    Floats,
    Head,
    HeadProof,
    Integers,
    log_softmax,
)
from balancer.verification.small_pictures import EDGES, THUMBNAIL
from balancer.verification.typicality import FINAL

FOLDS = 5
STRENGTHS = (0.16, 0.08, 0.04, 0.028, 0.02, 0.014, 0.01, 0.005)
"""Of the regularisation, for features whose squares sum to about 1 an image."""

USUAL_STRENGTH, STRENGTH_SPREAD = 0.02, 0.3
"""A prior, log-normal: a hundred images say little of it."""

TEMPERATURE_SPREAD = 0.05
"""A prior, log-Cauchy: a strength chosen by log loss leaves a temperature little to do, or else much."""

TEMPERATURE_STEP = 0.03

LEAST_GROUPS = 3
"""Of a value. With fewer, a fold inside a fold could be without any."""

CHOOSING_IMAGES = 300
"""Candidates are compared on at most so many images, evenly from all values."""

MAX_AXES = 256
"""Principal axes that a fit sees. The regularisation leaves nothing of those beyond."""

FITTED_IMAGES = 2000
"""The fit has at most so many, evenly from all values."""

_INTERCEPT_PENALTY = 1e-3

_SCALE_FLOOR = 0.3
"""Of the mean spread of a kind. A number that hardly varies among the examples would otherwise drown the
others in an image where it does."""


@dataclass(frozen=True, slots=True)
class FittedHead:
    """`log_probabilities` (images, values) are out of fold, of the labelled images."""

    head: Head
    proof: HeadProof
    log_probabilities: Floats


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


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Labelled images. `labels` index into the values, of which `learned` have enough examples."""

    features: Mapping[str, Floats]
    words: Floats
    labels: Integers
    groups: Integers
    values: tuple[str, ...]
    learned: Integers

    def take(self, rows: NDArray[Any]) -> _Labelled:
        features = {kind: numbers[rows] for kind, numbers in self.features.items()}
        words, labels, groups = self.words[rows], self.labels[rows], self.groups[rows]
        return _Labelled(features, words, labels, groups, self.values, self.learned)

    def folds(self) -> Integers:
        return _deal(self.labels, self.groups)

    def balanced(self) -> _Labelled:
        """The images that a head is fitted on."""
        seen = self.take(np.isin(self.labels, self.learned))
        return seen.take(_evenly(seen.labels, seen.groups)[:FITTED_IMAGES])


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
    every = _labelled(features, labels, groups, zero_shot, values, min_examples)
    with threadpool_limits(limits=1):  # matrices are small: more threads wait for each other, for minutes
        return _fit_and_prove(every)


def _fit_and_prove(every: _Labelled) -> FittedHead:
    words, judged, folds = np.empty_like(every.words), np.empty_like(every.words), every.folds()
    for fold in np.unique(folds):
        head, left_out = _fit(every.take(folds != fold)), every.take(folds == fold)
        words[folds == fold] = log_softmax(left_out.words / head.words_temperature)
        judged[folds == fold] = head.log_probabilities(left_out.features, left_out.words)
    return FittedHead(_fit(every), _prove(every, words, judged), judged)


def words_loss(
    labels: Integers, groups: Integers, zero_shot: Floats, values: Sequence[str], min_examples: int
) -> float:
    """`HeadProof.words_loss` without fitting a head: none can gain more than this."""
    every = _labelled({}, labels, groups, zero_shot, values, min_examples)
    words, folds = np.empty_like(zero_shot), every.folds()
    for fold in np.unique(folds):
        temperature = _words_temperature(every.take(folds != fold).balanced())
        words[folds == fold] = log_softmax(zero_shot[folds == fold] / temperature)
    return _prove(every, words, words).words_loss


def _labelled(
    features: Features,
    labels: Integers,
    groups: Integers,
    zero_shot: Floats,
    values: Sequence[str],
    min_examples: int,
) -> _Labelled:
    if problem := no_head(labels, groups, values, min_examples):
        raise ValueError(problem)
    enough = _count_groups(labels, groups, len(values)) >= max(min_examples, LEAST_GROUPS)
    groups = np.unique(groups, return_inverse=True)[1]
    doubles = {kind: np.asarray(numbers, np.float64) for kind, numbers in features.items()}
    return _Labelled(doubles, zero_shot, labels, groups, tuple(values), np.flatnonzero(enough))


def _fit(every: _Labelled) -> Head:
    """Choose, fit and calibrate on `every`, and on nothing else."""
    seen = every.balanced()
    weights = _weights(seen.labels, seen.groups)
    words_temperature = _words_temperature(seen)
    offset = log_softmax(seen.words[:, seen.learned] / words_temperature)
    problem = _Problem(offset, np.searchsorted(seen.learned, seen.labels), weights)
    scales = {kind: _scale(numbers) for kind, numbers in seen.features.items()}
    scaled = {kind: (seen.features[kind] - centre) / scale for kind, (centre, scale) in scales.items()}
    choice = _choose(scaled, problem, seen.groups)
    chosen = {kind: scaled[kind] / math.sqrt(len(choice.kinds)) for kind in choice.kinds}
    basis = _basis(np.sum([numbers @ numbers.T for numbers in chosen.values()], axis=0))
    along = np.sum([numbers @ (numbers.T @ basis) for numbers in chosen.values()], axis=0)
    [(coefficients, intercepts)] = _regress(along, problem, [choice.strength])
    by_kind = {}
    for kind, numbers in chosen.items():
        centre, scale = scales[kind]
        by_kind[kind] = numbers.T @ (basis @ coefficients) / (scale * math.sqrt(len(chosen)))[:, None]
        intercepts = intercepts - centre @ by_kind[kind]
    return Head(
        every.values,
        tuple(map(int, every.learned)),
        by_kind,
        intercepts,
        words_temperature,
        choice.temperature,
        choice.strength,
    )


def _words_temperature(seen: _Labelled) -> float:
    problem = _Problem(seen.words, seen.labels, _weights(seen.labels, seen.groups))
    return _temperature(seen.words, problem, _usual_temperature)


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
        return len(rows) * _loss(scores, problem)

    kinds = min(candidates(scaled), key=lambda kinds: loss(judged(kinds, [USUAL_STRENGTH])[0]))
    by_strength = zip(STRENGTHS, judged(kinds, STRENGTHS), strict=True)
    strength, scores = min(by_strength, key=lambda pair: loss(pair[1]) + _unusual(pair[0]))
    return _Choice(kinds, strength, _temperature(scores, problem, _little_or_much))


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

        fit = minimize(
            objective,
            (coefficients / step).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "gtol": 1e-3, "ftol": 1e-7},
        )
        coefficients = fit.x.reshape(axes, values) * step
        yield coefficients[:-1], coefficients[-1]


def _temperature(scores: Floats, problem: _Problem, penalty: Callable[[Floats], Floats]) -> float:
    """The likeliest. `penalty` is the negative logarithm of the prior, of the logarithms of temperatures."""
    steps = np.arange(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]), TEMPERATURE_STEP)
    losses = [len(scores) * _loss(scores / math.exp(step), problem) for step in steps]
    return float(np.clip(math.exp(steps[np.argmin(losses + penalty(steps))]), *TEMPERATURES))


def _usual_temperature(logarithms: Floats) -> Floats:
    """As `calibration.fit_temperature` does."""
    penalties: Floats = 0.5 * np.square(logarithms / PRIOR_SPREAD)
    return penalties


def _little_or_much(logarithms: Floats) -> Floats:
    penalties: Floats = np.log1p(np.square(logarithms / TEMPERATURE_SPREAD))
    return penalties


def _loss(scores: Floats, problem: _Problem) -> float:
    """Mean log loss."""
    losses = -log_softmax(scores)[np.arange(len(scores)), problem.labels]
    return float(np.average(losses, weights=problem.weights))


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
    weights: Floats = 1.0 / (sizes[numbers] * of_value[labels])
    weights /= weights.mean()
    return weights


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


# ---- figures -----------------------------------------------------------------------------------


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
