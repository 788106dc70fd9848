"""Typicality: is an image one of these things at all, before anyone asks which?

A verifier compares the classes of a config with each other, so some class always fits. The embedding it ends
with has lost what tells a thing from a non-thing; earlier layers and plain pixels have not. Each kind of
feature gives a Mahalanobis distance from the labelled real images, with a shrunk covariance (Ledoit and Wolf
2004). The distances are combined to one score, and the score becomes a conformal p-value (Vovk et al. 2005):
of images like the real ones, a share of at most `alpha` has a p-value of at most `alpha`.

Rows come in groups: a real image, then variations of it that are as good. A whole group is left out at a
time, and groups count alike. Real images and variations are two references, and the higher p-value counts:
pooled, the many variations would decide what share of the real images is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from balancer.errors import ManifestError

Candidate = TypeVar("Candidate", bound=Hashable)
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Features = Mapping[str, NDArray[np.floating[Any]]]
"""Kind of feature -> (images, numbers)."""

MAX_TYPICALITY_BYTES = 500_000_000
MAX_ARRAYS = 200

FINAL = "final"
PIXEL_KINDS = ("sharpness", "relative_sharpness", "seams", "cuts")

FOLDS = 5
MIN_GROUPS = 8
"""With fewer, no fold could be left out; and a p-value could not go below 1 / 9."""

MAX_EXCESS = 50.0
"""An image so far off is off, and its exponential must stay a number."""

MAX_AXES = 128
"""Principal axes of one kind of feature. More tell nothing apart, and make a model of millions of numbers."""

STEP_FLOOR = 2e-3
"""Steps below a quarter of a level of brightness are no edge."""

_SCALE_FLOOR = 1e-2
"""A number that hardly varies among real images would otherwise count for more than all the others."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Squared Mahalanobis distance, per number, in the features of one kind.

    `axes` (numbers, k) are the principal axes of the scaled features, with their shrunk `variances` (k); the
    directions beyond have the variance `rest`. `usual` and `spread` are the median of the logarithms of
    images that were left out, and how far their 90 % quantile is above it.
    """

    centre: Floats
    scale: Floats
    axes: Floats
    variances: Floats
    rest: float
    usual: float = 0.0
    spread: float = 1.0

    def excess(self, values: Floats) -> Floats:
        """0 for an ordinary image, 1 for one that is odder than nine in ten."""
        excess: Floats = (np.log(self.squared(values)) - self.usual) / self.spread
        return excess

    def squared(self, values: Floats) -> Floats:
        scaled = (values - self.centre) / self.scale
        along = np.square(scaled @ self.axes)
        beyond = np.maximum(np.square(scaled).sum(axis=1) - along.sum(axis=1), 0.0)
        total: Floats = (along / self.variances).sum(axis=1) + beyond / self.rest
        return np.maximum(total / len(self.centre), 1e-12)


@dataclass(frozen=True, slots=True)
class Reference:
    """Scores of images that were left out, ascending; those of one group have weights that sum to 1."""

    scores: Floats
    weights: Floats

    def p_values(self, scores: Floats) -> Floats:
        at_least = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)
        as_odd = at_least[np.searchsorted(self.scores, scores, side="left")]  # NaN sorts behind all numbers
        p_values: Floats = (1.0 + as_odd) / (1.0 + self.weights.sum())
        return p_values


@dataclass(frozen=True, slots=True)
class Typicality:
    """`distances` by kind of feature; `references` are the real images, and their variations if there are
    any."""

    distances: Mapping[str, Distance]
    references: tuple[Reference, ...]

    def score(self, features: Features) -> Floats:
        """The higher, the odder. ManifestError if the features are not those it was fitted on."""
        for kind, one in self.distances.items():
            if kind not in features or features[kind].shape[1] != len(one.centre):
                raise ManifestError(
                    f"typicality compares {len(one.centre)} numbers of {kind!r}, which this verifier does not"
                    " give",
                    hint="begin another run",
                )
        return _combined(
            [one.excess(np.asarray(features[kind], np.float64)) for kind, one in self.distances.items()]
        )

    def p_values(self, features: Features) -> Floats:
        """Of real images, at most a share of p has a p-value of at most p; of their variations as well. NaN
        features give the lowest there is, 1 / (real images + 1)."""
        scores = self.score(features)
        p_values: Floats = np.max([each.p_values(scores) for each in self.references], axis=0)
        return p_values


# ---- fitting -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FittedKind:
    """The distance in one kind of feature, and the excess of each row by a fit without its group."""

    distance: Distance
    excess: Floats


def fit_typicality(features: Features, groups: NDArray[np.intp], kinds: Sequence[str]) -> Typicality:
    """Fit on `features` of `kinds`. Row i belongs to real image `groups[i]`, numbered from 0; the first of
    its rows is the real image itself.

    Scores of the real images come from fits without their group, so none is judged by a fit on itself.
    """
    return combine(fit_kinds(features, groups, kinds), groups, kinds)


def fit_kinds(features: Features, groups: NDArray[np.intp], kinds: Iterable[str]) -> dict[str, FittedKind]:
    """What `combine` needs of each kind."""
    if (count := len(np.bincount(groups))) < MIN_GROUPS:
        raise ValueError(f"{count} real images, {MIN_GROUPS} needed")
    fits = {}
    for kind in kinds:
        values = np.asarray(features[kind], np.float64)
        logs = np.log(_left_out(values, groups))
        usual, high = (float(quantile) for quantile in np.quantile(logs, (0.5, 0.9)))
        spread = max(high - usual, 1e-6)
        distance = replace(_fit_distance(values), usual=usual, spread=spread)
        fits[kind] = FittedKind(distance, (logs - usual) / spread)
    return fits


def combine(fits: Mapping[str, FittedKind], groups: NDArray[np.intp], kinds: Sequence[str]) -> Typicality:
    """Typicality by some of the kinds that were fitted."""
    scores = _combined([fits[kind].excess for kind in kinds])
    real = np.zeros(len(groups), bool)
    real[np.unique(groups, return_index=True)[1]] = True
    references = [_reference(scores[rows], groups[rows]) for rows in (real, ~real) if rows.any()]
    return Typicality({kind: fits[kind].distance for kind in kinds}, tuple(references))


def _reference(scores: Floats, groups: NDArray[np.intp]) -> Reference:
    order = np.argsort(scores, kind="stable")
    return Reference(scores[order], (1.0 / np.bincount(groups)[groups])[order])


def _combined(excesses: Sequence[Floats]) -> Floats:
    """The logarithm of the mean exponential: one very odd kind of feature is enough, and several that are
    somewhat odd add up."""
    capped = np.minimum(np.stack(excesses), MAX_EXCESS)
    combined: Floats = np.log(np.exp(capped).mean(axis=0))
    return combined


def _left_out(values: Floats, groups: NDArray[np.intp]) -> Floats:
    """The squared distance of each row by a fit without its fold; groups stay whole."""
    order = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    squared = np.empty(len(values))
    for fold in range(FOLDS):
        judged = np.isin(groups, order[fold::FOLDS])
        squared[judged] = _fit_distance(values[~judged]).squared(values[judged])
    return squared


def _fit_distance(values: Floats) -> Distance:
    centre, spread = values.mean(axis=0), values.std(axis=0)
    scale = spread + _SCALE_FLOOR * spread.mean() + 1e-9
    scaled = (values - centre) / scale
    share, mean_variance = _shrinkage(scaled)
    variances, axes = _principal_axes(scaled)
    shrunk = (1.0 - share) * variances + share * mean_variance
    left = len(centre) - len(variances[:MAX_AXES])
    beyond = shrunk[MAX_AXES:].sum() + share * mean_variance * (len(centre) - len(variances))
    rest = beyond / left if left else mean_variance
    return Distance(
        centre, scale, axes[:, :MAX_AXES], np.maximum(shrunk[:MAX_AXES], 1e-9), max(float(rest), 1e-9)
    )


def _principal_axes(scaled: Floats) -> tuple[Floats, Floats]:
    """Variances, the largest first, and their axes. Rows and columns have the same variances, and the smaller
    matrix has them all."""
    rows, numbers = scaled.shape
    if rows >= numbers:
        variances, axes = np.linalg.eigh(scaled.T @ scaled / rows)
        return np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    ascending, rotations = np.linalg.eigh(scaled @ scaled.T / rows)
    variances, rotations = ascending[::-1], rotations[:, ::-1]
    real = variances > 1e-8 * variances.max()
    return variances[real], scaled.T @ rotations[:, real] / np.sqrt(variances[real] * rows)


def _shrinkage(scaled: Floats) -> tuple[float, float]:
    """Ledoit and Wolf's share of the identity in the covariance of centred rows, and their mean variance."""
    rows, numbers = scaled.shape
    gram = scaled @ scaled.T if rows < numbers else scaled.T @ scaled
    squared = float(np.square(gram).sum()) / rows**2
    mean_variance = float(np.trace(gram)) / rows / numbers
    far = squared / numbers - mean_variance**2
    noise = (float(np.square(np.square(scaled).sum(axis=1)).sum()) / rows - squared) / rows / numbers
    return (min(1.0, max(0.0, noise / far)) if far > 0.0 else 1.0), max(mean_variance, 1e-9)


