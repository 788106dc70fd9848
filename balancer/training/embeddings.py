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

    from balancer.manifest.query.rows import ManifestRows
    from balancer.training.choice import Choice


def read_embeddings(manifest: ManifestRows, choice: Choice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    selection = select(manifest, [CLASS_PROPERTY, EMBEDDING], choice)
    warn_of_left_out(selection)
    rows = selection.rows.filter(selection.rows[EMBEDDING].is_valid())
    column = rows[EMBEDDING].combine_chunks()
    vectors = np.asarray(column.flatten(), np.float32).reshape(-1, column.type.list_size)
    return vectors, Labels.of(manifest.run).numbers(rows, CLASS_PROPERTY)
