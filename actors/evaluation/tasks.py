"""Trainings as Ray tasks: one for each arm and seed, made again where a node or a process is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.cluster.sizing import Resources
from actors.evaluation.recipe import Looked, Recipe
from balancer.config.evaluation import EncoderConfig
from balancer.errors import BalancerError, ClusterError, StalledError, first_line
from balancer.evaluation.arms import Job, Pool
from balancer.text.quantities import counted

RETRIES = 3
"""For a task whose process or node is lost; an error of the training itself is final."""

TURN_S = 0.25

AHEAD = 2
"""Tasks submitted for each that can run: the next one is at hand when one ends."""


@dataclass(slots=True)
class Trainers:
    """Trains on a cluster. `turn` is called all the while, and may end it by raising."""

    resources: Resources
    turn: Callable[[], None] = lambda: None
    _shared: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def check(self, recipe: Recipe) -> None:
        """ClusterError if no training fits."""
        gpus, cpus = sum(self.resources.gpus), self.resources.cpus
        if recipe.num_gpus > max(self.resources.gpus, default=0):
            raise ClusterError(
                f"a training with {recipe.num_gpus:g} GPUs fits on no node: Ray sees {counted(gpus, 'GPU')}",
                hint="lower evaluation.num_gpus; 0 trains on CPUs",
            )
        if recipe.num_cpus > cpus:
            raise ClusterError(
                f"a training with {recipe.num_cpus:g} CPU cores does not fit: Ray sees {cpus:g}",
                hint="lower evaluation.num_cpus",
            )

    def train_all(
        self, recipe: Recipe, pool: Pool, training: Looked, held_out: Looked, jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, list[int]]]:
        """What each job predicts, as they end."""
        shared = [self._put(each) for each in (recipe, pool, training, held_out)]
        options = {"num_cpus": recipe.num_cpus, "num_gpus": recipe.num_gpus, "max_retries": RETRIES}
        task: Any = ray.remote(_train).options(**options)
        waiting, under_way = list(reversed(jobs)), dict[Any, Job]()
        try:
            while waiting or under_way:
                self.turn()
                while waiting and len(under_way) < AHEAD * self._places(recipe):
                    job = waiting.pop()
                    under_way[task.remote(*shared, job)] = job
                ended, _ = ray.wait(list(under_way), num_returns=1, timeout=TURN_S)
                for ref in ended:
                    yield under_way.pop(ref), self._result(ref)
        finally:
            for ref in under_way:
                ray.cancel(ref, force=True)

    def embed(
        self, recipe: Recipe, encoder: EncoderConfig, weights: str | None, pixels: Looked, copies: int
    ) -> Looked:
        options = {"num_cpus": recipe.num_cpus, "num_gpus": recipe.num_gpus, "max_retries": RETRIES}
        ref = ray.remote(_embed).options(**options).remote(
            recipe, encoder, weights, self._put(pixels), copies
        )  # fmt: skip
        while not ray.wait([ref], timeout=TURN_S)[0]:
            self.turn()
        found: Looked = self._result(ref)
        return found

    def _put(self, value: Any) -> Any:
        """Once for all calls with the very same value, which is kept so that no other one takes its id."""
        if id(value) not in self._shared:
            self._shared[id(value)] = (value, ray.put(value))
        return self._shared[id(value)][1]

    def _places(self, recipe: Recipe) -> int:
        if recipe.num_gpus:
            return max(1, int(sum(self.resources.gpus) / recipe.num_gpus))
        return max(1, int(self.resources.cpus / recipe.num_cpus))

    def _result(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BalancerError):
                raise cause from error
            raise BalancerError(f"a training failed: {first_line(cause or error)}") from error
        except RayError as error:
            raise StalledError(
                f"a training was lost {RETRIES + 1} times: {first_line(error)}",
                hint="the same command goes on with what has ended",
            ) from error


def _train(recipe: Recipe, pool: Pool, training: Looked, held_out: Looked, job: Job) -> list[int]:
    _hide_gpus(recipe)
    from actors.evaluation.training import prepare, train

    prepare(recipe)
    return train(recipe, pool, training, held_out, job)


def _embed(
    recipe: Recipe, encoder: EncoderConfig, weights: str | None, pixels: Looked, copies: int
) -> Looked:
    _hide_gpus(recipe)
    from actors.evaluation.encoding import embed_all
    from actors.evaluation.training import prepare

    prepare(recipe)
    return embed_all(encoder, weights, pixels, copies, recipe.num_gpus > 0)  # type: ignore[arg-type]


def _hide_gpus(recipe: Recipe) -> None:
    """Ray leaves all GPUs visible to a task that reserved none."""
    if not recipe.num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
