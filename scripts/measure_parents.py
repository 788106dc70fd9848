"""How much images still look like the real ones they were made from: for the limits `verification.parent`.

python scripts/measure_parents.py [CONFIG]

For each strength: bits between the perceptual hashes, cosine of the embeddings, how many candidates some
limits would reject, and how many pass otherwise. Then the same for pairs of different real images of one
class, none of which should count as copies.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.real_images import list_references, measure_here, verifier_here
from actors.specs import generator_for
from balancer.cells import Candidate, Slot, enumerate_cells
from balancer.conditioning.eligible import make_pool
from balancer.conditioning.pool import ParentPool
from balancer.config.load import load_config
from balancer.config.schema import Config
from balancer.dataset.audit import audit_dataset
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.dataset.splits import assign_splits
from balancer.scheduling.prompts import ParentImage, Request, ladder, request_for
from balancer.scheduling.schedule import in_batches
from balancer.verification.verdict import Nearest, criteria_for, judge

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
LIMITS = ((4, 0.95), (8, 0.9), (12, 0.9))
CANDIDATES = 160


@dataclass(frozen=True, slots=True)
class Trial:
    config: Config
    pool: ParentPool
    index: NearDuplicateIndex
    generator: Any
    verifier: Any

    def compare(self, strength: float) -> tuple[list[Nearest], int]:
        """Candidates compared with their parents, and how many pass the other tests."""
        compared: list[Nearest] = []
        passing = 0
        chosen = itertools.islice(candidates(self.config, self.pool), CANDIDATES)
        for batch in in_batches(chosen, lambda _: 0, self.config.generation.usual_batch):
            requests = [self.request(candidate, strength) for candidate in batch]
            cells = [candidate.slot.cell for candidate in batch]
            measured = self.verifier.measure(
                *self.generator.generate(requests, self.config.generation.guidance), cells
            )
            for request, cell, one in zip(requests, cells, measured, strict=True):
                assert request.parent is not None
                compared.append(self.index.compare(one, request.parent.id))
                criteria = criteria_for(cell, self.config.verification.threshold, self.config)
                passing += judge(one, cell, criteria).accepted
        return compared, passing

    def request(self, candidate: Candidate, strength: float) -> Request:
        drawn = self.pool.draw(candidate)
        assert drawn is not None
        parent = ParentImage(drawn.id, drawn.id.removeprefix("real/"), drawn.picture)
        rung = replace(ladder(self.config)[0], strength=strength)
        return request_for(candidate, rung, self.config, parent=parent)


def main(path: str = "configs/demo.yaml") -> None:
    config = load_config(path, ["generation.conditioning=image", "actors.device=cpu"])
    audit = audit_dataset(config)
    load = verifier_here(config)
    references = list_references(measure_here(config, audit, None, load))
    index = NearDuplicateIndex(references, config.verification.copies)
    pool = make_pool(config, audit.images, references, assign_splits(audit, config))
    trial = Trial(config, pool, index, generator_for(config, False, str(audit.path)).load(), load())
    for strength in STRENGTHS:
        compared, passing = trial.compare(strength)
        show(f"strength {strength}", compared, f", {passing} pass otherwise")
    by_class = {f"real/{image.file_name}": image.class_name for image in audit.images}
    pairs = itertools.combinations(references, 2)
    alike = (pair for pair in pairs if by_class[pair[0].id] == by_class[pair[1].id])
    show("different real images", [index.compare(one, other.id) for one, other in alike])


def candidates(config: Config, pool: ParentPool) -> Iterator[Candidate]:
    """First attempts in every cell that has parents, slot by slot."""
    cells = [cell for name in config.classes for cell in enumerate_cells(name, config.facet_axes())]
    conditioned = [cell for cell in cells if pool.is_conditioned(cell)]
    return (Candidate(Slot(cell, index), 1) for index in itertools.count() for cell in conditioned)


def show(what: str, compared: Sequence[Nearest], more: str = "") -> None:
    distances = np.array([one.distance for one in compared])
    similarities = np.array([one.similarity for one in compared])
    caught = [
        f"{((distances <= bits) & (similarities >= cosine)).sum()} within {bits} bits and {cosine}"
        for bits, cosine in LIMITS
    ]
    print(
        f"{what}: {len(compared)}; bits {distances.min()} to {distances.max()}, median"
        f" {np.median(distances):g}; cosine at most {similarities.max():.3f}, median"
        f" {np.median(similarities):.2f};"
        f" {', '.join(caught)}{more}",
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
