"""The criteria of a balanced dataset: each is met or not, with the figure that decides it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.manifest.columns import names_where
from balancer.manifest.unjudged import lacks_a_score
from balancer.report.facts import Facts
from balancer.text.quantities import counted, listed, percent

if TYPE_CHECKING:
    import pyarrow as pa

    from balancer.manifest.query.rows import ManifestRows

REQUIRED_OF_ALL = names_where(lambda column: column.complete == "all")
REQUIRED_OF_SYNTHETIC = names_where(lambda column: column.complete == "synthetic")

SHOWN_VALUES = 8
SHOWN_CLASSES = 40
ENDED = ("complete", "short", "budget")


@dataclass(frozen=True, slots=True)
class Criterion:
    rule: str
    met: bool
    figure: str
    detail: str = ""


def check_criteria(facts: Facts, manifest: ManifestRows) -> tuple[Criterion, ...]:
    return (
        classes_filled(facts),
        slots_succeed(facts),
        *(facet_even(facts, facet) for facet in facts.run.facets),
        metadata_complete(facts, manifest),
    )


def classes_filled(facts: Facts) -> Criterion:
    least = facts.config.criteria.class_fill
    lowest = min(facts.classes, key=lambda count: count.fill)
    below = [count.name for count in facts.classes if count.fill < least]
    enough = f"{lowest.name} has {lowest.total} of {lowest.target}"
    return Criterion(
        rule=f"Every class reaches {100 * least:g}% of its target",
        met=not below,
        figure=f"lowest {percent(lowest.fill, 1, down=True)}",
        detail=_below(below) if below else enough,
    )


def _below(names: list[str]) -> str:
    return f"below: {listed(names, SHOWN_CLASSES)}"


def slots_succeed(facts: Facts) -> Criterion:
    """Of the images decided so far while the run can go on, of all when it has ended."""
    least = facts.config.criteria.success_rate
    accepted = facts.status["accepted"]
    ended = facts.status["state"] in ENDED
    decided = facts.wanted if ended else accepted + facts.status["short"]
    return Criterion(
        rule=f"At least {100 * least:g}% of the wanted images end accepted",
        met=facts.wanted == 0 or (decided > 0 and accepted / decided >= least),
        figure=percent(accepted, decided, nothing="none decided", down=True),
        detail=f"{accepted} of {decided}"
        if ended
        else f"{accepted} of {decided} so far, {facts.wanted} wanted",
    )


def facet_even(facts: Facts, facet: str) -> Criterion:
    planned, made = _count_by_value(facts, facet)
    off = {value: abs(made[value] - planned[value]) for value in planned}
    worst = max(off.values(), default=0)
    shown = [value for value in off if off[value] > 1] or list(off)[:SHOWN_VALUES]
    counts = " / ".join(str(made[value]) for value in planned) or "nothing planned"
    return Criterion(
        rule=f"{facet}: every value is within one image of its planned share",
        met=worst <= 1,
        figure=counts if len(planned) <= SHOWN_VALUES else f"at most {worst} off",
        detail=", ".join(f"{value} {made[value]} of {planned[value]}" for value in shown),
    )


def _count_by_value(facts: Facts, facet: str) -> tuple[Counter[str], Counter[str]]:
    """Images planned and made for each value of a facet, in the plan's order."""
    axis = facts.run.facets.index(facet)
    planned, made = Counter[str](), Counter[str]()
    for cell in facts.cells:
        value = cell.values[axis]
        if value is not None:
            planned[value] += cell.wanted
            made[value] += cell.accepted
    return planned, made


def metadata_complete(facts: Facts, manifest: ManifestRows) -> Criterion:
    columns = dict.fromkeys((*REQUIRED_OF_ALL, *REQUIRED_OF_SYNTHETIC, *facts.run.facets, "unjudged"))
    rows = manifest.to_table(list(columns))
    missing = {column: count for column, count in _missing_values(facts, rows) if count}
    total = sum(missing.values())
    return Criterion(
        rule="Every required column of every image is filled",
        met=total == 0,
        figure=f"{total} missing in {counted(rows.num_rows, 'row')}",
        detail=", ".join(f"{column} {count}" for column, count in missing.items())
        or f"{len(REQUIRED_OF_ALL) + len(REQUIRED_OF_SYNTHETIC)} columns and the facets checked",
    )


def _missing_values(facts: Facts, rows: pa.Table) -> Iterator[tuple[str, int]]:
    import pyarrow.compute as pc

    synthetic = rows.filter(pc.equal(rows["source"], "synthetic"))
    without = synthetic.filter(synthetic["score"].is_null()).select(["scores", "unjudged"]).to_pylist()
    unscored = sum(lacks_a_score(row["scores"], row["unjudged"]) for row in without)
    for column in REQUIRED_OF_ALL:
        yield column, rows[column].null_count
    for column in REQUIRED_OF_SYNTHETIC:
        yield column, synthetic[column].null_count - (unscored if column == "score" else 0)
    for axis, facet in enumerate(facts.run.facets):
        applies = [cell.key for cell in facts.cells if cell.values[axis] is not None]
        wanted = synthetic.filter(pc.is_in(synthetic["cell"], value_set=_strings(applies)))
        yield facet, wanted[facet].null_count


def _strings(values: list[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.string())
