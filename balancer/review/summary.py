"""What a review has found out so far, for `status`, the report and exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from balancer.config.review import ReviewConfig
from balancer.manifest.measured import count_values
from balancer.manifest.rows import ACCEPTED, REAL, REJECTED, SYNTHETIC
from balancer.review.agreement import Agreement, between_reviewers, within_reviewers
from balancer.review.decisions import Decision, first_words, from_details, last_words, verdicts
from balancer.review.effects import REVIEWED
from balancer.review.estimates import Estimate, estimate, estimates_by, images_for_bound
from balancer.review.pending import all_decisions
from balancer.review.sampling import Row, allocate, draw_sample, verified_images

if TYPE_CHECKING:
    from balancer.manifest.log.view import LogView
    from balancer.manifest.runfile import RunInfo
    from balancer.storage import Storage

COLUMNS = ("id", "cell", "slot", "attempt", "source", "status", "reason", "review")
"""The columns of the manifest that it is made from."""

TIES_LISTED = 100

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Summary:
    """`sampled` images are to be decided, `decided` of them are, of these `errors` were rejected by the
    majority. `error_rate`, `low` and `high` are the label error of all images that the verifier accepted,
    with 95 % confidence; None, 0 and 1 before anybody decided. Images that people rejected count as the
    errors that they were. `by_class`, `by_facet` (`facet=value`) and `by_cell` are the same for parts.

    `tied` images have as many voices for as against, and count for nothing. `decisions` are all answers,
    `waiting` those that are not in the log yet, `rejected` the images that are out because people said so.
    `rejections` says how people judged candidates that the verifier had rejected: they are no sample, so no
    rate follows. `known` says how many images of the dataset people were shown, and accepted. `within` is the
    agreement of each reviewer with themselves, `between` that of every two. `quarantined` cells have more
    errors than `review.max_error` allows, for sure, and images that nobody has decided.
    """

    sampled: int = 0
    decided: int = 0
    errors: int = 0
    error_rate: float | None = None
    low: float = 0.0
    high: float = 1.0
    by_class: Mapping[str, Estimate] = field(default_factory=dict)
    by_facet: Mapping[str, Estimate] = field(default_factory=dict)
    by_cell: Mapping[str, Estimate] = field(default_factory=dict)
    tied: tuple[str, ...] = ()
    decisions: int = 0
    waiting: int = 0
    reviewers: tuple[str, ...] = ()
    rejected: int = 0
    rejections: Mapping[str, int] = field(default_factory=dict)
    known: Mapping[str, int] = field(default_factory=dict)
    within: Mapping[str, Agreement] = field(default_factory=dict)
    between: Mapping[str, Agreement] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As `balancer status --json` has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        parts = {name: _each(Estimate, values[name]) for name in ("by_class", "by_facet", "by_cell")}
        pairs = {name: _each(Agreement, values[name]) for name in ("within", "between")}
        return cls(**{**values, **parts, **pairs})


def _each(kind: Callable[..., _Part], values: Mapping[str, Any]) -> dict[str, _Part]:
    return {name: kind(**value) for name, value in values.items()}


def read_summary(storage: Storage, info: RunInfo, view: LogView) -> Summary:
    """`view` has the COLUMNS, `info` is the run in its plan revision. Decisions that wait count, too."""
    in_log = from_details(view.details)
    decisions = all_decisions(storage, info.run_id, in_log)
    return summarise(view.table, decisions, len(decisions) - len(in_log), info)


def quarantined_cells(storage: Storage, info: RunInfo, view: LogView) -> tuple[str, ...]:
    """As in the summary; nothing is looked at without `review.max_error`."""
    if _config(info).max_error is None:
        return ()
    return read_summary(storage, info, view).quarantined


def summarise(table: pa.Table, decisions: Sequence[Decision], waiting: int, info: RunInfo) -> Summary:
    config = _config(info)
    if not decisions:
        return Summary(sampled=_count_sampled(table, config))
    cells = {item["cell"]: item for item in info.plan}
    rows = table.select(COLUMNS).to_pylist()
    images = verified_images(row for row in rows if row["cell"] in cells)
    sample = draw_sample(images, seed_of(info), config.margin)
    by_id = {row["id"]: row for row in images}
    asked = [decision for decision in decisions if decision.queue == "estimate"]
    said = {item: verdict for item, verdict in verdicts(first_words(asked)).items() if item in by_id}
    answers = {item: verdict == "reject" for item, verdict in said.items() if verdict != "tie"}
    weights = _weights(sample.weights, images, answers)
    overall = estimate(answers, weights)
    by_cell = estimates_by(answers, weights, lambda item: [by_id[item]["cell"]])
    standing = verdicts(last_words(decisions))
    return Summary(
        sampled=len(sample.ids),
        decided=overall.decided,
        errors=overall.errors,
        error_rate=overall.rate,
        low=overall.low,
        high=overall.high,
        by_class=estimates_by(answers, weights, lambda item: [cells[by_id[item]["cell"]]["class"]]),
        by_facet=estimates_by(
            answers, weights, lambda item: _facet_values(cells[by_id[item]["cell"]], info.facets)
        ),
        by_cell=by_cell,
        tied=tuple(row["id"] for row in rows if standing.get(row["id"]) == "tie")[:TIES_LISTED],
        decisions=len(decisions),
        waiting=waiting,
        reviewers=tuple(sorted({decision.reviewer for decision in decisions})),
        within=within_reviewers(decisions),
        between={" and ".join(names): of for names, of in between_reviewers(decisions).items()},
        quarantined=tuple(_quarantined(by_cell, rows, standing, config.max_error)),
        **_counts(rows, standing),
    )


def seed_of(info: RunInfo) -> str:
    """What the samples of a run follow from."""
    return f"{info.run_id}\n{info.seed}"


def _weights(
    drawn: Mapping[str, float], images: Iterable[Row], answers: Mapping[str, bool]
) -> Mapping[str, float]:
    """Those of the sample. What was decided under another sample counts as its cell's others do."""
    if missing := answers.keys() - drawn.keys():
        cell_of = {row["id"]: row["cell"] for row in images}
        of_cell = {cell_of[item]: weight for item, weight in drawn.items()}
        usual = max(drawn.values(), default=1.0)
        return {**drawn, **{item: of_cell.get(cell_of[item], usual) for item in missing}}
    return drawn