# ---- choosing ----------------------------------------------------------------------------------


def choose(kept: Mapping[Candidate, Mapping[str, float]]) -> tuple[Candidate, dict[str, float]]:
    """The candidate that keeps the fewest challenges, of equals the first. `kept[candidate][kind]` is the
    share of a kind that it takes for real.

    The second result has, for each kind, the share kept by the candidate that the other kinds would choose:
    what to expect of a kind that was not chosen on.
    """

    def best(without: str | None) -> Candidate:
        totals = {
            name: sum(share for kind, share in shares.items() if kind != without)
            for name, shares in kept.items()
        }
        return min(totals, key=totals.__getitem__)

    kinds = next(iter(kept.values()))
    return best(None), {kind: kept[best(kind)][kind] for kind in kinds}


# ---- as a file ---------------------------------------------------------------------------------


def to_bytes(model: Typicality) -> bytes:
    """As safetensors, in single precision."""
    arrays: dict[str, Floats] = {}
    for kind, one in model.distances.items():
        numbers = np.array([one.rest, one.usual, one.spread])
        parts = (one.centre, one.scale, one.axes, one.variances, numbers)
        arrays |= {f"{kind}/{name}": part for name, part in zip(_PARTS, parts, strict=True)}
    for number, each in enumerate(model.references):
        arrays |= {f"{_REFERENCE}{number}/scores": each.scores, f"{_REFERENCE}{number}/weights": each.weights}
    return bytes(save({name: np.ascontiguousarray(values, "<f4") for name, values in arrays.items()}))


