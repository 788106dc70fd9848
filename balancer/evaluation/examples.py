"""Which images train, choose and test, and how none of those that test shows in what is trained on.

Validation and test have real images only. Of two images that show the same, the one in the later of train,
validation and test stays, and what was generated from one that is left out goes with it. A picture tests
once: copies of it would make the test look larger than it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from balancer.dataset.near_duplicates import (
    KnownImage,
    find_near_duplicates,
    find_near_duplicates_across,
)
from balancer.errors import UsageError
from balancer.evaluation.statistics import images_to_detect
from balancer.text.quantities import are, counted

if TYPE_CHECKING:
    from balancer.config.schema import CopiesConfig

Role = Literal["train", "validation", "test"]
Kind = Literal["real", "accepted", "rejected"]

VALIDATION_PART = 4
"""One in so many held-out images chooses, where nothing is set apart for that; the others test."""

LEAST_VALIDATION = 2
"""Validation images of a class for it to be in the metric."""

LEAST_CLASSES = 2

NOTED_CHANGE = 0.1
"""A change of recall for which a refusal says how many images tell."""


@dataclass(frozen=True, slots=True)
class Example:
    """Two images are compared by `phash`, `pixel_sha256` and `look`, a centred thumbnail in place of an
    embedding, so that no model decides what counts as the same."""

    id: str
    label: int
    role: Role
    kind: Kind
    phash: str
    pixel_sha256: str
    look: bytes
    parent: str | None = None

    def known(self) -> KnownImage:
        return KnownImage(self.id, self.phash, self.pixel_sha256, self.look)


@dataclass(frozen=True, slots=True)
class Split:
    """Examples of the experiment in the order of their ids, and why others are left out, by id."""

    examples: tuple[Example, ...]
    left_out: Mapping[str, str]

    def of(self, role: Role) -> tuple[Example, ...]:
        return tuple(each for each in self.examples if each.role == role)


def deal_validation(examples: Iterable[Example]) -> list[Example]:
    """Held-out images with one in VALIDATION_PART of each class made a validation image, in the order of a
    hash of their pixels."""
    by_class: dict[int, list[Example]] = {}
    for each in sorted(examples, key=lambda each: (each.pixel_sha256, each.id)):
        by_class.setdefault(each.label, []).append(each)
    dealt = []
    for members in by_class.values():
        part = round(len(members) / VALIDATION_PART)
        dealt += [replace(each, role="validation") for each in members[:part]]
        dealt += [replace(each, role="test") for each in members[part:]]
    return dealt


def keep_apart(examples: Sequence[Example], generated_pixels: frozenset[str], limits: CopiesConfig) -> Split:
    """The examples that may take part. `generated_pixels` are hashes of every generated image of the run,
    whatever became of it."""
    left_out: dict[str, str] = {}
    for each in examples:
        if each.role != "train" and each.kind != "real":
            left_out[each.id] = "generated images do not test"
        elif each.role != "train" and each.pixel_sha256 in generated_pixels:
            left_out[each.id] = "has the pixels of a generated image"
    for role, later in (("train", ("validation", "test")), ("validation", ("test",))):
        there = [each for each in examples if each.id not in left_out]
        near = find_near_duplicates_across(
            [each.known() for each in there if each.role == role],
            [each.known() for each in there if each.role in later],
            limits,
        )
        left_out |= {one: f"shows what {other.id} shows, which is kept apart" for one, other in near.items()}
    for role in ("validation", "test"):
        there = sorted(
            (each for each in examples if each.role == role and each.id not in left_out),
            key=lambda each: each.id,
        )
        again = find_near_duplicates([each.known() for each in there], limits)
        left_out |= {
            one: f"shows what {other.id} shows, which counts already" for one, other in again.items()
        }
    left_out |= _children(examples, left_out)
    kept = sorted((each for each in examples if each.id not in left_out), key=lambda each: each.id)
    return Split(tuple(kept), left_out)


def _children(examples: Sequence[Example], left_out: Mapping[str, str]) -> dict[str, str]:
    """What was made, over any number of steps, from an image that is left out, held out or not among them:
    nobody can say what that shows."""
    parents = {each.id: each.parent for each in examples}
    apart = {each.id for each in examples if each.role != "train"} | left_out.keys()
    found = {}
    for each in examples:
        name, passed = each.parent, {each.id}
        while name is not None and name not in passed:
            if name in apart or name not in parents:
                found[each.id] = f"was made from {name}, which is kept apart or left out"
                break
            passed.add(name)
            name = parents.get(name)
    return found


def counted_classes(split: Split, classes: Sequence[str], least_test: int) -> tuple[int, ...]:
    """Labels of the classes with enough images to choose and to test on.

    UsageError if there are fewer than LEAST_CLASSES, or nothing to compare: it says how many are needed.
    """
    test, validation = (_count(split.of(role)) for role in ("test", "validation"))
    enough = tuple(
        label
        for label in range(len(classes))
        if test[label] >= least_test and validation[label] >= LEAST_VALIDATION
    )
    if len(enough) < LEAST_CLASSES:
        found = ", ".join(
            f"{name} {test[label]} and {validation[label]}" for label, name in enumerate(classes[:20])
        )
        more = f" and {len(classes) - 20} more classes" if len(classes) > 20 else ""
        raise UsageError(
            f"too few held-out real images to test on: {counted(len(enough), 'class', 'classes')} of"
            f" {len(classes)} {'has' if len(enough) == 1 else 'have'} at least {least_test} for the test and"
            f" {LEAST_VALIDATION} for validation, and {LEAST_CLASSES} are needed (test and validation images:"
            f" {found}{more})",
            hint=f"a class needs {-(-least_test * VALIDATION_PART // (VALIDATION_PART - 1))} held-out images"
            f" in all, and {images_to_detect(NOTED_CHANGE)} test images show a change of its recall by"
            f" {NOTED_CHANGE:.0%}: give dataset.splits with validation and test, or --holdout FOLDER",
        )
    train = split.of("train")
    if not any(each.kind == "real" for each in train):
        raise UsageError(
            "no real training image is left, so there is nothing to compare the generated ones with",
            hint="the evaluation is about adding generated images to real ones",
        )
    if not any(each.kind == "accepted" for each in train):
        raise UsageError(
            "no accepted image can be added: there is none, or all show what a held-out image shows",
            hint="`balancer status RUN` counts them",
        )
    return enough


def _count(examples: Iterable[Example]) -> Counter[int]:
    return Counter(each.label for each in examples)


def describe_left_out(split: Split) -> str:
    """A line; empty if nothing was left out."""
    if not split.left_out:
        return ""
    one, why = next(iter(split.left_out.items()))
    count = len(split.left_out)
    return f"{counted(count, 'image')} {are(count)} left out: {one} {why}"
