"""Does the verifier say no to images that are none of the classes? How it is told to, and the proof.

Typicality compares a candidate with the labelled real images; words compare the classes with what they are
not. Which features typicality looks at is picked by challenge images. What is stated of a kind of challenge
is what was measured with the features that the other kinds would pick.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.cells import CLASS_PROPERTY
from balancer.config.schema import OFF_DOMAIN
from balancer.errors import UsageError
from balancer.scheduling.prompts import ladder
from balancer.text.quantities import counted, percent
from balancer.verification.calibration import LEAST_PROBABILITY, calibrated
from balancer.verification.challenges import BLENDED
from balancer.verification.typicality import (
    FINAL,
    Features,
    Floats,
    Typicality,
    choose,
    combine,
    fit_kinds,
    to_bytes,
)
from balancer.verification.verdict import BLANK_DEVIATION, NO_LIMITS, DomainLimits

if TYPE_CHECKING:
    from balancer.config.schema import Config

MIN_IMAGES = 20
"""Labelled images that typicality needs. With n of them no p-value is below 1 / (n + 1)."""

LISTED = 3
"""Images that a note names."""

MOST_LEFT_OUT = 20
"""Classes that are left out in turn."""

UNJUDGED = "nothing is rejected as off_domain: verification.unjudged names it"

MIN_DOMAIN_SCORE = 0.05
"""Words alone reject an image only if what they name is nineteen times as likely as the classes: a verifier
is less sure of soft or dark images, and those of something else are usually far below."""

_PIXELS = ("sharpness", "relative_sharpness", "seams")
_TEXTURES = ("block1.moments", "block1.variogram", "block2.variogram")
WITHOUT_PLACES = (
    ("block1.moments",),
    ("block1.moments", *_PIXELS),
    (*_TEXTURES, *_PIXELS),
    (*_TEXTURES, *_PIXELS, "cuts"),
)
WITH_PLACES = (
    (*_TEXTURES, "block1.grid", *_PIXELS),
    (*_TEXTURES, "block1.grid", *_PIXELS, "cuts"),
)
"""Where things are in a picture tells much, but classes without a labelled image may have them elsewhere."""

WITHOUT_LAYERS = ((FINAL, *_PIXELS),)
"""For a model that does not give out its layers."""

KINDS = tuple(
    dict.fromkeys(kind for kinds in (*WITHOUT_PLACES, *WITH_PLACES, *WITHOUT_LAYERS) for kind in kinds)
)
"""Every kind of feature that may be picked."""


@dataclass(frozen=True, slots=True)
class SeenImages:
    """Images as a verifier sees them: `features` by kind, (images, numbers), uncalibrated `probabilities` of
    each property, (images, values), and (images) each, `domain_scores`, and mean and standard deviation of
    the luminance."""

    features: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, Floats]
    domain_scores: Floats
    brightness: Floats
    deviation: Floats


@dataclass(frozen=True, slots=True)
class SeenReal:
    """A labelled real image and variations of it: `features` by kind, (1 + variations, numbers), the first
    row of the image itself, as are its `domain_score` and its `head_features`, (numbers) by kind."""

    features: Mapping[str, NDArray[np.float32]]
    domain_score: float
    head_features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RealImage:
    """`group` is the same for images that show the same, `name` is for messages."""

    class_name: str
    group: int
    seen: SeenReal
    name: str = ""


@dataclass(frozen=True, slots=True)
class Challenged:
    """Of `images` of a kind, the share that some cell would accept: `before` anything said no, and now."""

    kind: str
    images: int
    before: float
    accepted: float


@dataclass(frozen=True, slots=True)
class DomainProof:
    """What a run may rely on, and what it costs.

    `images` are the labelled images that were compared, and `by_class` how many of each class. `picked` are
    the kinds of features of typicality, empty without it, and `sha256` is that of its file. `lost` is the
    share of the labelled images that typicality and words reject, None without enough of them to say.
    `lost_unseen` is that of a class without labelled images, as found by leaving out each class in turn; None
    if there is no such class, or typicality has no part in it. `notes` say why one of both is not used.
    """

    images: int
    limits: DomainLimits
    picked: tuple[str, ...]
    sha256: str | None
    lost: float | None
    challenges: tuple[Challenged, ...]
    by_class: Mapping[str, int]
    notes: tuple[str, ...] = ()
    lost_unseen: float | None = None

    def as_unjudged(self) -> DomainProof:
        """What it comes to if nothing is rejected as `off_domain`."""
        challenges = tuple(replace(each, accepted=each.before) for each in self.challenges)
        return replace(
            self, limits=NO_LIMITS, lost=0.0, lost_unseen=None, challenges=challenges, notes=(UNJUDGED,)
        )

    @property
    def judged(self) -> tuple[Challenged, ...]:
        """All but blends of two classes, which are half right."""
        return tuple(each for each in self.challenges if each.kind != BLENDED)

    def accepted_share(self, without: frozenset[str] = frozenset()) -> float:
        """Of all challenge images but those of some kinds."""
        counts = [
            (each.images * each.accepted, each.images) for each in self.judged if each.kind not in without
        ]
        accepted, images = (sum(column) for column in zip(*counts, strict=True)) if counts else (0.0, 0)
        return accepted / images if images else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accepted_share": self.accepted_share(),
            "images": sum(each.images for each in self.judged),
            "by_kind": {
                each.kind: {"images": each.images, "before": each.before, "accepted": each.accepted}
                for each in self.challenges
            },
            "true_lost": self.lost,
            "true_lost_unseen": self.lost_unseen,
            "labelled_images": self.images,
            "by_class": dict(self.by_class),
            "typicality": self.sha256,
            "features": list(self.picked),
            "min_typicality": self.limits.typicality,
            "min_domain_score": self.limits.domain_score,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> DomainProof:
        """Raises AttributeError, KeyError or TypeError if it is not what `as_dict` gives."""
        return cls(
            images=document["labelled_images"],
            limits=DomainLimits(document["min_typicality"], document["min_domain_score"]),
            picked=tuple(document["features"]),
            sha256=document["typicality"],
            lost=document["true_lost"],
            challenges=tuple(Challenged(kind, **entry) for kind, entry in document["by_kind"].items()),
            by_class=document["by_class"],
            notes=tuple(document["notes"]),
            lost_unseen=document.get("true_lost_unseen"),  # runs begun before it was asked lack it
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """`typicality` is the file that `proof.sha256` names, None without one."""

    proof: DomainProof
    typicality: bytes | None = field(default=None, repr=False)


# ---- fitting and proving -------------------------------------------------------------------------


def prove_domain(
    real: Sequence[RealImage],
    challenges: Mapping[str, SeenImages],
    temperatures: Mapping[str, float],
    config: Config,
) -> Domain:
    """Choose what says no, and measure to how many of the `challenges` it does."""
    before = {kind: accepted_by_some_cell(seen, temperatures, config) for kind, seen in challenges.items()}
    rules, notes = _rules(real, config)
    kept = [
        {
            kind: float((before[kind] & rule.passes(seen.features, seen.domain_scores)).mean())
            for kind, seen in challenges.items()
        }
        for rule in rules
    ]
    chosen_on = [{kind: share for kind, share in shares.items() if kind != BLENDED} for shares in kept]
    best, expected = choose(dict(enumerate(chosen_on)))
    rule, expected = rules[best], kept[best] | expected
    data = None if rule.model is None else to_bytes(rule.model)
    proof = DomainProof(
        images=len(real),
        limits=rule.limits,
        picked=() if rule.model is None else tuple(rule.model.distances),
        sha256=None if data is None else hashlib.sha256(data).hexdigest(),
        lost=rule.lost,
        challenges=tuple(
            Challenged(kind, len(before[kind]), float(before[kind].mean()), expected[kind]) for kind in before
        ),
        by_class=dict(Counter(image.class_name for image in real)),
        notes=tuple(notes),
        lost_unseen=_lost_unseen(real, rule, config),
    )
    return Domain(proof, data)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One way to say no. `lost` is the share of the labelled images to which it does, None if they are too
    few."""

    limits: DomainLimits
    model: Typicality | None
    lost: float | None

    def passes(self, features: Features, domain_scores: Floats) -> NDArray[np.bool_]:
        passing = np.ones(len(domain_scores), bool)
        if self.limits.domain_score is not None:
            passing &= domain_scores > self.limits.domain_score
        if self.model is not None and self.limits.typicality is not None:
            passing &= self.model.p_values(features) > self.limits.typicality
        return passing