def from_bytes(data: bytes) -> Typicality:
    """Raises ValueError if it is not what `to_bytes` gives."""
    try:
        arrays = _read_arrays(data)
        groups: dict[str, dict[str, Floats]] = {}
        for name, values in arrays.items():
            kind, _, part = name.rpartition("/")
            groups.setdefault(kind, {})[part] = values
        distances = {
            kind: _read_distance(*(parts[name] for name in _PARTS))
            for kind, parts in groups.items()
            if not kind.startswith(_REFERENCE)
        }
        references = tuple(
            _read_reference(parts["scores"], parts["weights"])
            for kind, parts in sorted(groups.items())
            if kind.startswith(_REFERENCE)
        )
    except KeyError as error:
        raise ValueError(f"no model of typicality: it lacks {error}") from error
    if not distances or not references:
        raise ValueError("no distances, or no references")
    return Typicality(distances, references)


def read_typicality(data: bytes, sha256: str) -> Typicality:
    """ValueError if it is not the file of that hash, or no model."""
    check_content(data, sha256)
    return from_bytes(data)


def check_content(data: bytes, sha256: str) -> None:
    """ValueError unless it is the file that is named by that hash."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its content is not what its name says")


_PARTS = ("centre", "scale", "axes", "variances", "numbers")
_REFERENCE = "reference"


def _read_arrays(data: bytes) -> dict[str, Floats]:
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, TypeError) as error:  # a KeyError for a type that numpy lacks
        raise ValueError(f"no arrays of single precision: {error}") from error
    if len(arrays) > MAX_ARRAYS:
        raise ValueError(f"more than {MAX_ARRAYS} arrays")
    if any(values.dtype != np.float32 for values in arrays.values()):
        raise ValueError("single precision expected")
    return {name: values.astype(np.float64) for name, values in arrays.items()}


def _read_reference(scores: Floats, weights: Floats) -> Reference:
    _check_finite((scores, weights), dimensions=1)
    # In single precision, scores that differ may become equal, and weights of one image sum to nearly 1.
    if scores.shape != weights.shape or (np.diff(scores) < 0.0).any() or not (weights > 0.0).all():
        raise ValueError("scores must ascend, each with a weight above 0")
    if weights.sum() < MIN_GROUPS - 0.5:
        raise ValueError(f"fewer than {MIN_GROUPS} images to compare with")
    return Reference(scores, weights)


def _read_distance(
    centre: Floats, scale: Floats, axes: Floats, variances: Floats, numbers: Floats
) -> Distance:
    _check_finite((centre, scale, variances, numbers), dimensions=1)
    _check_finite((axes,), dimensions=2)
    if (
        not len(centre)
        or scale.shape != centre.shape
        or axes.shape != (len(centre), len(variances))
        or len(variances) > min(MAX_AXES, len(centre))
        or len(numbers) != 3
    ):
        raise ValueError("a distance whose parts do not fit together")
    rest, usual, spread = numbers.tolist()
    if not (min(rest, spread) > 0.0 and (scale > 0.0).all() and (variances > 0.0).all()):
        raise ValueError("a distance needs scales and variances above 0")
    return Distance(centre, scale, axes, variances, rest, usual, spread)


def _check_finite(arrays: Iterable[Floats], dimensions: int) -> None:
    if any(array.ndim != dimensions or not np.isfinite(array).all() for array in arrays):
        raise ValueError(f"finite numbers in {dimensions} dimensions expected")


# ---- features of plain pixels ------------------------------------------------------------------


def pixel_features(images: NDArray[Any], kinds: Collection[str] = PIXEL_KINDS) -> dict[str, Singles]:
    """Features that need no model, of images (N, height, width, 3) of one size, at least 16 pixels a side, as
    a verifier's preprocessing gives them: about -1 to 1.

    `sharpness` has the logarithmic energy of four octaves, `relative_sharpness` the same over the contrast.
    `seams` has how far straight lines from edge to edge stand out, in whole and half pictures, and `cuts` how
    far those do that are one pixel wide: collages have them, and tiles that were decoded apart.
    """
    # Channel by channel, because numpy is slow along a last axis of three.
    colours = [np.ascontiguousarray(images[..., channel], np.float32) for channel in range(3)]
    grey = _mean(colours)
    features = {}
    if {"sharpness", "relative_sharpness"} & set(kinds):
        octaves = _octaves(grey)
        contrast = np.log(grey.std(axis=(1, 2)) + 1e-3)
        features = {"sharpness": octaves, "relative_sharpness": octaves - contrast[:, None]}
    if "seams" in kinds:
        features["seams"] = _both_ways(_seams, [grey])
    if "cuts" in kinds:
        features["cuts"] = _both_ways(_cuts, colours)
    return {kind: features[kind] for kind in PIXEL_KINDS if kind in kinds}


def _mean(channels: Sequence[Singles]) -> Singles:
    mean: Singles = sum(channels[1:], start=channels[0]) / np.float32(len(channels))
    return mean


def _both_ways(measure: Callable[[Singles, int], Singles], channels: Sequence[Singles]) -> Singles:
    """Of vertical and of horizontal lines: `measure` takes the steps of brightness across them, (N, height,
    width), and the axis along the lines."""
    ways = []
    for across, along in ((2, 1), (1, 2)):
        steps = _mean([np.abs(np.diff(channel, axis=across)) for channel in channels])
        ways.append(measure(steps, along))
    return np.concatenate(ways, axis=1)


def _octaves(grey: Singles) -> Singles:
    energies = []
    for _ in range(4):
        rows, columns = 2 * (grey.shape[1] // 2), 2 * (grey.shape[2] // 2)
        quarters = [grey[:, row:rows:2, column:columns:2] for row in (0, 1) for column in (0, 1)]
        half = _mean(quarters)
        detail = _mean([np.square(quarter - half) for quarter in quarters]).mean(axis=(1, 2))
        energies.append(np.log(detail + np.float32(1e-10)) / 2)
        grey = half
    return np.stack(energies, axis=1)


def _seams(steps: Singles, along: int) -> Singles:
    first, second = np.array_split(steps, 2, axis=along)
    strengths = []
    for part in (steps, first, second):
        edges = part.mean(axis=along)
        usual = np.median(edges, axis=1, keepdims=True) + STEP_FLOOR
        strengths.append(np.log(_strongest(edges) / usual + 1e-3))
    return np.concatenate(strengths, axis=1).astype(np.float32)


def _cuts(steps: Singles, along: int) -> Singles:
    """Of the steps what exceeds those on either side, and in how many places along the line it does."""
    if along == 1:
        before, inner, after = steps[:, :, :-2], steps[:, :, 1:-1], steps[:, :, 2:]
    else:
        before, inner, after = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
    excess = np.clip(inner - np.maximum(before, after), 0.0, 0.25)
    edges, alone = excess.mean(axis=along), (excess > 0.5 * inner + 0.01).mean(axis=along)
    usual = np.median(edges, axis=1, keepdims=True) + STEP_FLOOR
    strengths = [np.log(_strongest(edges) / usual + 0.05), np.log(_strongest(alone) + 0.02)]
    return np.concatenate(strengths, axis=1).astype(np.float32)


def _strongest(edges: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The first, third and seventh: pictures of two, four and eight tiles have as many."""
    return np.sort(edges, axis=1)[:, [-1, -3, -7]]
