"""Facet values from tables, as the config spells them where that is certain; warnings about the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.dataset.facet_table import Row, is_missing
from balancer.dataset.table_reader import OWN_COLUMNS
from balancer.text.names import near, pick, pick_value
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.cells import Facet

MAX_VALUES = 5
"""Values without a match that a warning names."""


@dataclass(slots=True)
class FacetValues:
    """Reads facets from rows. `axes` are those of a config; without them a facet's values are as written."""

    names: Sequence[str]
    axes: Mapping[str, Facet]
    columns: Mapping[str, str]
    """The column of each facet that has one."""
    unmatched: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Sequence[str], names: Sequence[str], axes: Iterable[Facet] = ()) -> FacetValues:
        """`columns` are all that the tables have."""
        found = {name: column for name in names if (column := pick(name, columns)) is not None}
        return cls(names, {facet.name: facet for facet in axes}, found)

    def read(self, row: Row, class_name: str) -> dict[str, str]:
        found = {}
        for name, column in self.columns.items():
            if (text := row.get(column)) is None:
                continue
            axis = self.axes.get(name)
            value = pick_value(text, axis.values) if axis else None
            if value is None and is_missing(text):
                continue
            if value is None and axis and axis.applies_to(class_name):
                self.unmatched.setdefault(name, Counter())[text] += 1
            found[name] = text if value is None else value
        return found

    def warnings(self, tables: str, columns: Sequence[str]) -> list[str]:
        """`tables` names them."""
        found = [_no_column(tables, name, columns) for name in self.names if name not in self.columns]
        return found + [self._no_value(tables, name, texts) for name, texts in self.unmatched.items()]

    def _no_value(self, tables: str, name: str, texts: Counter[str]) -> str:
        values = self.axes[name].values
        named = "; ".join(
            f"{text!r} ({counted(count, 'image')}{_question(near(text, values))})"
            for text, count in texts.most_common(MAX_VALUES)
        )
        more = f"; and {len(texts) - MAX_VALUES} more" if len(texts) > MAX_VALUES else ""
        return f"{tables}: not values of the facet {name}: {named}{more}"


def _no_column(tables: str, name: str, columns: Sequence[str]) -> str:
    there = [column for column in columns if column not in OWN_COLUMNS]
    if question := _question(near(name, there)):
        return f"{tables}: no column for the facet {name}{question}"
    listed = ", ".join(there[:MAX_VALUES]) or "none that could be one"
    return f"{tables}: no column for the facet {name}; the columns are {listed}"


def _question(found: str | None) -> str:
    return f", did you mean {found!r}?" if found is not None else ""
