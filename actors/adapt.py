"""Train the adapters of a config: dataset, cluster, one actor per adapter, files.

Trainers see neither the dataset nor the folder of the result: files and states go through calls, so they may
be on any node. Each call makes a few steps and brings back the state, which is the checkpoint: a trainer that
dies costs those steps, and so does the end of this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.cluster.connect import (
    alone,
    connected,
    end_if_stopped,
    ended_by_signals,
    refuse_silent,
    starting,
)
from actors.cluster.fleet import make_trainers
from actors.cluster.pool import Pool, call_all, shared, wait
from actors.cluster.sizing import Resources, fit
from actors.models.adaptation.spec import TrainerSpec
from actors.models.adaptation.support import refuse_untrainable
from actors.real_images import over_files
from actors.run import Reporter
from actors.specs import CPU_THREADS, located, scheduler_choice
from actors.weights import resolve as weights
from balancer.adaptation.images import find_training_images
from balancer.adaptation.page import render_page
from balancer.adaptation.plan import Task, left_out, plan_adapters
from balancer.adaptation.record import TrainedAdapter, describe, file_of
from balancer.adaptation.store import AdapterFolder
from balancer.config.schema import Config
from balancer.dataset.audit import Audit, audit_dataset, audit_holdout
from balancer.dataset.splits import assign_splits
from balancer.errors import UsageError
from balancer.process.signals import StopSignal
from balancer.text.json_reading import json_sha256
from balancer.text.quantities import are, counted

VERSIONED = ("balancer", "torch", "diffusers", "transformers", "peft")
TURN_S = 0.25

KEPT = ": the last checkpoints are kept"
"""What an interruption leaves."""

Request = tuple[str, tuple[Any, ...]]
"""A method of a trainer, and its arguments."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Adapters in the order in which they were planned, in the folder `out`. `left_out` are classes that none
    has seen, with their training images."""

    out: str
    adapters: tuple[TrainedAdapter, ...]
    left_out: Mapping[str, int]


def adapt(
    config: Config,
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> Adapted:
    """Train the adapters of `config` into the folder `out`, or go on where it was left.

    `address` is a Ray cluster (host:port or `auto`). With `replace`, adapters there that were trained on
    other images or with other settings are trained again.
    """
    reporter = reporter or Reporter()
    with alone(), ended_by_signals(KEPT) as stop:
        text_encoders = refuse_untrainable(config)  # before the dataset is read, which can take long
        model = weights.describe(*weights.wanted_models(config)["generator"], "generator")
        refuse_silent(address)
        reporter.step(f"reading the dataset {config.dataset.path}")
        audit = audit_dataset(config, reporter.watch_images)
        holdout = audit_holdout(config, reporter.watch_images)
        images = find_training_images(config, audit, holdout, assign_splits(audit, config))
        tasks = plan_adapters(config, images)
        versions = {name: importlib.metadata.version(name) for name in VERSIONED}
        jobs = [_Job.of(task, text_encoders, model, versions) for task in tasks]
        folder = AdapterFolder.open(out, {job.task.name: job.identity for job in jobs}, replace)
        open_jobs = [job for job in jobs if not folder.has(job.task.name)]
        _announce(reporter, tasks, len(open_jobs))
        if open_jobs:
            spec = _spec(config, text_encoders)
            _train_all(config, address, _Work(open_jobs, audit, folder, spec, reporter, stop))
        folder.write_page(render_page(config.name, tasks, folder))
        return Adapted(folder.uri, folder.adapters(), left_out(config, tasks, images))


@dataclass(frozen=True, slots=True)
class _Job:
    """A task with all that its weights follow from, and the hash of it."""

    task: Task
    described: Mapping[str, str]
    identity: str

    @classmethod
    def of(
        cls, task: Task, text_encoders: bool, model: Mapping[str, Any], versions: Mapping[str, str]
    ) -> _Job:
        everything = task.identity(model, versions)
        everything["settings"]["text_encoders"] = text_encoders
        return cls(task, describe(task, everything), json_sha256(everything))


@dataclass(frozen=True, slots=True)
class _Work:
    jobs: Sequence[_Job]
    audit: Audit
    folder: AdapterFolder
    spec: TrainerSpec
    reporter: Reporter
    stop: StopSignal

    def turn(self) -> None:
        end_if_stopped(self.stop, KEPT)


def _train_all(config: Config, address: str | None, work: _Work) -> None:
    work.reporter.step(starting(address))
    with contextlib.ExitStack() as stack:
        stack.callback(work.stop.raise_again)  # when Ray has ended
        resources = stack.enter_context(connected(address, config.actors.allow_open_cluster))
        work.stop.only_note()  # from here on there are loops that look
        pool = stack.enter_context(_started(config, resources, work))
        pool.stopping = lambda: work.stop.number is not None
        latents = _encode(config, pool, work)
        _run([_steps(job, latents, work) for job in work.jobs], pool, work.turn)


@contextlib.contextmanager
def _started(config: Config, resources: Resources, work: _Work) -> Iterator[Pool]:
    """As many trainers as there are adapters, or as fit; each has a GPU of its own."""
    alone_on_it = {"gpus_per_generator": max(1.0, config.actors.gpus_per_generator), "gpus_per_verifier": 0.0}
    fleet = fit(resources, config.actors.model_copy(update=alone_on_it), len(work.jobs))
    trainers = min(fleet.generators, len(work.jobs))
    on_gpu = fleet.gpus_per_generator > 0
    spec = dataclasses.replace(work.spec, device=config.actors.device if on_gpu else "cpu")
    pool = make_trainers(config, spec, trainers, fleet)
    work.reporter.step(
        f"{counted(trainers, 'trainer')} on {'GPU' if on_gpu else 'CPU'}; the model loads and encodes images"
    )
    try:
        pool.start()
        yield pool
    finally:
        pool.close()


def _encode(config: Config, pool: Pool, work: _Work) -> dict[str, Any]:
    """The latents of every image, by the hash of its file."""
    wanted = {image.sha256: image.file_name for job in work.jobs for image in job.task.images}
    paths = {sha256: work.audit.path / name for sha256, name in sorted(wanted.items())}
    return dict(over_files(paths, config, lambda calls: call_all(pool, "encode", calls, work.turn)))


def _steps(job: _Job, latents: Mapping[str, Any], work: _Work) -> Generator[Request, Any, None]:
    """What an adapter asks of trainers, one request after the other, each with the answer to the last."""
    task, folder, name = job.task, work.folder, job.task.name
    given = shared((task, [latents[image.sha256] for image in task.images]))
    folder.write_samples(name, "before", (yield "sample", (given, None)))
    state = folder.read_checkpoint(name, (yield "state_bytes", (task.steps,)))
    losses: list[float] = []
    done = -1
    while done < task.steps:
        until = min(max(done, 0) + task.settings.checkpoint_every, task.steps)
        progress = yield "train", (given, None if state is None else shared(state), until)
        if isinstance(progress, str):
            work.reporter.note(f"warning: {name}: its checkpoint cannot be used, it starts again: {progress}")
            state = None
            continue
        if state is not None and done < 0:
            work.reporter.step(f"{name}: going on from a checkpoint")
        state, losses, done = progress.state, progress.losses, len(progress.losses)
        _refuse_divergence(name, losses)  # before its state is kept
        folder.write_checkpoint(name, state)
        recent = losses[-task.settings.checkpoint_every :]
        work.reporter.step(f"{name}: step {done} of {task.steps}, loss {sum(recent) / len(recent):.4f}")
    last = shared(state)
    data = yield "export", (given, last, dict(job.described))
    folder.write_samples(name, "after", (yield "sample", (given, last)))
    folder.add(
        TrainedAdapter(
            name=name,
            file=file_of(name),
            sha256=hashlib.sha256(data).hexdigest(),
            identity=job.identity,
            classes=list(task.classes),
            images=task.by_class(),
            steps=task.steps,
            losses=losses,
        ),
        data,
    )


def _refuse_divergence(name: str, losses: Sequence[float]) -> None:
    """Every step after it is lost, and so is the adapter."""
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            raise UsageError(
                f"{name}: the training diverged: at step {step} the loss is {loss}",
                hint="lower adaptation.learning_rate, or train fewer layers (adaptation.layers: attention)",
            )


@dataclass(slots=True, eq=False)
class _Turn:
    """Where a job is: the request that is to be answered next."""

    steps: Generator[Request, Any, None]
    request: Request


def _run(jobs: Sequence[Generator[Request, Any, None]], pool: Pool, turn: Callable[[], None]) -> None:
    """Answer the requests of all jobs. One that a trainer's failure took away is made again, until the pool
    gives up. A job stays with its trainer, which has its state already."""
    waiting = deque(_Turn(steps, next(steps)) for steps in jobs)
    under_way = 0
    while waiting or under_way:
        turn()
        while waiting and (actor := pool.least_busy(1)):
            first = waiting.popleft()
            pool.submit(actor, first.request[0], *first.request[1], job=first)
            under_way += 1
        ended = [pool.finish(ref) for ref in wait([pool], TURN_S)]
        for finished in [*filter(None, ended), *pool.give_up_overdue()]:
            under_way -= 1
            job: _Turn = finished.job
            if finished.error is None:
                pool.progressed()
                try:
                    job.request = job.steps.send(finished.value)
                except StopIteration:
                    continue
            waiting.appendleft(job)


def _spec(config: Config, text_encoders: bool) -> TrainerSpec:
    made = config.generation
    return TrainerSpec(
        model=located(made.model),
        revision=made.revision,
        variant=made.variant,
        width=made.width,
        height=made.height,
        settings=config.adaptation,
        text_encoders=text_encoders,
        scheduler=scheduler_choice(config),
        threads=CPU_THREADS,
    )


def _announce(reporter: Reporter, tasks: Sequence[Task], open_jobs: int) -> None:
    for task in tasks:
        reporter.note(f"{task.name}: {counted(len(task.images), 'training image')}, {task.steps} steps")
    if done := len(tasks) - open_jobs:
        reporter.note(f"{done} of {counted(len(tasks), 'adapter')} {are(done)} there already")
