"""The ways to train that are compared, and which images each of them draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from balancer.manifest.rows import REAL, SYNTHETIC
from balancer.training.sampling import sample_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

Generated = Literal["none", "accepted", "all"]
Stage = Literal["tune", "test"]

TUNING_SEEDS = 3
"""Seeds of the choices made on validation images; none of them is a seed of the comparison."""

FIRST_TUNING_SEED = 1_000_000

FRACTIONS = (0.25, 0.5)
"""Of the real images, to see what a real image is worth."""

LEAST_TO_THIN = 8
"""Real images of each class that has any, for a quarter of them to be a training set."""


@dataclass(frozen=True, slots=True)
class Arm:
    """`balanced` draws each class equally often; `augmented` trains on images changed by RandAugment;
    `adjusted` corrects the loss for the frequency of classes (logit adjustment, Menon et al. 2021).
    `fraction` of the real images of each class take part."""

    name: str
    generated: Generated = "none"
    balanced: bool = False
    augmented: bool = False
    adjusted: bool = False
    fraction: float = 1.0


REAL_ALONE = Arm("real")
BASELINES = (
    REAL_ALONE,
    Arm("real_balanced", balanced=True),
    Arm("real_augmented", balanced=True, augmented=True),
    Arm("real_logit_adjusted", adjusted=True),
)
"""What generated images have to beat: training on real images alone. Without `real_balanced`, images of
anything would seem to help where they only make classes equally frequent."""

ACCEPTED, UNFILTERED = "accepted", "unfiltered"

DESCRIBED = {
    "real": "real images",
    "real_balanced": "real images, class-balanced sampling",
    "real_augmented": "real images, class-balanced sampling and RandAugment",
    "real_logit_adjusted": "real images, logit-adjusted loss",
}


def with_generated(baseline: Arm, name: str) -> Arm:
    """The arm that adds generated images. It draws classes, changes images and adjusts the loss as the
    baseline does: otherwise the same images once more would gain or lose points."""
    generated: Generated = "accepted" if name == ACCEPTED else "all"
    return replace(baseline, name=name, generated=generated)


def thinned(baseline: Arm, fraction: float) -> Arm:
    """The baseline with a part of its real images: what they are worth is measured in its own way."""
    return replace(baseline, name=thinned_name(fraction), fraction=fraction)


def thinned_name(fraction: float) -> str:
    return f"real_{100 * fraction:g}"


@dataclass(frozen=True, slots=True)
class Job:
    """One training. `seed` decides the first weights, the draws and the changes of images."""

    stage: Stage
    arm: Arm
    learning_rate: float
    seed: int
    real_share: float | None = None

    @property
    def name(self) -> str:
        """Of its file: plain characters only."""
        share = "" if self.real_share is None else f"-share{self.real_share:g}"
        return f"{self.stage}-{self.arm.name}{share}-rate{self.learning_rate:g}-seed{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pool:
    """Training images of all arms: their labels, which are real, and which of the others were accepted."""

    labels: NDArray[np.int64]
    is_real: NDArray[np.bool_]
    is_accepted: NDArray[np.bool_]

    def members(self, generated: Generated) -> NDArray[np.intp]:
        none = np.zeros(len(self.labels), bool)
        others = {"none": none, "accepted": self.is_accepted, "all": ~self.is_real}
        return np.flatnonzero(self.is_real | others[generated])


def weights(arm: Arm, pool: Pool, members: NDArray[np.intp], real_share: float | None) -> NDArray[np.float64]:
    """How often each member is drawn; they sum to 1. Without `balanced` a class is as frequent as its images,
    of which `real_share` are real ones."""
    if not arm.balanced and real_share is None:
        return np.full(len(members), 1 / len(members))
    labels, sources = pool.labels[members], np.where(pool.is_real[members], REAL, SYNTHETIC)
    rows = pa.table({"class": labels, "source": sources.tolist()})
    return sample_weights(rows, ["class"], real_share=real_share, by_size=not arm.balanced)


def members_of(job: Job, pool: Pool) -> NDArray[np.intp]:
    """Places of the images that a job may draw. Of a fraction of the real ones, each seed has its own."""
    members = pool.members(job.arm.generated)
    if job.arm.fraction == 1:
        return members
    random = np.random.default_rng([job.seed, 1])
    kept = []
    for label in np.unique(pool.labels[members]):
        ones = members[pool.labels[members] == label]
        kept.append(random.permutation(ones)[: max(1, math.ceil(len(ones) * job.arm.fraction))])
    return np.sort(np.concatenate(kept))


def draw(job: Job, pool: Pool, count: int) -> NDArray[np.intp]:
    """Places of the images that a job trains on, in order, with replacement."""
    members = members_of(job, pool)
    chances = weights(job.arm, pool, members, job.real_share)
    random = np.random.default_rng([job.seed, 2])
    drawn: NDArray[np.intp] = members[random.choice(len(members), size=count, p=chances)]
    return drawn


def exposures(job: Job, pool: Pool, count: int, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """How often one job showed a real and a generated image of each class, on average."""
    times = np.bincount(draw(job, pool, count), minlength=len(pool.labels))
    members = np.zeros(len(pool.labels), bool)
    members[members_of(job, pool)] = True
    shown: dict[str, dict[str, float]] = {}
    for label, name in enumerate(classes):
        of_class = members & (pool.labels == label)
        kinds = {"real": of_class & pool.is_real, "generated": of_class & ~pool.is_real}
        shown[name] = {kind: float(times[which].mean()) for kind, which in kinds.items() if which.any()}
    return shown


def can_be_thinned(pool: Pool) -> bool:
    """Whether every class with real images has enough for a curve over their number."""
    counts = np.bincount(pool.labels[pool.is_real])
    return bool((counts[counts > 0] >= LEAST_TO_THIN).all())


def worth(counts: Sequence[int], scores: Sequence[float], reached: float) -> tuple[int, bool] | None:
    """How many real images would score what real and generated ones together reached, and whether it is at
    least so many; None if more real images do not help here.

    A line over the logarithm of the number of images, which is not trusted beyond twice the images there are.
    """
    slope, start = np.polyfit(np.log(counts), scores, 1)
    if slope <= 0:
        return None
    most = 2 * max(counts)
    wanted, last = (reached - start) / slope, math.log(most)
    return round(math.exp(min(wanted, last))), wanted >= last
