"""What people's verdicts do to rows.

Rejected by people: out of the dataset, and its slot is open again. Accepted by people although the verifier
said no: in, if the verifier objected to what the image shows (a property), its pixels were kept and its slot
is still empty. A tie keeps the verifier's verdict. Other objections, such as that it is blank or a copy, are
not a matter of what it shows, and stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from balancer.manifest.rows import ACCEPTED, REJECTED, SYNTHETIC
from balancer.review.decisions import Verdict

REVIEWED = "reviewed"
"""The reason of a candidate that people rejected, and the column that has their verdict."""

Kind = Literal["revoked", "kept", "restored", "withdrawn", "too late", "no image"]


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of one row.

    revoked     accepted, and people reject it
    kept        accepted, and people agree; or they no longer say anything
    restored    rejected, and accepted from now on: people say so, or no longer reject it
    withdrawn   accepted by people alone, who no longer say so
    too late    would be restored, but its slot has another image by now
    no image    would be restored, but its pixels were not kept
    """

    id: str
    kind: Kind
    verdict: Verdict | None

    @property
    def changes_row(self) -> bool:
        return self.kind in ("revoked", "kept", "restored", "withdrawn")


def find_effects(
    rows: Iterable[Mapping[str, Any]],
    verdicts: Mapping[str, Verdict],
    filled: Collection[str],
    properties: Collection[str],
    has_pixels: Mapping[str, object],
) -> list[Effect]:
    """Of candidates that people decided, each with its row; `filled` are the slots that have an image.

    Rows that are as people want them have no effect, so the same verdicts twice do nothing.
    """
    taken = set(filled)
    effects = []

    def place(row: Mapping[str, Any]) -> tuple[bool, str, int]:
        """What empties a slot comes first."""
        return row["status"] != ACCEPTED, row["slot"] or "", row["attempt"] or 0

    for row in sorted(rows, key=place):
        effect = _effect(row, verdicts.get(row["id"]), taken, properties, has_pixels)
        if effect is not None:
            effects.append(effect)
            if effect.kind in ("revoked", "withdrawn"):
                taken.discard(row["slot"])
            elif effect.kind == "restored":
                taken.add(row["slot"])
    return effects


def _effect(
    row: Mapping[str, Any],
    verdict: Verdict | None,
    taken: Collection[str],
    properties: Collection[str],
    has_pixels: Mapping[str, object],
) -> Effect | None:
    if row["source"] != SYNTHETIC or row["status"] not in (ACCEPTED, REJECTED):
        return None
    said = row.get(REVIEWED)
    if row["status"] == ACCEPTED:
        if verdict == "reject":
            return Effect(row["id"], "revoked", verdict)
        if verdict != "accept" and said == ACCEPTED and not _passes(row):
            return Effect(row["id"], "withdrawn", verdict)
        is_news = REVIEWED in row and said != (ACCEPTED if verdict == "accept" else None)
        return Effect(row["id"], "kept", verdict) if is_news else None
    was_verifier_s = row["reason"] == REVIEWED and _passes(row)
    if row["reason"] == REVIEWED:
        wanted = verdict == "accept" or (verdict != "reject" and was_verifier_s)
    else:
        wanted = verdict == "accept" and row["reason"] in properties and REVIEWED in row
    if not wanted:
        return None
    if row["slot"] in taken:
        return Effect(row["id"], "too late", verdict)
    if row["file_name"] is None and row["id"] not in has_pixels:
        return Effect(row["id"], "no image", verdict)
    return Effect(row["id"], "restored", verdict)


def _passes(row: Mapping[str, Any]) -> bool:
    """Whether the verifier accepted it; a score is missing where no property was judged."""
    score, threshold = row["score"], row["threshold"]
    return score is None or threshold is None or bool(score >= threshold)


def weakest(row: Mapping[str, Any]) -> str:
    """The property that the verifier objected to."""
    scores: dict[str, float] = {
        name: score for name, score in (row["scores"] or {}).items() if score is not None
    }
    judged = {name: score for name, score in scores.items() if name not in (row.get("unjudged") or ())}
    return min(judged or scores, key=scores.__getitem__)


def applied_to(row: dict[str, Any], effect: Effect, file: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The row as the effect leaves it. `file` has the columns of an image that is published only now. The
    mark `review` stays with a row that people reject: it was drawn."""
    said = {"accept": ACCEPTED, "reject": REJECTED}.get(effect.verdict or "")
    mark = {REVIEWED: said} if REVIEWED in row else {}
    if effect.kind == "revoked":
        return {**row, **mark, "status": REJECTED, "reason": REVIEWED}
    if effect.kind == "withdrawn":
        return {**row, **mark, "status": REJECTED, "reason": weakest(row)}
    if effect.kind == "restored":
        return {**row, **mark, "status": ACCEPTED, "reason": None, **(file or {})}
    return {**row, **mark}