def _rules(real: Sequence[RealImage], config: Config) -> tuple[list[_Rule], list[str]]:
    """Those that may be chosen, and why there are no others."""
    wanted = config.verification
    if OFF_DOMAIN in wanted.unjudged:
        return [_Rule(NO_LIMITS, None, 0.0)], [UNJUDGED]
    words, notes = _words(real, wanted.max_true_lost)
    groups = len({image.group for image in real})
    if wanted.typicality == "never" or groups < MIN_IMAGES:
        few = f"{counted(groups, 'different labelled image')}, {MIN_IMAGES} needed"
        never = "verification.typicality is never"
        notes.append(f"no typicality: {never if wanted.typicality == 'never' else few}")
        return [_Rule(DomainLimits(None, score), None, lost) for score, lost in words], notes
    models, rules = _fit(real, _candidates(real, config)), []
    for score, lost in words:
        limit = max(wanted.max_true_lost - (lost or 0.0), _least_limit(groups))
        rules += [_Rule(DomainLimits(limit, score), model, (lost or 0.0) + limit) for model in models]
    return rules, notes


def _words(
    real: Sequence[RealImage], max_lost: float
) -> tuple[list[tuple[float | None, float | None]], list[str]]:
    """Limits of the domain score that may be chosen, each with the share of the labelled images below it, and
    which images these are. Of many images one may always be odd."""
    rejected = [image.name for image in real if not image.seen.domain_score > MIN_DOMAIN_SCORE]
    if not rejected:
        return [(MIN_DOMAIN_SCORE, 0.0 if real else None), (None, 0.0 if real else None)], []
    share = len(rejected) / len(real)
    names = ", ".join(rejected[:LISTED])
    which = f"{len(rejected)} of the {counted(len(real), 'labelled image')}, such as {names}"
    if len(rejected) <= max(max_lost * len(real), 1 if len(real) >= MIN_IMAGES else 0):
        # With words first: of rules that keep equally many, the first is chosen.
        return [(MIN_DOMAIN_SCORE, share), (None, 0.0)], [f"words reject {which}"]
    return [(None, 0.0)], [f"words do not decide: they would reject {which}"]


