"""Why images are missing at the end of a run, and what would help, measured from its rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from balancer.manifest.measured import made_rows
from balancer.manifest.rows import ACCEPTED, REJECTED
from balancer.scheduling.adaptive import Tally
from balancer.text.quantities import counted, percent

if TYPE_CHECKING:
    from balancer.config.schema import Config

COLUMNS = ("cell", "slot", "class", "status", "reason", "score", "wording")

MAX_ATTEMPTS = 100
"""The most that `attempts.max` takes."""

STEP = 0.05
"""Between the thresholds that are tried."""

LEAST_TRIED = 5
"""Candidates of a wording before its acceptance is compared."""


@dataclass(frozen=True, slots=True)
class ShortCell:
    """A cell with images that no attempt could fill: how many, and what its candidates were rejected for."""

    short: int
    candidates: int
    accepted: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Weakest:
    """The property that rejected most candidates of short cells, of `candidates` that were rejected."""

    property: str
    rejected: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Wording:
    """The wording of a class whose candidates pass most often in short cells, against all other wordings."""

    class_name: str
    wording: int
    prompt: str
    accepted: int
    candidates: int
    others_accepted: int
    others_candidates: int


@dataclass(frozen=True, slots=True)
class Attempts:
    """`attempts.max` with which less than half an image is expected to stay short, if candidates go on to
    pass as they did; of cells in which none passed nothing is expected: `hopeless` of the images."""

    needed: int
    now: int
    fills: int
    hopeless: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """`fills` slots that are short have a candidate with no flaw but a score from this threshold up. Its
    price: if scores are right, a share of `mean_score` of these shows what was asked."""

    threshold: float
    now: float
    fills: int
    mean_score: float


@dataclass(frozen=True, slots=True)
class Budget:
    """`budget.max_candidates` that open slots need, if candidates go on to pass as they did."""

    needed: int
    now: int


@dataclass(frozen=True, slots=True)
class Remedies:
    """What would help, as far as the rows say; None or empty where they say nothing."""

    weakest: Weakest | None = None
    wordings: tuple[Wording, ...] = ()
    attempts: Attempts | None = None
    thresholds: tuple[Threshold, ...] = ()
    budget: Budget | None = None


def find_short_cells(judged: pa.Table, short: Mapping[str, int]) -> dict[str, ShortCell]:
    """`short` counts the images of each cell for which no attempt is left; `judged` are rows of COLUMNS."""
    rows = _of_cells(made_rows(judged), short)
    accepted, candidates, reasons = Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for cell, status, reason, count in _grouped(rows, "cell", "status", "reason"):
        candidates[cell] += count
        if status == ACCEPTED:
            accepted[cell] += count
        else:
            reasons.setdefault(cell, Counter())[reason] += count
    return {
        cell: ShortCell(
            number, candidates[cell], accepted[cell], dict(reasons.get(cell, Counter()).most_common())
        )
        for cell, number in short.items()
        if number > 0
    }


def find_remedies(
    judged: pa.Table,
    short_cells: Mapping[str, ShortCell],
    config: Config,
    given_up: Collection[str],
    open_slots: int,
) -> Remedies:
    """`given_up` are cells that more attempts do not help. Images that were taken over from another run say
    nothing about what this one makes."""
    judged = made_rows(judged)
    rows = _of_cells(judged, short_cells)
    return Remedies(
        weakest=_weakest(short_cells, config),
        wordings=tuple(_best_wordings(rows, config)),
        attempts=_attempts({c: s for c, s in short_cells.items() if c not in given_up}, config),
        thresholds=tuple(_thresholds(rows, config)),
        budget=_budget(judged, open_slots, config),
    )


def describe(remedies: Remedies) -> list[str]:
    """What would help in two lines, for a person."""
    seen = [_say_weakest(remedies.weakest), _say_wording(remedies.wordings)]
    helps = [
        _say_attempts(remedies.attempts),
        _say_threshold(remedies.thresholds),
        _say_budget(remedies.budget),
    ]
    lines = ["; ".join(filter(None, part)) for part in (seen, helps)]
    return [line for line in lines if line]


def _of_cells(judged: pa.Table, cells: Collection[str]) -> pa.Table:
    return judged.filter(pc.is_in(judged["cell"], value_set=pa.array(list(cells), pa.string())))


def _grouped(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, and how many rows have them."""
    table = rows.select(names).group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    yield from zip(*(table[name].to_pylist() for name in (*names, "count_all")), strict=True)


def _weakest(short_cells: Mapping[str, ShortCell], config: Config) -> Weakest | None:
    rejected = Counter[str]()
    for cell in short_cells.values():
        rejected.update(cell.reasons)
    properties = Counter({name: rejected[name] for name in config.properties() if rejected[name]})
    if not properties:
        return None
    [(name, count)] = properties.most_common(1)
    return Weakest(name, count, rejected.total())