def _counts(rows: Iterable[Row], standing: Mapping[str, str]) -> dict[str, Any]:
    """What became of rows, and what people said of those that are in no sample."""
    rejected = 0
    rejections: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for row in rows:
        verdict = standing.get(row["id"])
        rejected += row["reason"] == REVIEWED
        if verdict is None or row["status"] not in (ACCEPTED, REJECTED):
            continue
        if row["source"] == REAL:
            known.update(shown=1, accepted=int(verdict == "accept"))
        elif row["status"] == REJECTED and row["reason"] != REVIEWED:
            rejections.update(decided=1, accepted=int(verdict == "accept"))
    return {"rejected": rejected, "rejections": dict(rejections), "known": dict(known)}


def _quarantined(
    by_cell: Mapping[str, Estimate],
    rows: Iterable[Row],
    standing: Mapping[str, str],
    max_error: float | None,
) -> Iterable[str]:
    if max_error is None:
        return
    undecided = {row["cell"] for row in rows if row["status"] == ACCEPTED and row["id"] not in standing}
    for cell, found in by_cell.items():
        if found.low > max_error and cell in undecided:
            yield cell


def _facet_values(cell: Mapping[str, Any], facets: Iterable[str]) -> list[str]:
    return [f"{name}={cell[name]}" for name in facets if cell.get(name) is not None]


def _count_sampled(table: pa.Table, config: ReviewConfig) -> int:
    accepted = table.filter((pc.field("source") == SYNTHETIC) & (pc.field("status") == ACCEPTED))
    if config.margin is None:
        return int(pc.sum(accepted["review"]).as_py() or 0)
    return sum(allocate(count_values(accepted["cell"]), images_for_bound(config.margin)).values())


def _config(info: RunInfo) -> ReviewConfig:
    return info.config_as(ReviewConfig, "review")