def _candidates(real: Sequence[RealImage], config: Config) -> list[tuple[str, ...]]:
    """The sets of kinds of features that typicality may look at."""
    everywhere = {image.class_name for image in real} >= set(config.classes)
    available = real[0].seen.features.keys()
    sets = (*WITHOUT_PLACES, *(WITH_PLACES if everywhere else ()))
    return [kinds for kinds in sets if available >= set(kinds)] or [*WITHOUT_LAYERS]


def _fit(real: Sequence[RealImage], candidates: Sequence[tuple[str, ...]]) -> list[Typicality]:
    used = dict.fromkeys(kind for kinds in candidates for kind in kinds)
    features = {
        kind: np.concatenate([image.seen.features[kind] for image in real]).astype(np.float64)
        for kind in used
    }
    rows = len(next(iter(real[0].seen.features.values())))
    groups = np.repeat(np.unique([image.group for image in real], return_inverse=True)[1], rows)
    fits = fit_kinds(features, groups, used)
    return [combine(fits, groups, kinds) for kinds in candidates]


def _lost_unseen(real: Sequence[RealImage], rule: _Rule, config: Config) -> float | None:
    """Of the images of a class, the share that is rejected if the others are all that is known; the mean over
    classes."""
    classes = sorted({image.class_name for image in real})
    if rule.model is None or rule.limits.typicality is None or classes == sorted(config.classes):
        return None
    shares = []
    for name in classes[:MOST_LEFT_OUT]:
        own = [image for image in real if image.class_name == name]
        groups = {image.group for image in own}
        others = [image for image in real if image.group not in groups]
        if (known := len({image.group for image in others})) < MIN_IMAGES:
            continue
        [model] = _fit(others, [tuple(rule.model.distances)])
        limits = replace(rule.limits, typicality=max(rule.limits.typicality, _least_limit(known)))
        features = {
            kind: np.concatenate([image.seen.features[kind][:1] for image in own]) for kind in model.distances
        }
        scores = np.array([image.seen.domain_score for image in own])
        shares.append(1.0 - float(_Rule(limits, model, None).passes(features, scores).mean()))
    return sum(shares) / len(shares) if shares else None


