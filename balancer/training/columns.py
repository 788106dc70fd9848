"""What other libraries get of a row besides its image: single values in types that all of them know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.columns import exported_names, names_read_by
from balancer.manifest.formats import exact
from balancer.training.labels import plain

if TYPE_CHECKING:
    from balancer.manifest.runfile import RunInfo

_READ = {*names_read_by("training")}
PROVENANCE = ("id", *(name for name in exported_names() if name in _READ))


def usual_columns(run: RunInfo, asked: Sequence[str] | None) -> list[str]:
    """Class and facets, and those asked for: by default where an image comes from."""
    return list(dict.fromkeys([CLASS_PROPERTY, *run.facets, *(PROVENANCE if asked is None else asked)]))


def plain_table(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """These columns without dictionaries, and seeds as text."""
    return exact(pa.table({name: plain(rows[name]) for name in names}))
