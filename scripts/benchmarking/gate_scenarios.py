"""What is added to a long-tailed subset in each scenario of the gate's trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarking.gate_images import Embedded, Images, Labels

WRONG = 0.4
"""Of the labels in `wrong_labels`."""


@dataclass(frozen=True, slots=True)
class Subset:
    """A long-tailed part of the real images, as places, and the others of each class in random order.
    `missing` is how many images each class has fewer than the largest one."""

    places: NDArray[np.intp]
    others: tuple[NDArray[np.intp], ...]
    missing: tuple[int, ...]
    poisoned: int
    """The class whose images are wrong in the scenario of that name: one of the rarer half."""


@dataclass(frozen=True, slots=True)
class Added:
    embedded: Embedded
    labels: Labels


def subset(images: Images, fewest: int, imbalance: float, filled: int, random: np.random.Generator) -> Subset:
    """Numbers of images fall exponentially, from `imbalance` times the fewest; which class is rare is drawn.
    Classes below `filled` images are filled up to it."""
    last = len(images.classes) - 1
    order = random.permutation(len(images.classes))
    counts = np.empty(len(order), int)
    counts[order] = [round(fewest * imbalance ** (1 - rank / last)) for rank in range(len(order))]
    dealt = [random.permutation(np.flatnonzero(images.labels == label)) for label in range(len(order))]
    return Subset(
        places=np.concatenate([each[:count] for each, count in zip(dealt, counts, strict=True)]),
        others=tuple(each[count:] for each, count in zip(dealt, counts, strict=True)),
        missing=tuple(np.maximum(0, filled - counts).tolist()),
        poisoned=int(random.choice(order[len(order) // 2 :])),
    )


Add = Callable[[Images, Subset, np.random.Generator], Added]


def held_back(part: float) -> Add:
    """Other real images of each class, a part of those that it is missing."""

    def add(images: Images, own: Subset, random: np.random.Generator) -> Added:
        counts = [round(part * count) for count in own.missing]
        return _real(images, np.concatenate([each[:n] for each, n in zip(own.others, counts, strict=True)]))

    return add


def _real(images: Images, places: NDArray[np.intp]) -> Added:
    return Added(images.real[places], images.labels[places])


def wrong_labels(images: Images, own: Subset, random: np.random.Generator) -> Added:
    """As many of each label as in `held_back`, of which a part shows other classes, each as often."""
    count = len(images.classes)
    return _with_wrong(
        images, own, lambda label, wrong: random.choice(_all_but(label, count), wrong).tolist()
    )


def confused_labels(images: Images, own: Subset, random: np.random.Generator) -> Added:
    """As `wrong_labels`, but the wrong ones of a label all show the same other class."""
    order = random.permutation(len(images.classes))
    confused = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return _with_wrong(images, own, lambda label, wrong: [confused[label]] * wrong)


def _all_but(label: int, count: int) -> list[int]:
    return [other for other in range(count) if other != label]


def _with_wrong(images: Images, own: Subset, choose: Callable[[int, int], list[int]]) -> Added:
    """`choose` says which classes so many wrong images of a label show."""
    used, places, labels = [0] * len(images.classes), [], []
    for label, missing in enumerate(own.missing):
        wrong = round(WRONG * missing)
        for shown in [label] * (missing - wrong) + choose(label, wrong):
            places.append(own.others[shown][used[shown]])
            used[shown] += 1
        labels += [label] * missing
    return Added(images.real[np.array(places)], np.array(labels, np.int64))


def near_copies(images: Images, own: Subset, random: np.random.Generator) -> Added:
    """Each class is filled with near-copies of its own images in turn."""
    labels = images.labels[own.places]
    chosen = [np.resize(own.places[labels == label], missing) for label, missing in enumerate(own.missing)]
    places = np.concatenate(chosen)
    return Added(images.copy(places, random), images.labels[places])


def something_else(images: Images, own: Subset, random: np.random.Generator) -> Added:
    chosen = [
        random.choice(np.flatnonzero(images.foreign_labels == label), missing, replace=False)
        for label, missing in enumerate(own.missing)
    ]
    places = np.concatenate(chosen)
    return Added(images.foreign[places], images.foreign_labels[places])


def nothing(images: Images, own: Subset, random: np.random.Generator) -> Added:
    """The same images once more: each is drawn as often as without them."""
    return _real(images, own.places)


def one_poisoned(images: Images, own: Subset, random: np.random.Generator) -> Added:
    """As `held_back`, but what is added to one class shows the others, in equal parts."""
    good = held_back(1.0)(images, own, random)
    label = own.poisoned
    shown = np.resize(_all_but(label, len(images.classes)), own.missing[label])
    embedded = good.embedded.copy()
    embedded[good.labels == label] = images.real[
        [own.others[each][-1 - number] for number, each in enumerate(shown)]
    ]
    return Added(embedded, good.labels)