def _least_limit(groups: int) -> float:
    """No p-value is lower than 1 / (n + 1), so no lower limit would reject anything."""
    return (1.0 + 1e-9) / (groups + 1.0)


def lowest_threshold(config: Config) -> float:
    """Of all attempts, the fallback included."""
    return min(rung.threshold for rung in ladder(config))


def accepted_by_some_cell(
    seen: SeenImages, temperatures: Mapping[str, float], config: Config
) -> NDArray[np.bool_]:
    """Which images some cell would accept, at the lowest threshold of any attempt, if nothing asked whether
    they are one of the classes at all."""
    wanted = config.verification
    threshold = lowest_threshold(config)
    low, high = wanted.brightness
    passes = (seen.deviation >= BLANK_DEVIATION) & (seen.brightness >= low) & (seen.brightness <= high)
    likely = {
        name: calibrated(np.log(np.maximum(values, LEAST_PROBABILITY)), temperatures.get(name, 1.0))
        for name, values in seen.probabilities.items()
        if name not in wanted.unjudged
    }
    facets = config.facet_axes()
    by_class = np.zeros_like(passes)
    for number, class_name in enumerate(config.classes):
        fits = passes.copy()
        if CLASS_PROPERTY in likely:
            fits &= likely[CLASS_PROPERTY][:, number] >= threshold
        for facet in facets:
            if facet.applies_to(class_name) and facet.name in likely:
                fits &= likely[facet.name].max(axis=1) >= threshold
        by_class |= fits
    return by_class


# ---- results -------------------------------------------------------------------------------------


def refuse_accepted_challenges(proof: DomainProof, config: Config) -> None:
    """UsageError if too many challenge images would be accepted, and `verification.unjudged` does not allow
    it. Where it allows the class to go unjudged, nothing is asked."""
    wanted = config.verification
    if {CLASS_PROPERTY, OFF_DOMAIN} & set(wanted.unjudged):
        return
    allowed = allowed_kinds(config)
    share = proof.accepted_share(allowed)
    if share <= wanted.max_challenge_accepted:
        return
    others = [each for each in proof.judged if each.kind not in allowed]
    worst = sorted(others, key=lambda each: -each.accepted)[:LISTED]
    more = ", ".join([*wanted.unjudged, f"{OFF_DOMAIN}={worst[0].kind}"])
    often = ", ".join(f"{each.kind} ({percent(each.accepted, 1, 1)})" for each in worst)
    raise UsageError(
        f"the verifier would accept {percent(share, 1, 1)} of images that are none of the classes,"
        f" {percent(wanted.max_challenge_accepted, 1, 1)} allowed (verification.max_challenge_accepted);"
        f" most often {often}" + "".join(f"\n  {reason}" for reason in proof.notes),
        hint="label more real images, choose another verification.model, or allow a kind of them:"
        f" verification.unjudged: [{more}]; {OFF_DOMAIN} alone there rejects no image for it",
    )


def allowed_kinds(config: Config) -> frozenset[str]:
    """Challenges that `verification.unjudged` names, as `off_domain=KIND`."""
    prefix = f"{OFF_DOMAIN}="
    return frozenset(
        name.removeprefix(prefix) for name in config.verification.unjudged if name.startswith(prefix)
    )


def summarise(proof: DomainProof) -> str:
    """One line."""
    lost = (
        "no labelled image to say what true ones it costs"
        if proof.lost is None
        else f"of {counted(proof.images, 'labelled image')} about {percent(proof.lost, 1, 1)} would not"
    )
    if proof.lost_unseen is not None:
        lost += f", of those of a class without any about {percent(proof.lost_unseen, 1, 1)}"
    line = (
        f"off_domain: of {sum(each.images for each in proof.judged)} images of none of the classes "
        f"{percent(proof.accepted_share(), 1, 1)} would pass; {lost}"
    )
    return "; ".join((line, *proof.notes))
