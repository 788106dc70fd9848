"""The rule: from per-image results to a decision over all and a verdict for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from balancer.evaluation.arms import ACCEPTED
from balancer.evaluation.statistics import (
    ALPHA,
    Interval,
    Needed,
    compare,
    holm,
    images_of,
    images_to_detect,
    needed,
    sign_flip,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Decision = Literal["add", "do_not_add", "cannot_tell"]
Verdict = Literal["help", "harm", "equivalent", "cannot_tell"]

RULE = (
    "The difference is the metric of `accepted` minus that of the baseline, over the same seeds and test"
    " images. `accepted` draws classes, changes images and adjusts its loss as the baseline does. add: the"
    " 95 % interval (BCa bootstrap over seeds and test images) is above 0 and reaches the margin, and a"
    " one-sided sign-flip test over seeds rejects 0 at 5 %. do_not_add: the whole interval is below the"
    " margin. cannot_tell: anything else. A class: equivalent if its recall differs by less than the"
    " margin either way, help or harm if it differs from 0, both at 5 % by Holm over the classes; else"
    " cannot_tell. Learning rate, baseline and real_share are chosen on validation images, with other"
    " seeds."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What test images say: `correct` has for each arm (seeds, images), true where it is right."""

    correct: Mapping[str, NDArray[np.bool_]]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    counted: Sequence[int]
    """Labels of the classes that have enough test images for the metric."""
    baseline: str
    metric: str
    margin: float

    @property
    def places(self) -> NDArray[np.intp]:
        """Of the test images that the metric counts."""
        return np.flatnonzero(np.isin(self.labels, list(self.counted)))

    def differences(self, places: NDArray[np.intp], new: str = ACCEPTED) -> NDArray[np.float64]:
        """(seeds, images): 1 where only the new arm is right, -1 where only the baseline is."""
        ones, others = (self.correct[name][:, places].astype(float) for name in (new, self.baseline))
        differences: NDArray[np.float64] = ones - others
        return differences


@dataclass(frozen=True, slots=True)
class Overall:
    decision: Decision
    difference: Interval
    sign_flip: float
    needed: Needed | None = None
    """Where nobody can tell."""


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """`difference` is of the class's recall, None without enough test images; `needed` is what would tell,
    where nobody can."""

    decision: Verdict
    test_images: int
    difference: Interval | None = None
    needed: Needed | None = None


def decide(tested: Comparison) -> Overall:
    places = tested.places
    images = images_of(tested.labels[places], tested.metric)
    differences = tested.differences(places)
    found = compare(differences, images, tested.margin)
    p_value = sign_flip((differences @ images.each()).tolist())
    decision: Decision = "cannot_tell"
    if found.high < tested.margin:
        decision = "do_not_add"
    elif found.low > 0 and p_value <= ALPHA:
        decision = "add"
    more = None
    if decision == "cannot_tell":
        more = needed(differences, images, _wanted(found, tested.margin))
    return Overall(decision, found, p_value, more)


def judge_classes(tested: Comparison) -> dict[str, ClassVerdict]:
    found: dict[str, tuple[Interval, NDArray[np.float64]]] = {}
    for label in tested.counted:
        places = np.flatnonzero(tested.labels == label)
        differences = tested.differences(places)
        images = images_of(tested.labels[places], "accuracy")
        found[tested.classes[label]] = compare(differences, images, tested.margin), differences
    differs = dict(zip(found, holm([each.p_none for each, _ in found.values()]), strict=True))
    same = dict(zip(found, holm([each.p_margin for each, _ in found.values()]), strict=True))
    verdicts = {}
    for label, name in enumerate(tested.classes):
        count = int(np.sum(tested.labels == label))
        if name in found:
            verdicts[name] = _verdict(*found[name], differs[name], same[name], tested.margin)
        else:
            more = Needed(images_to_detect(tested.margin), None)
            verdicts[name] = ClassVerdict("cannot_tell", count, needed=more)
    return verdicts


def _verdict(
    difference: Interval, differences: NDArray[np.float64], differs: bool, same: bool, margin: float
) -> ClassVerdict:
    count = differences.shape[1]
    if same and -margin < difference.low and difference.high < margin:
        return ClassVerdict("equivalent", count, difference)
    if differs and (difference.low > 0 or difference.high < 0):
        return ClassVerdict("help" if difference.low > 0 else "harm", count, difference)
    labels = np.zeros(count, np.int64)
    more = needed(differences, images_of(labels, "accuracy"), _wanted(difference, margin))
    return ClassVerdict("cannot_tell", count, difference, more)


def _wanted(difference: Interval, margin: float) -> float:
    """Half the width of an interval that would tell, if the difference stays as it is: it leaves out 0, or
    stays within the margin."""
    return max(abs(difference.mean), margin - abs(difference.mean), margin / 2)


def leave_out(
    decision: Decision,
    verdicts: Mapping[str, ClassVerdict],
    real: Mapping[str, int],
    generated: Mapping[str, int],
) -> list[str]:
    """Classes whose generated images are not recommended: those that they harm, or all if they are not to be
    added. A class without real training images keeps its own, because nothing else shows it. Where there is
    such a class, which no baseline predicts, it may have taken the images of one that seems harmed: then only
    the decision counts."""
    comparable = all(real.get(name) for name in verdicts if generated.get(name))
    return [
        name
        for name, verdict in verdicts.items()
        if generated.get(name)
        and real.get(name)
        and (decision == "do_not_add" or (comparable and verdict.decision == "harm"))
    ]
