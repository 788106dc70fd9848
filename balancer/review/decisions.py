"""What people decide about images, and what stands of it."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from balancer.errors import UsageError
from balancer.text.safetext import shortened

Answer = Literal["accept", "reject", "undo"]
Queue = Literal["estimate", "correct"]
Verdict = Literal["accept", "reject", "tie"]

ANSWERS: tuple[Answer, ...] = ("accept", "reject", "undo")
QUEUES: tuple[Queue, ...] = ("estimate", "correct")

REJECT_REASONS: Mapping[str, str] = {
    "class": "shows another class",
    "property": "lacks a property that was asked for",
    "unrecognisable": "shows nothing one can name",
    "unrealistic": "could not be a photo",
    "artefact": "has artefacts of the generator",
    "text": "has text or a watermark",
    "cropped": "is cut off or hidden",
    "copy": "looks like another image",
    "other": "is wrong in another way",
}
"""Why a person rejects an image; the keys 1 to 9 give them in this order."""

MAX_SECONDS = 1_000_000
MAX_ITEM_BYTES = 4096
MAX_REVIEWER = 100

DECISIONS = "decisions"
"""The key of a fragment's detail under which it holds decisions."""

_KEY = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's answer about one image.

    `key` is unique and made by whoever asks, so that a decision that is sent twice counts once. `item` is the
    id of a row. An "undo" takes back the decision whose key is `undoes`. `decided_at` is aware of its time
    zone.
    """

    key: str
    item: str
    answer: Answer
    reviewer: str
    queue: Queue
    seconds: float
    decided_at: dt.datetime
    reason: str | None = None
    undoes: str | None = None

    def __post_init__(self) -> None:
        """UsageError for what no page can have sent."""
        if wrong := _find_wrong(self):
            raise UsageError(f"a decision has {wrong}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is None is left out."""
        values = {
            "key": self.key,
            "item": self.item,
            "answer": self.answer,
            "reviewer": self.reviewer,
            "queue": self.queue,
            "seconds": round(float(self.seconds), 3),
            "decided_at": self.decided_at.isoformat(),
            "reason": self.reason,
            "undoes": self.undoes,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """ValueError for anything else than `as_dict` gives."""
        try:
            return cls(**{**values, "decided_at": dt.datetime.fromisoformat(values["decided_at"])})
        except (TypeError, KeyError, AttributeError, UsageError) as error:
            raise ValueError(f"no decision: {shortened(str(error))}") from error


def _find_wrong(decision: Decision) -> str | None:
    """What no page can have sent."""
    if not all(isinstance(text, str) for text in (decision.key, decision.item, decision.reviewer)):
        return "a key, an item or a reviewer that is no text"
    named, undoes = decision.reviewer, decision.undoes
    rules = {
        "a key that is not 1 to 64 letters, digits and dashes": _KEY.fullmatch(decision.key),
        f"an item of no or more than {MAX_ITEM_BYTES:,} bytes": _is_short(decision.item),
        f"a reviewer whose name is not 1 to {MAX_REVIEWER} printable characters": named.isprintable()
        and 0 < len(named) <= MAX_REVIEWER,
        "an answer that there is not": decision.answer in ANSWERS,
        "a queue that there is not": decision.queue in QUEUES,
        f"a time that is not 0 to {MAX_SECONDS:,} seconds": _is_duration(decision.seconds),
        "a moment without a time zone": isinstance(decision.decided_at, dt.datetime)
        and decision.decided_at.tzinfo is not None,
        f"a reason that is none of {', '.join(REJECT_REASONS)}": decision.reason is None
        or decision.reason in REJECT_REASONS,
        "something to undo without an undo, or the reverse": (decision.answer == "undo") == bool(undoes),
        "a key to undo that is none": not undoes or (isinstance(undoes, str) and _KEY.fullmatch(undoes)),
    }
    return next((wrong for wrong, is_kept in rules.items() if not is_kept), None)


def _is_short(item: str) -> bool:
    return 0 < len(item.encode("utf-8", "surrogatepass")) <= MAX_ITEM_BYTES


def _is_duration(seconds: object) -> bool:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return False
    return math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS


def from_details(details: Iterable[Mapping[str, Any] | None]) -> list[Decision]:
    """The decisions that fragments hold, each once. A log with a valid checksum may still say anything: what
    is no decision is left out, and `balancer fsck` names it."""
    found: list[Decision] = []
    for detail in details:
        for values in _listed(detail):
            try:
                found.append(Decision.from_dict(values))
            except ValueError:
                continue
    return once_each(found)


def count_unreadable(detail: Mapping[str, Any] | None) -> int:
    """How many entries of a fragment are no decisions."""
    listed = _listed(detail)
    return len(listed) - len(from_details([{DECISIONS: listed}]))


def _listed(detail: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    listed = (detail or {}).get(DECISIONS, ())
    return listed if isinstance(listed, list) else ()


def once_each(decisions: Iterable[Decision]) -> list[Decision]:
    """The first of each key."""
    found: dict[str, Decision] = {}
    for decision in decisions:
        found.setdefault(decision.key, decision)
    return list(found.values())


def not_undone(decisions: Iterable[Decision]) -> list[Decision]:
    """Answers that their reviewer did not take back, in the order in which they were given. Nobody can take
    back what somebody else said."""
    decisions = list(decisions)
    undone = {(decision.reviewer, decision.undoes) for decision in decisions if decision.undoes is not None}
    answers = [
        decision
        for decision in decisions
        if decision.answer != "undo" and (decision.reviewer, decision.key) not in undone
    ]
    return sorted(answers, key=lambda decision: decision.decided_at)


def last_words(decisions: Iterable[Decision]) -> dict[str, dict[str, Decision]]:
    """What each reviewer last said of each item: item -> reviewer -> decision."""
    words: dict[str, dict[str, Decision]] = {}
    for decision in not_undone(decisions):
        words.setdefault(decision.item, {})[decision.reviewer] = decision
    return words


def first_words(decisions: Iterable[Decision]) -> dict[str, dict[str, Decision]]:
    """What each reviewer first said of each item: a repeat says how sure they are, and nothing new."""
    words: dict[str, dict[str, Decision]] = {}
    for decision in not_undone(decisions):
        words.setdefault(decision.item, {}).setdefault(decision.reviewer, decision)
    return words


def majority(words: Mapping[str, Decision]) -> Verdict:
    """Of what the reviewers of one item said."""
    votes = Counter(decision.answer for decision in words.values())
    if votes["accept"] == votes["reject"]:
        return "tie"
    return "accept" if votes["accept"] > votes["reject"] else "reject"


def verdicts(words: Mapping[str, Mapping[str, Decision]]) -> dict[str, Verdict]:
    """The majority on each item."""
    return {item: majority(of_item) for item, of_item in words.items()}
