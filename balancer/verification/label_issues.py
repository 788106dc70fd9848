"""Real images that the verifier takes for another class than theirs: labels to look at, never to change.

Confident learning (Northcutt, Jiang and Chuang, 2021, arxiv.org/abs/1911.00068): an image is taken for a
class that it shows at least as surely as the images labelled so do on average.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from balancer.text.quantities import counted, listed

MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """`id` is of the image, `looks_like` the class that it is taken for, with its `probability`."""

    id: str
    class_name: str
    looks_like: str
    probability: float


def find_label_issues(
    ids: Sequence[str],
    classes: Sequence[str],
    labels: NDArray[np.intp],
    probabilities: NDArray[np.float64],
    proven: Collection[str],
) -> list[LabelIssue]:
    """The surest first. `labels` (images) index into `classes`, as the columns of `probabilities` do; only
    `proven` classes are compared."""
    columns = [index for index, name in enumerate(classes) if name in proven and (labels == index).any()]
    rows = np.flatnonzero(np.isin(labels, columns))
    if len(columns) < 2:
        return []
    own = probabilities[rows, labels[rows]]
    shown = probabilities[rows][:, columns]
    usual = np.array([own[labels[rows] == column].mean() for column in columns])
    likeliest = np.where(shown >= usual, shown, -1.0).argmax(axis=1)
    other = np.array(columns)[likeliest]
    sure = shown[np.arange(len(rows)), likeliest]
    taken_for_another = (sure >= usual[likeliest]) & (other != labels[rows]) & (sure > own)
    issues = [
        LabelIssue(ids[row], classes[labels[row]], classes[column], float(probability))
        for row, column, probability in zip(
            rows[taken_for_another], other[taken_for_another], sure[taken_for_another], strict=True
        )
    ]
    return sorted(issues, key=lambda issue: (-issue.probability, issue.id))


def describe_label_issues(issues: Sequence[LabelIssue], images: int) -> str:
    """One line; empty without any."""
    if not issues:
        return ""
    found = [
        f"{issue.id} ({issue.class_name}) like {issue.looks_like}, {issue.probability:.0%}"
        for issue in issues
    ]
    named = listed(found, MAX_NAMED, "; ", "; and ")
    verb = "looks" if len(issues) == 1 else "look"
    return f"{len(issues)} of {counted(images, 'real image')} {verb} more like another class: {named}"
