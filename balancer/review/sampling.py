"""What people are asked about: the estimate sample, and what is least certain.

The estimate sample is random, the same for everybody, and follows from the run alone. It stands for all
images that the verifier accepted, so only what people say of it counts for error rates. Images of the dataset
and repeats are mixed in, to see how sure people are. Every choice is by a hash: nothing depends on the order
of rows, and a run that grows keeps what it had.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balancer.manifest.rows import ACCEPTED, REJECTED, SYNTHETIC
from balancer.review.effects import REVIEWED
from balancer.review.estimates import images_for_bound

Row = Mapping[str, Any]

KNOWN_SHARE = 0.1
"""Images of the dataset that are mixed into a sample, as a share of it."""

REPEAT_SHARE = 0.1
"""Images that the same reviewer is shown again, as a share of the sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Row ids, in random order; `weights` say how many images of the run each of them stands for, compared
    with the others."""

    ids: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    population: int = 0


def verified_images(rows: Iterable[Row]) -> list[Row]:
    """The images that the verifier accepted, whatever people said since: of each slot the first, because one
    that fills a gap that people made is no draw of its own."""
    first: dict[str, Row] = {}
    for row in rows:
        was_accepted = row["status"] == ACCEPTED or (row["status"] == REJECTED and row["reason"] == REVIEWED)
        if row["source"] != SYNTHETIC or not was_accepted:
            continue
        known = first.setdefault(row["slot"], row)
        if row["attempt"] < known["attempt"]:
            first[row["slot"]] = row
    return list(first.values())


def draw_sample(images: Sequence[Row], seed: str, margin: float | None) -> Sample:
    """The estimate sample of `images` (`verified_images`): those marked `review`, or, with a `margin`, so
    many of each cell that a sample without an error keeps the error rate below it."""
    if margin is None:
        marked = [row["id"] for row in images if row["review"]]
        return Sample(_shuffled(marked, seed, "order"), dict.fromkeys(marked, 1.0), len(images))
    by_cell: dict[str, list[str]] = defaultdict(list)
    for row in images:
        by_cell[row["cell"]].append(row["id"])
    shares = allocate({cell: len(ids) for cell, ids in by_cell.items()}, images_for_bound(margin))
    weights: dict[str, float] = {}
    for cell, ids in by_cell.items():
        chosen = _shuffled(ids, seed, "sample")[: shares[cell]]
        weights |= dict.fromkeys(chosen, len(ids) / len(chosen))
    return Sample(_shuffled(weights, seed, "order"), weights, len(images))


def allocate(populations: Mapping[str, int], wanted: int) -> dict[str, int]:
    """How many of each stratum: proportional to its size, at least one, and no more than there are."""
    total = sum(populations.values())
    share = min(1.0, wanted / total) if total else 0.0
    return {name: min(size, max(1, math.ceil(size * share - 1e-9))) for name, size in populations.items()}


def as_shown(sample: Sequence[str], known: Collection[str], reviewer: str, seed: str) -> list[str]:
    """The sample as one reviewer is to see it: with known images among it, and some of its first half once
    more in the second. An id that stands there twice is to be decided twice."""
    order = _shuffled(sample, seed, f"order of {reviewer}")
    half = len(order) // 2
    again = _shuffled(order[:half], seed, f"repeats of {reviewer}")[: _part(len(order), REPEAT_SHARE)]
    mixed_in = _shuffled(known, seed, f"known to {reviewer}")[: _part(len(order), KNOWN_SHARE)]
    places = [(place, 0, item) for place, item in enumerate(order)]
    places += [(_number(seed, "place", reviewer, item) % (len(order) + 1), 1, item) for item in mixed_in]
    late = len(order) - half + 1
    places += [(half + _number(seed, "again", reviewer, item) % late, 2, item) for item in again]
    return [item for _, _, item in sorted(places)]


def still_to_decide(shown: Sequence[str], decided: Mapping[str, int]) -> list[str]:
    """Of what is shown, without the first occurrences that were `decided` as often."""
    seen: Counter[str] = Counter()
    left = []
    for item in shown:
        seen[item] += 1
        if seen[item] > decided.get(item, 0):
            left.append(item)
    return left


def least_certain(rows: Iterable[Row]) -> list[Row]:
    """Those first whose score is closest to the threshold, on either side; then those without a score."""

    def certainty(row: Row) -> tuple[float, str]:
        score, threshold = row["score"], row["threshold"]
        known = score is not None and threshold is not None and not math.isnan(score)
        return (abs(score - threshold) if known else math.inf, row["id"])

    return sorted(rows, key=certainty)


def _part(count: int, share: float) -> int:
    return round(count * share)


def _shuffled(items: Iterable[str], seed: str, purpose: str) -> tuple[str, ...]:
    return tuple(sorted(items, key=lambda item: (_number(seed, purpose, item), item)))


def _number(*parts: str) -> int:
    text = "\n".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
