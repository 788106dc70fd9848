"""One evaluation from a run to its outcome: images, rule, cluster, trainings, decision."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.cluster.connect import (
    alone,
    connected,
    end_if_stopped,
    ended_by_signals,
    refuse_silent,
    starting,
)
from actors.evaluation.recipe import Looked, Recipe, recipe_of
from actors.evaluation.tasks import Trainers
from actors.weights.hashes import combine_hashes, file_sha256
from balancer.config.evaluation import EncoderConfig, EvaluationConfig
from balancer.config.schema import EMBEDDED_MODEL, Config
from balancer.errors import UsageError, WeightsError
from balancer.evaluation.arms import BASELINES, TUNING_SEEDS, Job, Pool
from balancer.evaluation.decision import RULE
from balancer.evaluation.examples import Example, Role, counted_classes, describe_left_out
from balancer.evaluation.experiment import Design, Predict, choose, final_jobs, run_test
from balancer.evaluation.files import (
    fingerprint,
    other_outcomes,
    read_result,
    write_images,
    write_outcome,
    write_result,
    write_rule,
)
from balancer.evaluation.outcome import summarise
from balancer.evaluation.reading import Gathered, digest, gather
from balancer.evaluation.sentence import repeated_sentence
from balancer.evaluation.staleness import hash_images
from balancer.manifest.query.rows import open_rows
from balancer.storage import Storage, open_storage
from balancer.text.quantities import counted

VERSION = 2
"""Of the experiment: results of another version are not gone on with."""

KEPT = ": the trainings that have ended are kept"
"""What an interruption leaves."""

ONLY_NOISE = "The actors of this run were simulated: its generated images are noise."

CHANGED_COPIES = 4
"""Of each training image, embedded for the arm with RandAugment."""


class AllTrainers(Protocol):
    """What trains: Ray, or this process."""

    def check(self, recipe: Recipe) -> None: ...
    def train_all(
        self, recipe: Recipe, pool: Pool, training: Looked, held_out: Looked, jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, list[int]]]: ...
    def embed(
        self, recipe: Recipe, encoder: EncoderConfig, weights: str | None, pixels: Looked, copies: int
    ) -> Looked: ...


@dataclass(frozen=True, slots=True)
class Reporter:
    """Where an evaluation reports: `note` takes lines, `progress` how many trainings of how many ended."""

    note: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


def evaluate(
    run: str | os.PathLike[str],
    config: Config | None = None,
    *,
    address: str | None = None,
    reporter: Reporter | None = None,
    trainers: AllTrainers | None = None,
) -> dict[str, Any]:
    """Whether the generated images of a run make a classifier better: the outcome, which is kept in the run.

    `config` has the settings `evaluation` and `dataset.holdout`, by default those of the run. The same call
    goes on where one was killed. UsageError if the held-out images are too few, with the number needed.
    """
    reporter = reporter or Reporter()
    storage = open_storage(run, create=False)
    manifest = open_rows(storage)
    config = config or manifest.run.config_as(Config)
    settings = config.evaluation
    _refuse_circular(settings, config)
    classes = tuple(manifest.run.config["classes"])
    recipe = recipe_of(settings, classes, _weights(config, "evaluation.weights", settings.weights))
    if trainers is None:
        refuse_silent(address)
    reporter.note("reading the images of the run and those held out")
    images = hash_images(manifest)
    gathered = gather(manifest, storage, config, recipe.image_size)
    for line in (*gathered.notes, describe_left_out(gathered.split)):
        if line:
            reporter.note(line)
    design = _design(gathered, recipe, settings, classes)
    sha256 = _weights_sha256(config, recipe)
    rule = _rule(design, gathered, recipe, settings, manifest.run.run_id, sha256)
    key = fingerprint(rule)
    write_images(storage, key, _images(gathered, classes))
    write_rule(storage, rule, key)
    with contextlib.ExitStack() as stack:
        if trainers is None:
            stop = stack.enter_context(ended_by_signals(KEPT))
            stack.callback(stop.raise_again)
            stack.enter_context(alone())
            reporter.note(starting(address))
            resources = stack.enter_context(connected(address, config.actors.allow_open_cluster))
            stop.only_note()
            trainers = Trainers(resources, lambda: end_if_stopped(stop, KEPT))
        trainers.check(recipe)
        kept = _Kept(storage, key, recipe, design.pool, trainers, reporter, _count(design))
        outcome = _experiment(design, gathered, config, kept)
    outcome = {"fingerprint": key, "run_images": images, **outcome}
    decisions = [each.decision for each in other_outcomes(storage, key, images)]
    lines = (
        gathered.no_unfiltered,
        ONLY_NOISE if manifest.run.simulated else "",
        repeated_sentence([*decisions, outcome["decision"]]),
    )
    outcome["notes"] += [line for line in lines if line]
    write_outcome(storage, outcome)
    return outcome


def _refuse_circular(settings: EvaluationConfig, config: Config) -> None:
    """An encoder that selected the images prefers what it selected."""
    if settings.encoder is None:
        return
    judges = {config.verification.model, EMBEDDED_MODEL}
    judges |= {config.verification.backbone.model} if config.verification.backbone else set()
    if settings.encoder.model in judges:
        raise UsageError(
            f"evaluation.encoder.model is {settings.encoder.model}, which selected the generated images and"
            " would find them good",
            hint="name another model, or leave evaluation.encoder out to train on pixels",
        )


def _weights(config: Config, name: str, path: str | None) -> str | None:
    if path is None:
        return None
    found = config.resolve_path(name, path)
    if not found.is_file():
        raise UsageError(f"{name}: no file {found}", hint="give a safetensors file")
    return str(found.absolute())


def _weights_sha256(config: Config, recipe: Recipe) -> str:
    """Of the weights that training starts from, or that embed the images, as far as they are on this disk:
    empty without any, or for a model whose revision says which they are."""
    paths = [Path(recipe.weights)] if recipe.weights else []
    encoder = config.evaluation.encoder
    if recipe.kind == "head" and encoder is not None:
        given = _weights(config, "evaluation.encoder.weights", encoder.weights)
        paths += (
            [Path(given)] if given else [each for each in Path(encoder.model).glob("*") if each.is_file()]
        )
    try:
        return combine_hashes({each.name: file_sha256(each) for each in paths}) if paths else ""
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _design(
    gathered: Gathered, recipe: Recipe, settings: EvaluationConfig, classes: tuple[str, ...]
) -> Design:
    enough = counted_classes(gathered.split, classes, settings.min_test_images)
    train = gathered.split.of("train")
    pool = Pool(
        labels=_labels(train),
        is_real=np.array([each.kind == "real" for each in train]),
        is_accepted=np.array([each.kind == "accepted" for each in train]),
    )
    return Design(
        pool=pool,
        classes=classes,
        counted=enough,
        metric=settings.metric,
        seeds=settings.seeds,
        rates=recipe.rates,
        real_shares=settings.real_shares,
        unfiltered=not gathered.no_unfiltered,
    )


def _labels(examples: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([each.label for each in examples], np.int64)


def _rule(
    design: Design, gathered: Gathered, recipe: Recipe, settings: EvaluationConfig, run_id: str, sha256: str
) -> dict[str, Any]:
    """What is fixed before anything is trained."""
    shown = settings.model_dump(mode="json", exclude={"num_cpus", "num_gpus"})
    counts = {role: len(gathered.split.of(role)) for role in ("train", "validation", "test")}
    return {
        "version": VERSION,
        "run_id": run_id,
        "settings": shown,
        "arms": design.arms(),
        "counted_classes": [design.classes[label] for label in design.counted],
        "learning_rates": list(design.rates),
        "image_size": recipe.image_size,
        "images": counts,
        "images_sha256": digest(gathered.split),
        **({"weights_sha256": sha256} if sha256 else {}),
        "device": "gpu" if recipe.num_gpus else "cpu",
        "torch": importlib.metadata.version("torch"),
        "rule": RULE,
    }


def _images(gathered: Gathered, classes: Sequence[str]) -> dict[str, Any]:
    """Ids and classes of the held-out images, in the order of predictions, and what was left out."""
    held_out = {
        role: [{"id": each.id, "class": classes[each.label]} for each in gathered.split.of(role)]
        for role in ("validation", "test")
    }
    return {
        **held_out,
        "left_out": [{"id": name, "why": why} for name, why in gathered.split.left_out.items()],
    }


def _count(design: Design) -> int:
    """Trainings in all; `real` is among both rates and baselines."""
    tuned = len(design.rates) + len(BASELINES) - 1 + len(design.real_shares)
    return TUNING_SEEDS * tuned + design.seeds * len(design.arms())


@dataclass(slots=True)
class _Kept:
    """Trains what has no result yet, and keeps each result as it comes."""

    storage: Storage
    key: str
    recipe: Recipe
    pool: Pool
    trainers: AllTrainers
    reporter: Reporter
    total: int
    done: int = 0

    def predict(self, training: Looked, held_out: Looked, jobs: Sequence[Job]) -> Mapping[Job, Sequence[int]]:
        found: dict[Job, Sequence[int]] = {}
        classes = len(self.recipe.classes)
        for job in jobs:
            predicted = read_result(self.storage, self.key, job, len(held_out), classes)
            if predicted is not None:
                found[job] = predicted
        missing = [job for job in dict.fromkeys(jobs) if job not in found]
        self._count(len(dict.fromkeys(jobs)) - len(missing))
        for job, predicted in self.trainers.train_all(self.recipe, self.pool, training, held_out, missing):
            found[job] = write_result(self.storage, self.key, job, predicted, classes)
            self._count(1)
        return found

    def _count(self, more: int) -> None:
        self.done = min(self.total, self.done + more)
        self.reporter.progress(self.done, self.total)


def _experiment(design: Design, gathered: Gathered, config: Config, kept: _Kept) -> dict[str, Any]:
    settings, recipe = config.evaluation, kept.recipe
    looked = _looked(gathered, config, kept)
    held_out: tuple[Role, ...] = ("validation", "test")
    labels = {role: _labels(gathered.split.of(role)) for role in held_out}

    def predicting(held_out: Looked) -> Predict:
        return lambda jobs: kept.predict(looked["train"], held_out, jobs)

    kept.reporter.note(f"choosing on {counted(len(labels['validation']), 'validation image')}")
    choice = choose(design, labels["validation"], predicting(looked["validation"]))
    kept.reporter.note(
        f"chosen: learning rate {choice.learning_rate:g}, baseline {choice.baseline.name},"
        f" real_share {choice.real_share:g}; testing on {counted(len(labels['test']), 'image')}"
    )
    jobs = final_jobs(design, choice)
    correct = run_test(jobs, labels["test"], predicting(looked["test"]))
    draws = recipe.steps * recipe.batch_size
    return summarise(
        design, choice, jobs, correct, labels["test"], settings.margin, draws, settings.min_test_images
    )


def _looked(gathered: Gathered, config: Config, kept: _Kept) -> dict[str, Looked]:
    """What is trained on: pixels, or embeddings of an encoder."""
    roles: tuple[Role, ...] = ("train", "validation", "test")
    pixels = {role: _channels_first(gathered.array(role)) for role in roles}
    encoder = config.evaluation.encoder
    if kept.recipe.kind != "head" or encoder is None:
        return {role: pixels[role] for role in roles}
    weights = _weights(config, "evaluation.encoder.weights", encoder.weights)
    kept.reporter.note(f"{encoder.model} looks at the images")
    return {
        role: kept.trainers.embed(
            kept.recipe, encoder, weights, pixels[role], CHANGED_COPIES if role == "train" else 0
        )
        for role in roles
    }


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
