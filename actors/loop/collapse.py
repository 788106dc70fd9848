"""Watch whether the images of a class collapse while they are made (`attempts.stop_when_collapsed`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from balancer.evaluation.diversity import LEAST_IMAGES, MAX_IMAGES, Embeddings, Pictures, measure_diversity

GROWTH = 0.2
"""A class is measured again once it has so many more images, as a share."""


@dataclass(slots=True)
class CollapseWatch:
    """`real` are the embeddings of the real images of each class."""

    real: Mapping[str, Embeddings]
    reason: str = ""
    """Why the run stops; empty as long as no class has collapsed."""
    _made: dict[str, deque[bytes]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _measured: dict[str, int] = field(default_factory=dict)

    @classmethod
    def over(cls, real: Iterable[tuple[str, bytes]]) -> CollapseWatch:
        """`real` are (class, embedding) pairs, little-endian float16."""
        by_class: dict[str, list[bytes]] = {}
        for name, embedding in real:
            by_class.setdefault(name, []).append(embedding)
        return cls({name: _embeddings(images) for name, images in by_class.items()})

    def add(self, class_name: str, embedding: bytes) -> None:
        """An accepted image."""
        self._made.setdefault(class_name, deque(maxlen=MAX_IMAGES)).append(embedding)
        self._counts[class_name] = self._counts.get(class_name, 0) + 1

    def has_collapsed(self) -> bool:
        """Measures the classes that have grown since they were measured."""
        due = [name for name in self._counts if self._is_due(name)]
        if due and not self.reason:
            groups = {name: Pictures(self.real[name], _embeddings(self._made[name])) for name in due}
            for name, each in measure_diversity(groups, self.real).items():
                self._measured[name] = self._counts[name]
                if each.level == "red":
                    self.reason = f"class {name} has collapsed: {'; '.join(each.reasons)}"
        return bool(self.reason)

    def _is_due(self, name: str) -> bool:
        least = max(LEAST_IMAGES, (1 + GROWTH) * self._measured.get(name, 0))
        return self._counts[name] >= least and len(self.real.get(name, ())) >= LEAST_IMAGES


def _embeddings(images: Iterable[bytes]) -> Embeddings:
    """Without those of an overflow."""
    vectors = [np.frombuffer(image, "<f2") for image in images]
    finite = [each for each in vectors if np.isfinite(each).all()]
    return np.array(finite, np.float64) if finite else np.empty((0, 1))
