"""Whether a run still has the images that were evaluated."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from balancer.text.commands import suggested

if TYPE_CHECKING:
    from balancer.evaluation.files import Outcome
    from balancer.manifest.query.rows import ManifestRows


def hash_images(manifest: ManifestRows) -> str:
    """Hex sha256 over the ids and splits of all images of the dataset."""
    rows = manifest.to_table(["id", "split"])
    pairs = zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True)
    return hashlib.sha256("\n".join(sorted(f"{name}\0{split}" for name, split in pairs)).encode()).hexdigest()


def staleness(outcome: Outcome, manifest: ManifestRows) -> str:
    """A sentence; empty if the run has the images that were evaluated."""
    if outcome.run_images == hash_images(manifest):
        return ""
    return (
        "the run had other images when it was evaluated;"
        f" {suggested('evaluate', manifest.uri)} evaluates it again"
    )
