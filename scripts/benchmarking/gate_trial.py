"""One trial of the gate: a subset, what is added to it, and what the gate says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.evaluation.recipe import Recipe
from actors.evaluation.training import train
from balancer.config.evaluation import EvaluationConfig
from balancer.evaluation.arms import ACCEPTED, Job, Pool
from balancer.evaluation.decision import Comparison, judge_classes
from balancer.evaluation.examples import VALIDATION_PART
from balancer.evaluation.experiment import Design, Predict, choose, final_jobs, run_test
from balancer.evaluation.outcome import summarise
from balancer.evaluation.statistics import images_of
from benchmarking.gate_images import Embedded, Images, Labels
from benchmarking.gate_scenarios import Added, Subset

Predicted = dict[Job, Sequence[int]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Places of the official test images that a user would have."""

    validation: NDArray[np.intp]
    test: NDArray[np.intp]

    @classmethod
    def drawn(cls, labels: Labels, per_class: int, random: np.random.Generator) -> HeldOut:
        """Dealt as the hold-out of an evaluation is."""
        part = round(per_class / VALIDATION_PART)
        dealt = [random.permutation(np.flatnonzero(labels == each))[:per_class] for each in np.unique(labels)]
        return cls(
            np.concatenate([each[:part] for each in dealt]), np.concatenate([each[part:] for each in dealt])
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """What all scenarios of one repetition share. Real images alone train the same in each of them, so they
    are trained once: `known` has what they predicted."""

    images: Images
    own: Subset
    held_out: HeldOut
    settings: EvaluationConfig
    recipe: Recipe
    known: Predicted = field(default_factory=dict)

    def run(self, added: Added, many: bool = False) -> dict[str, Any]:
        """The decision of the gate, with the true gain: of the same trainings on all official test images.
        With `many`, also its verdicts of classes if it had all of these but the validation images."""
        labels, places = self.images.test_labels, self.held_out
        pool, training = self._pool(added)
        design = Design(
            pool=pool,
            classes=self.images.classes,
            counted=tuple(range(len(self.images.classes))),
            metric=self.settings.metric,
            seeds=self.settings.seeds,
            rates=self.recipe.rates,
            real_shares=self.settings.real_shares,
            unfiltered=False,
        )
        made: Predicted = {}
        tune = self._predicting(pool, training, self.images.test[places.validation], made)
        choice = choose(design, labels[places.validation], tune)
        # The two arms that are compared: no other decides.
        jobs = {
            name: each
            for name, each in final_jobs(design, choice).items()
            if name in (choice.baseline.name, ACCEPTED)
        }
        everywhere = run_test(jobs, labels, self._predicting(pool, training, self.images.test, made))
        found = summarise(
            design,
            choice,
            jobs,
            {name: right[:, places.test] for name, right in everywhere.items()},
            labels[places.test],
            self.settings.margin,
            self.recipe.steps * self.recipe.batch_size,
            self.settings.min_test_images,
        )
        gained = everywhere[ACCEPTED].mean(0) - everywhere[choice.baseline.name].mean(0)
        each = images_of(labels, design.metric).each()
        rest = np.setdiff1d(np.arange(len(labels)), places.validation)
        comparison = Comparison(
            {name: right[:, rest] for name, right in everywhere.items()},
            labels[rest],
            design.classes,
            design.counted,
            choice.baseline.name,
            design.metric,
            self.settings.margin,
        )
        verdicts = judge_classes(comparison) if many else {}
        return {
            "decision": found["decision"],
            "difference": _rounded(found["difference"]),
            "sign_flip_p": round(found["sign_flip_p"], 4),
            "true_gain": round(float(gained @ each), 5),
            "baseline": found["baseline"],
            "recommended": found["recommended"],
            "classes": {name: verdict["decision"] for name, verdict in found["classes"].items()},
            "classes_with_many": {name: verdict.decision for name, verdict in verdicts.items()},
            "true_gain_of_classes": {
                name: round(float(gained[labels == label].mean()), 4)
                for label, name in enumerate(design.classes)
            },
            "arms": {name: round(float(right.mean(0) @ each), 4) for name, right in everywhere.items()},
        }

    def _pool(self, added: Added) -> tuple[Pool, Embedded]:
        """Real images first: their places are the same whatever is added."""
        own = self.own.places
        is_real = np.arange(len(own) + len(added.labels)) < len(own)
        labels = np.concatenate([self.images.labels[own], added.labels])
        return Pool(labels, is_real, ~is_real), np.concatenate([self.images.real[own], added.embedded])

    def _predicting(self, pool: Pool, training: Embedded, held_out: Embedded, made: Predicted) -> Predict:
        def predict(jobs: Sequence[Job]) -> Mapping[Job, Sequence[int]]:
            found: Predicted = {}
            for job in jobs:
                kept = self.known if job.arm.generated == "none" else made
                if job not in kept:
                    kept[job] = train(self.recipe, pool, training, held_out, job)
                found[job] = kept[job]
            return found

        return predict


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}
