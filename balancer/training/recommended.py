"""What the run's evaluation recommends: how often real images are drawn, and which classes keep their own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from balancer.cells import CLASS_PROPERTY
from balancer.errors import UsageError
from balancer.evaluation.arms import BASELINES
from balancer.evaluation.files import Outcome, read_outcome
from balancer.evaluation.staleness import staleness
from balancer.manifest.rows import REAL
from balancer.storage import open_storage
from balancer.text.commands import suggested

if TYPE_CHECKING:
    from balancer.manifest.query.rows import ManifestRows


def read_recommended(manifest: ManifestRows) -> Outcome:
    """UsageError if the run has not been evaluated. Warns if the evaluation could not tell, or if the run has
    changed since."""
    outcome = read_outcome(open_storage(manifest.uri, create=False))
    if outcome is None:
        raise UsageError(
            "nothing is recommended: this run has not been evaluated",
            hint=f"{suggested('evaluate', manifest.uri)} finds out",
        )
    if stale := staleness(outcome, manifest):
        warnings.warn(stale, stacklevel=5)
    if outcome.decision == "cannot_tell":
        warnings.warn(
            "the evaluation of this run could not tell whether its generated images help; they are kept",
            stacklevel=5,
        )
    return outcome


def draws_by_size(outcome: Outcome) -> bool:
    """Whether the arm with generated images, as it was tested, drew classes as often as they have images."""
    return any(arm.name == outcome.baseline and not arm.balanced for arm in BASELINES)


def without_harmful(rows: pa.Table, outcome: Outcome) -> pa.Table:
    """Rows with `class` and `source`, without the generated images of the classes to leave out."""
    names = pa.array(outcome.recommended.classes, pa.string())
    harmful = pc.field(CLASS_PROPERTY).cast(pa.string()).isin(names) & (pc.field("source") != REAL)
    return rows.filter(~harmful) if len(names) else rows
