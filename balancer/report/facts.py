"""The figures of a report, counted from a run's manifest and plan."""

from __future__ import annotations

import datetime as dt
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.config.schema import OFF_DOMAIN, Config
from balancer.dataset.splits import EVALUATION
from balancer.manifest.rules import config_under
from balancer.report.over_time import Timeline, over_time
from balancer.scheduling.adaptive import Tally
from balancer.verification.off_domain import DomainProof

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import ManifestRows
    from balancer.manifest.runfile import RunInfo

MAX_ACROSS = 12
"""A facet with more values than this is listed downwards, not across the table of cells."""


@dataclass(frozen=True, slots=True)
class ClassCount:
    name: str
    real: int
    planned: int
    generated: int
    target: int

    @property
    def total(self) -> int:
        return self.real + self.generated

    @property
    def fill(self) -> float:
        return self.total / self.target if self.target else 1.0


@dataclass(frozen=True, slots=True)
class CellCount:
    """`values` has one entry per facet of the run, None where the facet does not apply."""

    key: str
    class_name: str
    values: tuple[str | None, ...]
    wanted: int
    accepted: int
    candidates: int

    @property
    def missing(self) -> int:
        return max(self.wanted - self.accepted, 0)

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.candidates if self.candidates else None


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A cell in which too few candidates pass: a share of `at_most`, at 95 % confidence. `reasons` of the
    rejected ones are sorted by frequency."""

    cell: CellCount
    at_most: float
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class CellRow:
    """Cells of one class that differ in one facet only; None where there is no such cell."""

    class_name: str
    values: tuple[str, ...]
    cells: tuple[CellCount | None, ...]

    @property
    def present(self) -> tuple[CellCount, ...]:
        return tuple(cell for cell in self.cells if cell)


@dataclass(frozen=True, slots=True)
class CellTable:
    """`across` names the facet whose values are the columns; None if the cells are one column."""

    across: str | None
    columns: tuple[str, ...]
    rows: tuple[CellRow, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """`classes` count training images; `kept_apart` counts the real images of validation and test, by split.
    `config` is the run's under the rules it was last judged by, `status` the output of `balancer status`;
    `span` has the times of the first and the last candidate."""

    run: RunInfo
    config: Config
    status: Mapping[str, Any]
    classes: tuple[ClassCount, ...]
    kept_apart: Mapping[str, int]
    left_out: int
    """Copies of images in a later split or in the hold-out; training and exports leave them out."""
    cells: tuple[CellCount, ...]
    given_up: tuple[GivenUp, ...]
    by_attempt: tuple[tuple[int, int], ...]
    by_strength: tuple[tuple[float, Tally], ...]
    """Candidates that were made from real images, and how many of them passed, for each strength."""
    fallbacks: int
    for_review: int
    span: tuple[dt.datetime, dt.datetime] | None
    timeline: Timeline | None
    devices: tuple[str, ...]

    @property
    def unjudged(self) -> Mapping[str, int]:
        """Generated images not judged on each property, without properties that were judged in all."""
        counts: Mapping[str, int] = self.status["unjudged"]
        return counts

    @property
    def domain(self) -> DomainProof | None:
        """To how many images of none of the classes the verifier said no before the run."""
        if self.run.challenge is None:
            return None
        proof = DomainProof.from_dict(self.run.challenge)
        return proof.as_unjudged() if OFF_DOMAIN in self.config.verification.unjudged else proof

    @property
    def heads(self) -> dict[str, str]:
        """For each property that a head judges besides the words, what came out before the run."""
        return {name: head["why"] for name, head in (self.run.heads or {}).items() if head["taken"]}

    def draws_per_image(self, count: ClassCount) -> tuple[float | None, float | None]:
        """How often an epoch of the default sampler shows a real and a generated image of a class."""
        from balancer.training.sampling import draws_per_image

        if not count.total:
            return None, None
        drawn = sum(each.total for each in self.classes) / sum(each.total > 0 for each in self.classes)
        return draws_per_image(count.real, count.generated, drawn)

    @property
    def real(self) -> int:
        """Real training images."""
        return sum(count.real for count in self.classes)

    @property
    def generated(self) -> int:
        return sum(count.generated for count in self.classes)

    @property
    def wanted(self) -> int:
        return sum(cell.wanted for cell in self.cells)

    @property
    def candidates(self) -> int:
        return sum(cell.candidates for cell in self.cells)

    @property
    def short_cells(self) -> tuple[CellCount, ...]:
        return tuple(cell for cell in self.cells if cell.missing)

    def emptiest_first(self, most: int) -> Sequence[ClassCount]:
        """All classes in their order, or if there are more than `most` those that are least full."""
        if len(self.classes) <= most:
            return self.classes
        return heapq.nsmallest(most, self.classes, key=lambda count: count.fill)

    @property
    def table(self) -> CellTable:
        facets = self.config.facets
        return cell_table(self.cells, self.run.facets, {name: [*facets[name].values] for name in facets})


def gather_facts(manifest: ManifestRows, status: Mapping[str, Any]) -> Facts:
    import pyarrow as pa
    import pyarrow.compute as pc

    from balancer.manifest.measured import made_rows, with_origin
    from balancer.training.selection import LEFT_OUT_COLUMNS, find_left_out

    run = manifest.run
    config = config_under(run, status["overrides"])
    columns = with_origin((
        "cell", "class", "status", "reason", "attempt", "fallback", "review", "generated_at", "device",
        *LEFT_OUT_COLUMNS, *(("strength",) if run.has_parents else ()),
    ), run)  # fmt: skip
    rows = manifest.to_table(columns, status="all")
    tried = rows.filter((pc.field("source") == "synthetic") & (pc.field("status") != "void"))
    accepted = tried.filter(pc.equal(tried["status"], "accepted"))
    real = rows.filter((pc.field("source") == "real") & (pc.field("status") == "accepted"))
    apart = pc.fill_null(pc.is_in(real["split"], value_set=pa.array(EVALUATION)), False)
    cells = count_cells(run, config, _count(accepted, "cell"), _count(tried, "cell"))
    return Facts(
        run=run,
        config=config,
        status=status,
        classes=_class_counts(
            run, config, _count(accepted, "class"), _count(real.filter(pc.invert(apart)), "class")
        ),
        kept_apart=dict(sorted(_count(real.filter(apart), "split").items(), reverse=True)),
        left_out=len(find_left_out(rows.filter(pc.field("status") == "accepted"), manifest)),
        cells=cells,
        given_up=_given_up(status, cells, tried),
        by_attempt=tuple(sorted(_count(accepted, "attempt").items())),
        by_strength=_by_strength(tried),
        fallbacks=pc.sum(accepted["fallback"]).as_py() or 0,
        for_review=pc.sum(accepted["review"]).as_py() or 0,
        span=_span(tried),
        timeline=over_time(made_rows(tried)),
        devices=tuple(sorted(_count(tried, "device"))),
    )


def _by_strength(tried: pa.Table) -> tuple[tuple[float, Tally], ...]:
    from balancer.manifest.measured import tallies_by

    if "strength" not in tried.column_names:
        return ()
    tallies = tallies_by(tried, "strength")
    return tuple(sorted((strength, tally) for strength, tally in tallies.items() if strength is not None))


def _given_up(status: Mapping[str, Any], cells: Sequence[CellCount], tried: pa.Table) -> tuple[GivenUp, ...]:
    import pyarrow.compute as pc

    given_up = []
    for cell in cells:
        if cell.key in status["given_up"]:
            reasons = _count(tried.filter(pc.equal(tried["cell"], cell.key)), "reason")
            at_most = Tally(**status["given_up"][cell.key]).at_most
            given_up.append(GivenUp(cell, at_most, tuple(reasons.most_common())))
    return tuple(given_up)


def _count(rows: pa.Table, column: str) -> Counter[Any]:
    from balancer.manifest.measured import count_values

    return count_values(rows[column].drop_null())


def _span(rows: pa.Table) -> tuple[dt.datetime, dt.datetime] | None:
    import pyarrow.compute as pc

    ends = pc.min_max(rows["generated_at"]).as_py()
    return (ends["min"], ends["max"]) if ends["min"] is not None else None


def _class_counts(
    run: RunInfo, config: Config, generated: Counter[str], real: Counter[str]
) -> tuple[ClassCount, ...]:
    planned: Counter[str] = Counter()
    for entry in run.plan:
        planned[entry["class"]] += entry["quota"]
    return tuple(
        ClassCount(
            name=name,
            real=real[name],
            planned=planned[name],
            generated=generated[name],
            target=run.targets[name],
        )
        for name in config.classes
    )


def count_cells(
    run: RunInfo, config: Config, accepted: Counter[str], tried: Counter[str]
) -> tuple[CellCount, ...]:
    # A plan revision leaves cells without images, some of them of classes that are no more.
    plan = [entry for entry in run.plan if entry["quota"] or run.revision == 1]
    classes = _positions(config.classes)
    values = [_positions(config.facets[facet].values) for facet in run.facets]

    def position(entry: Mapping[str, Any]) -> tuple[int, ...]:
        axes = zip(run.facets, values, strict=True)
        return (classes[entry["class"]], *(order.get(entry.get(facet), -1) for facet, order in axes))

    return tuple(
        CellCount(
            key=entry["cell"],
            class_name=entry["class"],
            values=tuple(entry.get(facet) for facet in run.facets),
            wanted=entry["quota"],
            accepted=accepted[entry["cell"]],
            candidates=tried[entry["cell"]],
        )
        for entry in sorted(plan, key=position)
    )


def _positions(names: Iterable[str]) -> dict[str | None, int]:
    return {name: position for position, name in enumerate(names)}


def cell_table(
    cells: Sequence[CellCount], facets: Sequence[str], values: Mapping[str, Sequence[str]] | None = None
) -> CellTable:
    """The cells as a table. Its columns are the values of the first facet with few enough of them, in the
    order of `values`."""
    across = next((axis for axis in range(len(facets)) if _fits_across(cells, axis)), None)
    rows: dict[tuple[str, ...], dict[str, CellCount]] = {}
    for cell in cells:
        column, down = _column_and_row(cell, across)
        rows.setdefault((cell.class_name, *down), {})[column] = cell
    present = dict.fromkeys(_column_and_row(cell, across)[0] for cell in cells)
    order = _positions((values or {}).get(facets[across], ()) if across is not None else ())
    columns = tuple(sorted(present, key=lambda column: order.get(column, len(order))))
    return CellTable(
        across=None if across is None else facets[across],
        columns=columns,
        rows=tuple(
            CellRow(class_name, tuple(down), tuple(row.get(column) for column in columns))
            for (class_name, *down), row in rows.items()
        ),
    )


def _fits_across(cells: Sequence[CellCount], axis: int) -> bool:
    values = {cell.values[axis] for cell in cells}
    return None not in values and 1 < len(values) <= MAX_ACROSS


def _column_and_row(cell: CellCount, across: int | None) -> tuple[str, tuple[str, ...]]:
    column = "" if across is None else cell.values[across] or ""
    return column, tuple(
        value for axis, value in enumerate(cell.values) if axis != across and value is not None
    )