def _best_wordings(rows: pa.Table, config: Config) -> Iterator[Wording]:
    """Of each class with several wordings of which one passes more often than the others together."""
    tallies: dict[str, dict[int, Tally]] = {}
    for name, wording, status, count in _grouped(rows, "class", "wording", "status"):
        if wording is not None and name in config.classes:
            tally = tallies.setdefault(name, {}).get(wording, Tally(0, 0))
            accepted = tally.accepted + count * (status == ACCEPTED)
            tallies[name][wording] = Tally(accepted, tally.candidates + count)
    for name, by_wording in sorted(tallies.items()):
        prompts = (*config.classes[name].prompts, *config.classes[name].fallback_prompts)
        tried = {w: t for w, t in by_wording.items() if t.candidates >= LEAST_TRIED and w < len(prompts)}
        if len(tried) < 2:
            continue
        best = max(tried, key=lambda wording: (_rate(tried[wording]), -wording))
        others = [tally for wording, tally in tried.items() if wording != best]
        rest = Tally(sum(t.accepted for t in others), sum(t.candidates for t in others))
        if _rate(tried[best]) > _rate(rest):
            own = tried[best]
            yield Wording(
                name, best, prompts[best], own.accepted, own.candidates, rest.accepted, rest.candidates
            )


def _rate(tally: Tally) -> float:
    return tally.accepted / tally.candidates


def _attempts(short_cells: Mapping[str, ShortCell], config: Config) -> Attempts | None:
    now = config.attempts.max
    failing = [(cell.short, 1 - cell.accepted / cell.candidates) for cell in short_cells.values()]
    hopeless = sum(short for short, fails in failing if fails == 1)
    helped = [(short, fails) for short, fails in failing if fails < 1]
    if not helped:
        return None
    for more in range(1, MAX_ATTEMPTS - now + 1):
        left = math.fsum(short * fails**more for short, fails in helped)
        if left < 0.5:
            return Attempts(now + more, now, sum(short for short, _ in helped), hopeless)
    return None


def _thresholds(rows: pa.Table, config: Config) -> Iterator[Threshold]:
    """Each lower threshold that fills more slots."""
    now = config.verification.threshold
    filled = rows.filter(pc.field("status") == ACCEPTED)["slot"]
    by_score = pc.is_in(rows["reason"], value_set=pa.array(list(config.properties()), pa.string()))
    rejected = rows.filter(by_score).filter(pc.field("status") == REJECTED)
    rejected = rejected.filter(pc.invert(pc.is_in(rejected["slot"], value_set=filled.combine_chunks())))
    best = (
        rejected.group_by("slot", use_threads=False)
        .aggregate([("score", "max")])["score_max"]
        .drop_null()
        .to_pylist()
    )
    scores = [score for score in best if not math.isnan(score)]
    fills = 0
    for step in range(1, math.ceil(now / STEP)):
        threshold = round(now - step * STEP, 4)
        above = [score for score in scores if score >= threshold]
        if len(above) > fills:
            fills = len(above)
            yield Threshold(threshold, now, fills, math.fsum(above) / fills)


def _budget(judged: pa.Table, open_slots: int, config: Config) -> Budget | None:
    """None if the budget leaves enough, or nothing passed."""
    now = config.budget.max_candidates
    accepted = judged.filter(pc.field("status") == ACCEPTED).num_rows
    if now is None or not accepted:
        return None
    needed = judged.num_rows + math.ceil(open_slots * judged.num_rows / accepted)
    return Budget(needed, now) if needed > now else None


def _say_weakest(weakest: Weakest | None) -> str:
    if weakest is None:
        return ""
    return (
        f"{weakest.property} rejected {weakest.rejected} of the"
        f" {counted(weakest.candidates, 'rejected candidate')} there"
    )


def _say_wording(wordings: Sequence[Wording]) -> str:
    if not wordings:
        return ""
    best = max(wordings, key=lambda wording: wording.candidates + wording.others_candidates)
    return (
        f"{best.class_name} passes most often as {best.prompt!r}"
        f" ({percent(best.accepted, best.candidates)}, other wordings"
        f" {percent(best.others_accepted, best.others_candidates)})"
    )


def _say_attempts(attempts: Attempts | None) -> str:
    if attempts is None:
        return ""
    hopeless = f"; in cells that lack {attempts.hopeless} none passed" if attempts.hopeless else ""
    return (
        f"attempts.max={attempts.needed} would fill {attempts.fills} more, at the"
        f" rate at which candidates passed{hopeless}"
    )


def _say_threshold(thresholds: Sequence[Threshold]) -> str:
    """The highest that fills at least half of what the lowest would."""
    if not thresholds:
        return ""
    chosen = next(each for each in thresholds if 2 * each.fills >= thresholds[-1].fills)
    return (
        f"verification.threshold={chosen.threshold:g} would accept {chosen.fills} more, which show what was"
        f" asked with a probability of {percent(chosen.mean_score, 1)} (`balancer rejudge`)"
    )


def _say_budget(budget: Budget | None) -> str:
    if budget is None:
        return ""
    return f"budget.max_candidates={budget.needed} would do for the slots that are open, at the same rate"
