"""For which properties a head judges instead of the words alone, and what that rests on.

Heads are fitted on training images alone. Of the images that had a part in it, all that is reported is out of
fold; the others, such as those of the hold-out, the head itself has judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import UsageError
from balancer.text.quantities import counted
from balancer.verification.head_fitting import FittedHead, fit_head, no_head, words_loss
from balancer.verification.heads import (
    MARGIN,
    Features,
    Floats,
    Head,
    HeadProof,
    Integers,
    better,
    read_head,
    to_bytes,
)

if TYPE_CHECKING:
    from balancer.config.schema import Config

NEVER = "verification.heads is never"


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Row i of every array belongs to image i. `labels` by property index into its `values`, -1 without one;
    `words` are the log-probabilities (images, values), uncalibrated. Near-duplicates share a number in
    `groups`. `may_fit` are the images that a head may be fitted on."""

    values: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, Integers]
    words: Mapping[str, Floats]
    groups: Integers
    may_fit: NDArray[np.bool_]

    def for_fit(self, name: str) -> Integers:
        """The rows that a head of a property is fitted on."""
        return np.flatnonzero(self.may_fit & (self.labels[name] >= 0))


@dataclass(frozen=True, slots=True)
class HeadResult:
    """Whether a head judges a property, and `why`. `examples` by value are the images that it may be fitted
    on, `proof` what came out of it, None if it was not tried. `sha256` and `size` are those of its file, and
    `kinds` the features that it looks at, if it is taken."""

    taken: bool
    why: str
    examples: Mapping[str, int]
    kinds: tuple[str, ...] = ()
    sha256: str | None = None
    size: int = 0
    proof: HeadProof | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "taken": self.taken,
            "why": self.why,
            "examples": dict(self.examples),
            "features": list(self.kinds),
            "sha256": self.sha256,
            "bytes": self.size,
            "out_of_fold": None if self.proof is None else self.proof.as_dict(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> HeadResult:
        """Raises AttributeError, KeyError or TypeError if it is not what `as_dict` gives."""
        proof = document["out_of_fold"]
        return cls(
            taken=document["taken"],
            why=document["why"],
            examples=dict(document["examples"]),
            kinds=tuple(document["features"]),
            sha256=document["sha256"],
            size=document["bytes"],
            proof=None if proof is None else HeadProof.from_dict(proof),
        )


@dataclass(frozen=True, slots=True)
class Heads:
    """`results` by property. Of the heads that are taken, `files` are what `HeadResult.sha256` names, and
    `judged` the calibrated log-probabilities (images, values) of all images that were given."""

    results: Mapping[str, HeadResult]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    judged: Mapping[str, Floats] = field(default_factory=dict, repr=False)

    def load(self, values: Mapping[str, Collection[str]]) -> dict[str, Head]:
        """The heads that are taken, as a run reads them from its folder."""
        return {
            name: read_head(data, self.results[name].sha256 or "", values[name])
            for name, data in self.files.items()
        }

    def by_hash(self) -> list[tuple[str, bytes]]:
        """The sha256 and the content of each file."""
        return [(self.results[name].sha256 or "", data) for name, data in self.files.items()]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For JSON."""
        return {name: result.as_dict() for name, result in self.results.items()}


def choose_heads(
    images: LabelledImages, look: Callable[[], Features], config: Config, *, try_all: bool = False
) -> Heads:
    """Fit heads and decide which of them judge, as `verification.heads` says. `look` gives the features of
    the images, if a head needs them at all. `try_all` fits those too that could not be taken, for the
    figures."""
    results: dict[str, HeadResult] = {}
    files: dict[str, bytes] = {}
    judged: dict[str, Floats] = {}
    for name in images.values:
        if why := _why_none(images, name, config, try_all):
            results[name] = HeadResult(False, why, _examples(images, name))
            continue
        fitted = _fit(images, name, look(), config)
        results[name], data = _result(images, name, fitted, config)
        if results[name].taken:
            files[name] = data
            judged[name] = _judge_all(images, name, fitted, data, look())
    return Heads(results, files, judged)


def _why_none(images: LabelledImages, name: str, config: Config, try_all: bool) -> str:
    """Why no head of a property is fitted; empty if one is."""
    wanted, rows = config.verification, images.for_fit(name)
    labels, groups, values = images.labels[name][rows], images.groups[rows], images.values[name]
    if wanted.heads == "never":
        return NEVER
    if problem := no_head(labels, groups, values, wanted.min_examples):
        return problem
    if name in wanted.unjudged and not try_all:
        return "verification.unjudged names it"
    if wanted.heads == "always" or try_all:
        return ""
    lost = words_loss(labels, groups, images.words[name][rows], values, wanted.min_examples)
    # No head gains more than the words lose, so none need be fitted.
    return f"the words are right: log loss {lost:.2f}" if lost < MARGIN else ""


def _fit(images: LabelledImages, name: str, features: Features, config: Config) -> FittedHead:
    rows = images.for_fit(name)
    return fit_head(
        {kind: numbers[rows] for kind, numbers in features.items()},
        images.labels[name][rows],
        images.groups[rows],
        images.words[name][rows],
        images.values[name],
        config.verification.min_examples,
    )


def _result(
    images: LabelledImages, name: str, fitted: FittedHead, config: Config
) -> tuple[HeadResult, bytes]:
    """The result, and the head as a file."""
    wanted, proof, examples = config.verification, fitted.proof, _examples(images, name)
    taken = name not in wanted.unjudged and (wanted.heads == "always" or better(proof))
    verdict = "better than the words alone" if better(proof) else "not better than the words alone by enough"
    why = f"{verdict}: {compare(proof)}"
    if not taken:
        return HeadResult(False, why, examples, proof=proof), b""
    data = to_bytes(fitted.head)
    sha256 = hashlib.sha256(data).hexdigest()
    return HeadResult(True, why, examples, fitted.head.kinds, sha256, len(data), proof), data


def compare(proof: HeadProof) -> str:
    """Words alone and words and examples, out of fold."""
    return (
        f"log loss {proof.loss:.2f}, words alone {proof.words_loss:.2f};"
        f" mean AUC {proof.mean_auc:.2f}, words alone {proof.mean_words_auc:.2f}"
    )


def _judge_all(
    images: LabelledImages, name: str, fitted: FittedHead, data: bytes, features: Features
) -> Floats:
    """As the head of the file judges, but out of fold where an image had a part in it."""
    head = read_head(data, hashlib.sha256(data).hexdigest(), images.values[name])
    judged = head.log_probabilities({kind: features[kind] for kind in head.kinds}, images.words[name])
    judged[images.for_fit(name)] = fitted.log_probabilities
    return judged


def _examples(images: LabelledImages, name: str) -> dict[str, int]:
    counts = np.bincount(images.labels[name][images.for_fit(name)], minlength=len(images.values[name]))
    return dict(zip(images.values[name], counts.tolist(), strict=True))


# ---- results -----------------------------------------------------------------------------------


def refuse_lacking_heads(heads: Heads, config: Config) -> None:
    """UsageError if heads are to judge always, and there is not one."""
    if config.verification.heads != "always" or heads.files:
        return
    lines = [f"  {name}: {result.why}" for name, result in heads.results.items()]
    raise UsageError(
        "\n".join(["verification.heads is always, and the labelled images allow no head:", *lines]),
        hint="label more training images (folders and metadata of dataset.path), lower"
        " verification.min_examples, or set verification.heads: auto",
    )


def summarise_heads(results: Mapping[str, HeadResult]) -> str:
    """One line."""
    taken = [
        f"{name} is judged by words and {counted(sum(result.examples.values()), 'labelled image')}"
        f" ({compare(result.proof)})"
        for name, result in results.items()
        if result.taken and result.proof is not None
    ]
    reasons: dict[str, list[str]] = {}
    for name, result in results.items():
        if not result.taken:
            reasons.setdefault(result.why, []).append(name)
    others = [f"{', '.join(names)} by words alone ({why})" for why, names in reasons.items()]
    return f"heads: {'; '.join((*taken, *others))}"
