"""Decisions for tests."""

from __future__ import annotations

import itertools
from typing import Any

from balancer.review.decisions import Decision
from tests.manifest_samples import at

_numbers = itertools.count(1)


def decided(item: str, answer: str = "accept", by: str = "ann", **changes: Any) -> Decision:
    """Each a minute after the one before."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "key": f"key-{number}",
        "item": item,
        "answer": answer,
        "reviewer": by,
        "queue": "estimate",
        "seconds": 1.5,
        "decided_at": at(number),
    }
    return Decision(**{**values, **changes})


def undone(decision: Decision, by: str | None = None) -> Decision:
    return decided(decision.item, "undo", by or decision.reviewer, undoes=decision.key)
