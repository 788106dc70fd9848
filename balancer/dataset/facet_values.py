"""Match values in tables to the facet values of a config, and warn about the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import TableRow, is_missing
from balancer.dataset.table_reader import OWN_COLUMNS
from balancer.text.names import near, pick, pick_value
from balancer.text.quantities import counted, listed

if TYPE_CHECKING:
    from balancer.cells import Facet

MAX_VALUES = 5
"""Unmatched values that a warning names."""


@dataclass(slots=True)
class FacetMatcher:
    """Reads facets from rows. `axes` come from a config; without them values stay as written."""

    names: Sequence[str]
    axes: Mapping[str, Facet]
    columns: Mapping[str, str]
    """The column of each facet that has a column."""
    unmatched: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def match(cls, columns: Sequence[str], names: Sequence[str], axes: Iterable[Facet] = ()) -> FacetMatcher:
        """Match facets to the `columns` of the tables."""
        matched = {name: column for name in names if (column := pick(name, columns)) is not None}
        return cls(names, {facet.name: facet for facet in axes}, matched)

    def read(self, row: TableRow, class_name: str) -> dict[str, str]:
        facets = {}
        for name, column in self.columns.items():
            if (text := row.get(column)) is None:
                continue
            axis = self.axes.get(name)
            value = pick_value(text, axis.values) if axis else None
            if value is None and is_missing(text):
                continue
            if value is None and axis and axis.applies_to(class_name):
                self.unmatched.setdefault(name, Counter())[text] += 1
            facets[name] = text if value is None else value
        return facets

    def warnings(self, tables: str, columns: Sequence[str]) -> list[str]:
        """Warnings about facets without a column and about unmatched values. `tables` names the tables."""
        warnings = [_no_column(tables, name, columns) for name in self.names if name not in self.columns]
        return warnings + [self._no_value(tables, name, texts) for name, texts in self.unmatched.items()]

    def _no_value(self, tables: str, name: str, texts: Counter[str]) -> str:
        values = self.axes[name].values
        named = "; ".join(
            f"{text!r} ({counted(count, 'image')}{_question(near(text, values))})"
            for text, count in texts.most_common(MAX_VALUES)
        )
        more = f"; and {len(texts) - MAX_VALUES} more" if len(texts) > MAX_VALUES else ""
        return f"{tables}: not values of the facet {name}: {named}{more}"


def _no_column(tables: str, name: str, columns: Sequence[str]) -> str:
    others = [column for column in columns if column not in OWN_COLUMNS]
    if question := _question(near(name, others)):
        return f"{tables}: no column for the facet {name}{question}"
    shown = listed(others, MAX_VALUES) or "none that could be a facet"
    return f"{tables}: no column for the facet {name}; the columns are {shown}"


def _question(meant: str | None) -> str:
    return f", did you mean {meant!r}?" if meant is not None else ""
