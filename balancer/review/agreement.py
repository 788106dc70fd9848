"""How far people agree with each other, and with themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from balancer.review.decisions import Decision, first_words, not_undone

Pair = tuple[str, str]
"""Two answers on one item."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """`kappa` is Cohen's: 1 for the same answers throughout, 0 for as many as chance would give; None if
    there are no pairs, or if everybody gave one and the same answer throughout, which says nothing."""

    pairs: int
    agreed: int
    kappa: float | None


def cohens_kappa(pairs: Sequence[Pair]) -> Agreement:
    """Cohen (1960): (observed - expected) / (1 - expected), expected from how often either gave each
    answer."""
    agreed = sum(one == other for one, other in pairs)
    if not pairs:
        return Agreement(0, 0, None)
    count = len(pairs)
    expected = sum(
        sum(one == answer for one, _ in pairs) * sum(other == answer for _, other in pairs)
        for answer in {answer for pair in pairs for answer in pair}
    )
    rest = count * count - expected
    return Agreement(count, agreed, (agreed * count - expected) / rest if rest else None)


def within_reviewers(decisions: Iterable[Decision]) -> dict[str, Agreement]:
    """Of each reviewer, between their first and second answer on the same image of the estimate sample."""
    answers: dict[Pair, list[str]] = defaultdict(list)
    for decision in not_undone(decisions):
        if decision.queue == "estimate":
            answers[decision.reviewer, decision.item].append(decision.answer)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for (reviewer, _), given in answers.items():
        if len(given) > 1:
            pairs[reviewer].append((given[0], given[1]))
    return {reviewer: cohens_kappa(of_reviewer) for reviewer, of_reviewer in sorted(pairs.items())}


def between_reviewers(decisions: Iterable[Decision]) -> dict[Pair, Agreement]:
    """Of every two reviewers, on the images of the estimate sample that both decided."""
    words = first_words(decision for decision in decisions if decision.queue == "estimate")
    pairs: dict[Pair, list[Pair]] = defaultdict(list)
    for of_item in words.values():
        for one, other in itertools.combinations(sorted(of_item), 2):
            pairs[one, other].append((of_item[one].answer, of_item[other].answer))
    return {names: cohens_kappa(of_both) for names, of_both in sorted(pairs.items())}
