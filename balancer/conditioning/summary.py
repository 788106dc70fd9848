"""What a plan says of conditioning: which cells are made from real images, and how many steps that takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.scheduling.prompts import ladder

if TYPE_CHECKING:
    from balancer.conditioning.pool import ParentPool
    from balancer.config.schema import Config
    from balancer.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Summary:
    """`by_hashes` if no verifier has compared the images: then a few too many are linked to those kept
    apart."""

    pool: ParentPool
    config: Config
    plan: Plan
    by_hashes: bool

    @property
    def steps(self) -> str:
        """`attempts at strength 0.5, 0.7, 0.9 run about 5, 7, 9 of 10 steps`."""
        whole = self.config.generation.steps
        strengths = [rung.strength or 0.0 for rung in ladder(self.config)]
        shown, run = (", ".join(map(str, of)) for of in (strengths, [int(whole * one) for one in strengths]))
        return f"attempts at strength {shown} run about {run} of {whole} steps"

    def by_class(self) -> list[tuple[str, int, int, int]]:
        """Class, parents to draw from, images to make from them, and from text alone; of classes that lack
        images."""
        own = self.pool.describe()["by_class"]
        from_image: Counter[str] = Counter()
        from_text: Counter[str] = Counter()
        for wanted in self.plan.cells:
            made = from_image if self.pool.is_conditioned(wanted.cell) else from_text
            made[wanted.cell.class_name] += wanted.quota
        there = len(self.pool.parents) if self.config.generation.contexts == "dataset" else None
        return [
            (name, own[name] if there is None else there, from_image[name], from_text[name])
            for name in own
            if from_image[name] + from_text[name]
        ]

    def as_dict(self) -> dict[str, Any]:
        rungs = ladder(self.config)
        return {
            "contexts": self.config.generation.contexts or "class",
            "strengths": [rung.strength for rung in rungs],
            "parents": self.pool.describe(),
            "by_hashes": self.by_hashes,
            "from_parents": sum(images for _, _, images, _ in self.by_class()),
            "from_text": sum(images for _, _, _, images in self.by_class()),
        }

    def of_cells(self) -> dict[str, str]:
        """`image` or `text` for the key of each cell."""
        return {
            wanted.cell.key: "image" if self.pool.is_conditioned(wanted.cell) else "text"
            for wanted in self.plan.cells
        }
