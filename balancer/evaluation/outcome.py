"""From what each arm predicted to the outcome that is kept and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.evaluation import sentence
from balancer.evaluation.arms import ACCEPTED, Job, exposures, members_of, thinned_name, worth
from balancer.evaluation.decision import (
    ClassVerdict,
    Comparison,
    decide,
    judge_classes,
    leave_out,
)
from balancer.evaluation.experiment import Choice, Design
from balancer.evaluation.statistics import Interval, Needed, compare, estimate, images_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRINTED = (
    "decision",
    "margin",
    "metric",
    "seeds",
    "arms",
    "difference",
    "classes",
    "recommended",
    "sentence",
    "baseline",
    "notes",
)
"""Of the outcome, by `evaluate --json`; the file also says what was chosen and shown."""


def summarise(
    design: Design,
    choice: Choice,
    jobs: Mapping[str, Sequence[Job]],
    correct: Mapping[str, NDArray[np.bool_]],
    labels: NDArray[np.int64],
    margin: float,
    draws: int,
    least_test: int,
) -> dict[str, Any]:
    """`draws` are the images that one training draws."""
    comparison = Comparison(
        correct, labels, design.classes, design.counted, choice.baseline.name, design.metric, margin
    )
    overall, verdicts = decide(comparison), judge_classes(comparison)
    places = comparison.places
    images = images_of(labels[places], design.metric)
    estimates = {name: estimate(each[:, places].astype(float), images) for name, each in correct.items()}
    real, accepted = _by_class(design, real=True), _by_class(design, real=False)
    left_out = leave_out(overall.decision, verdicts, real, accepted)
    basis = choice.baseline.name, design.seeds, len(places)
    lines = [
        sentence.unseen_sentence(*_unseen(design, comparison, real)),
        sentence.untested_sentence(verdicts, least_test),
        _worth(design, estimates, sum(real.values()), sum(accepted.values()), jobs, choice.baseline.name),
        sentence.moved_sentence(choice.real_share, left_out, overall.decision),
    ]
    return {
        "decision": overall.decision,
        "sentence": sentence.decision_sentence(overall, design.metric, margin, *basis),
        "margin": margin,
        "metric": design.metric,
        "seeds": design.seeds,
        "arms": {name: found.as_dict() for name, found in estimates.items()},
        "difference": overall.difference.as_dict(),
        "sign_flip_p": overall.sign_flip,
        "baseline": choice.baseline.name,
        "classes": {name: _class_dict(verdict) for name, verdict in verdicts.items()},
        "recommended": {"real_share": choice.real_share, "classes": left_out},
        "needed": None if overall.needed is None else _ways(overall.needed),
        "chosen": choice.as_dict(),
        "exposures": {
            name: exposures(each[0], design.pool, draws, design.classes) for name, each in jobs.items()
        },
        "notes": [line for line in lines if line],
    }


def _by_class(design: Design, *, real: bool) -> Counter[str]:
    pool = design.pool
    which = pool.is_real if real else pool.is_accepted
    return Counter(design.classes[label] for label in pool.labels[which])


def _unseen(
    design: Design, comparison: Comparison, real: Mapping[str, int]
) -> tuple[list[str], Interval | None]:
    """The tested classes without real training images, and the difference over the others."""
    unseen = [design.classes[label] for label in design.counted if not real.get(design.classes[label])]
    others = [label for label in design.counted if real.get(design.classes[label])]
    if not unseen or not others:
        return unseen, None
    places = np.flatnonzero(np.isin(comparison.labels, others))
    images = images_of(comparison.labels[places], design.metric)
    return unseen, compare(comparison.differences(places), images, comparison.margin)


def _worth(
    design: Design,
    estimates: Mapping[str, Interval],
    real: int,
    accepted: int,
    jobs: Mapping[str, Sequence[Job]],
    baseline: str,
) -> str:
    """Of the curve over the number of real images; empty if the data allow none, or if some class has no real
    images: more of the others would never show it."""
    real_labels = set(design.pool.labels[design.pool.is_real].tolist())
    if not design.fractions or not real_labels.issuperset(design.counted):
        return ""
    names = [*(thinned_name(fraction) for fraction in design.fractions), baseline]
    counts = [len(members_of(jobs[name][0], design.pool)) for name in names]
    scores = [estimates[name].mean for name in names]
    return sentence.worth_sentence(worth(counts, scores, estimates[ACCEPTED].mean), real, accepted)


def _class_dict(verdict: ClassVerdict) -> dict[str, Any]:
    found, ways = verdict.difference, _ways(verdict.needed or Needed(None, None))
    return {
        "decision": verdict.decision,
        "difference": None if found is None else found.mean,
        "low": None if found is None else found.low,
        "high": None if found is None else found.high,
        "test_images": verdict.test_images,
        "needed": ways["test_images"],
        "needed_seeds": ways["seeds"],
        "needed_together": ways["together"],
    }


def _ways(needed: Needed) -> dict[str, Any]:
    together = None if needed.together is None else [*needed.together]
    return {"test_images": needed.test_images, "seeds": needed.seeds, "together": together}
