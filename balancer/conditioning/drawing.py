"""Parents with their files in the run, as generators read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.conditioning.pool import ParentPool
from balancer.scheduling.prompts import ParentImage
from balancer.text.quantities import counted

if TYPE_CHECKING:
    from balancer.cells import Candidate
    from balancer.config.schema import Config
    from balancer.manifest.log.writer import ManifestLog
    from balancer.manifest.runfile import RunInfo

COLUMNS = ("id", "file_name", "pixel_sha256")


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws from a pool whose images have rows in the run."""

    pool: ParentPool
    images: Mapping[str, ParentImage]

    @classmethod
    def from_log(cls, pool: ParentPool, log: ManifestLog) -> Drawing:
        rows = log.rows([parent.id for parent in pool.parents], COLUMNS).select(list(COLUMNS)).to_pylist()
        return cls(pool, {row["id"]: ParentImage(**row) for row in rows})

    def draw(self, candidate: Candidate) -> ParentImage | None:
        parent = self.pool.draw(candidate)
        return None if parent is None else self.images[parent.id]


def describe_change(pool: ParentPool, info: RunInfo) -> str:
    """A line if candidates are drawn from other images than before; empty otherwise."""
    before, now = info.parents, pool.describe()
    if before is not None and before["sha256"] == now["sha256"]:
        return ""
    was = 0 if before is None else int(before["count"])
    return f"parents: {was} -> {now['count']} real images; candidates to come are drawn from these"


def describe_pool(pool: ParentPool, config: Config) -> str:
    """Which classes are made from real images, and from how many."""
    per_class = pool.describe()["by_class"]
    if config.generation.contexts == "dataset" and pool.parents:
        images = counted(len(pool.parents), "training image")
        return f"conditioning: every class is made from {images} of any class"
    having = ", ".join(f"{name} {count}" for name, count in per_class.items() if count)
    lacking = ", ".join(name for name, count in per_class.items() if not count)
    parts = [f"made from training images: {having}"] if having else []
    parts += [f"from text alone: {lacking}"] if lacking else []
    return f"conditioning: {'; '.join(parts)}"
