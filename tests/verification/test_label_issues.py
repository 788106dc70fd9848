"""Real images that look like another class are named, so that somebody looks at their labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.verification.label_issues import describe_label_issues, find_label_issues

CLASSES = ("cat", "dog", "fox")
LABELS = np.array([0, 0, 0, 1, 1, 1], np.intp)
SURE = np.array(
    [[0.9, 0.1, 0], [0.8, 0.2, 0], [0.05, 0.95, 0], [0.1, 0.9, 0], [0.2, 0.8, 0], [0.4, 0.6, 0]], np.float64
)
IDS = [f"real/{number}.png" for number in range(6)]


def test_an_image_that_another_class_fits_as_well_as_its_own_images_is_named():
    [issue] = find_label_issues(IDS, CLASSES, LABELS, SURE, CLASSES)
    assert (issue.id, issue.class_name, issue.looks_like) == ("real/2.png", "cat", "dog")
    assert describe_label_issues([issue], 6) == (
        "1 of 6 real images looks more like another class: real/2.png (cat) like dog, 95%"
    )


def test_a_class_that_the_verifier_cannot_judge_accuses_nobody():
    assert find_label_issues(IDS, CLASSES, LABELS, SURE, {"cat"}) == []
    assert find_label_issues(IDS, CLASSES, LABELS, SURE, {"cat", "fox"}) == [], "no image is labelled fox"


def test_images_that_nothing_judged_are_passed_over():
    unknown = SURE.copy()
    unknown[2] = np.nan
    labels = LABELS.copy()
    labels[2] = -1
    assert find_label_issues(IDS, CLASSES, labels, unknown, CLASSES) == []
    assert describe_label_issues([], 6) == ""


@given(st.lists(st.tuples(st.integers(-1, 2), *[st.floats(0.01, 1)] * 3), max_size=30))
def test_no_image_is_said_to_look_like_its_own_class_or_less_than_its_own(rows):
    labels = np.array([row[0] for row in rows], np.intp)
    probabilities = np.array([row[1:] for row in rows], np.float64).reshape(-1, 3)
    for issue in find_label_issues([*map(str, range(len(rows)))], CLASSES, labels, probabilities, CLASSES):
        row = int(issue.id)
        assert issue.class_name == CLASSES[labels[row]] != issue.looks_like
        assert issue.probability == pytest.approx(probabilities[row, CLASSES.index(issue.looks_like)])
        assert issue.probability > probabilities[row, labels[row]]
