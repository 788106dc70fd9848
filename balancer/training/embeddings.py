"""The stored embeddings with their labels, for a classifier of a few numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.columns import EMBEDDING
from balancer.training.labels import Labels
from balancer.training.selection import select, warn_of_left_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.manifest.query import Filter, Manifest


def embeddings_of(
    manifest: Manifest, split: str | None, filter: Filter | None, *, allow_synthetic_eval: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    columns = [CLASS_PROPERTY, EMBEDDING]
    selection = select(manifest, columns, split, filter, allow_synthetic_eval=allow_synthetic_eval)
    warn_of_left_out(selection)
    rows = selection.rows.filter(selection.rows[EMBEDDING].is_valid())
    column = rows[EMBEDDING].combine_chunks()
    vectors = np.asarray(column.flatten(), np.float32).reshape(-1, column.type.list_size)
    return vectors, Labels.of(manifest.run).numbers(rows, CLASS_PROPERTY)
